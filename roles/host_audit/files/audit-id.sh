# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# The audit number of a workspace, sourced by the runtime spt-flow before it becomes runc. It forks once, to read the bundle.
# ids/<number> begins with the workspace's key and then has its containers. Exactly one of several starts can make it. A key keeps its
# number while a container or a log has it; spt-flow-audit frees the others. containers/<id> tells exec the number without believing its
# environment. keys/<owner>.<workspace> has the number of a key; it counts when ids/ says the same. next is where to look for a free one.
spt_flow_registry=${SPT_FLOW_AUDIT_REGISTRY:-/var/lib/spt-flow/audit/registry}
# How many taken numbers a start looks at, which takes about 10 ms, before it gives up.
spt_flow_audit_tries=2000

# The key: owner/workspace of the bundle, or the container's id for anything else that uses this runtime. A quote inside another
# variable's value has a backslash before it in JSON, so it cannot pass for the beginning of a variable here.
spt_flow_audit_key() { # config.json, container
  words=$(grep -oE '[[,[:space:]]"SPT_FLOW_(OWNER|WORKSPACE)=[a-z0-9-]+"' "$1") owner='' workspace=''
  for word in $words; do
    word=${word#*\"} word=${word%\"}
    case "$word" in
      SPT_FLOW_OWNER=*) owner=${word#*=} ;;
      SPT_FLOW_WORKSPACE=*) workspace=${word#*=} ;;
    esac
  done
  if [ -n "$owner" ] && [ -n "$workspace" ]; then key=$owner/$workspace; else key=container/$2; fi
}

# Make a file that does not exist with one line. An empty file is one whose maker has not written it yet.
spt_flow_audit_make() { # file, line
  set -C
  { printf '%s' "$2" >"$1"; } 2>/dev/null
  made=$?
  set +C
  return "$made"
}

# The number that $key has, when the registry agrees.
spt_flow_audit_known() { # file of the key
  number='' taken=''
  { read -r number <"$1"; } 2>/dev/null || [ -n "$number" ] || return 1
  { read -r taken <"$spt_flow_registry/ids/$number"; } 2>/dev/null && [ "$taken" = "$key" ]
}

# The number of $key: the one that it has, or a free one.
spt_flow_audit_allocate() {
  case "$key" in
    container/*)
      spt_flow_audit_reserve
      return
      ;;
  esac
  known=$spt_flow_registry/keys/${key%/*}.${key#*/}
  [ ! -e "$known" ] || ! spt_flow_audit_known "$known" || return 0
  [ -d "$spt_flow_registry/keys" ] || mkdir -p "$spt_flow_registry/keys" || return 1
  if ! spt_flow_audit_make "$known" ''; then
    # Another start of the same workspace is about to write the number.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      [ ! -s "$known" ] || break
      sleep 0.1
    done
    spt_flow_audit_known "$known" && return 0
  fi
  spt_flow_audit_reserve && echo "$number" >"$known"
}

spt_flow_audit_reserve() {
  next=700000 tries=0
  [ ! -r "$spt_flow_registry/next" ] || read -r next <"$spt_flow_registry/next"
  case "$next" in
    7[0-9][0-9][0-9][0-9][0-9]) ;;
    *) next=700000 ;;
  esac
  while [ "$tries" -lt "$spt_flow_audit_tries" ]; do
    number=$((700000 + (next - 700000 + tries) % 100000)) tries=$((tries + 1))
    if [ ! -e "$spt_flow_registry/ids/$number" ] && spt_flow_audit_make "$spt_flow_registry/ids/$number" "$key
"; then
      echo "$((700000 + (number - 699999) % 100000))" >"$spt_flow_registry/next"
      return 0
    fi
  done
  # The next start looks further on.
  echo "$number" >"$spt_flow_registry/next"
  return 1
}

# Twice, as spt-flow-audit may free a number at the moment at which it is taken again.
spt_flow_audit_register() { # container
  for _ in once again; do
    spt_flow_audit_allocate && echo "$number" >"$spt_flow_registry/containers/$1" &&
      echo "$1" >>"$spt_flow_registry/ids/$number" && read -r taken <"$spt_flow_registry/ids/$number" || return 1
    [ "$taken" != "$key" ] || return 0
  done
  return 1
}

spt_flow_audit_set() { # number
  # /proc/self is this shell: redirections of built-ins need no process of their own.
  { echo "$1" >/proc/self/loginuid; } 2>/dev/null || {
    echo "spt-flow: the audit number $1 cannot be set, so this workspace is not started." >&2
    return 1
  }
}

spt_flow_audit_create() { # bundle, container
  spt_flow_audit_key "$1/config.json" "$2"
  spt_flow_audit_register "$2" || {
    echo "spt-flow: no audit number is free in $spt_flow_registry, so this workspace is not started. See: spt-flow-audit free" >&2
    return 1
  }
  spt_flow_audit_set "$number"
}

spt_flow_audit_exec() { # container
  # A container that is older than the registry has no number; it gets one at its next start.
  [ -r "$spt_flow_registry/containers/$1" ] || return 0
  read -r number <"$spt_flow_registry/containers/$1" && spt_flow_audit_set "$number"
}

# Whether commands of workspaces are being recorded now: the daemon lives, and its rules were put in place here.
spt_flow_audit_active() {
  [ -r "${SPT_FLOW_AUDITD:-/run/auditd.pid}" ] && read -r daemon <"${SPT_FLOW_AUDITD:-/run/auditd.pid}" &&
    [ -n "$daemon" ] && [ -d "/proc/$daemon" ]
}
