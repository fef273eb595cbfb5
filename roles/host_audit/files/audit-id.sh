# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# The audit number of a workspace, sourced by the runtime spt-flow before it becomes runc. It forks once, to read the bundle.
# ids/<number> begins with the workspace's key and then has its containers. Only one of several starts can create it. A key keeps its
# number while a container or a log has it; spt-flow-audit frees the others. containers/<id> gives exec the number without trusting its
# environment. keys/<owner>.<workspace> has the number of a key; it is valid if ids/ agrees. next is where the search for a free one starts.
spt_flow_registry=${SPT_FLOW_AUDIT_REGISTRY:-/var/lib/spt-flow/audit/registry}
# Number of used numbers that a start checks before it gives up; this takes about 10 ms.
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

# Create a missing file with one line. The creator of an empty file has not written it yet.
spt_flow_audit_make() { # file, line
  set -C
  { printf '%s' "$2" >"$1"; } 2>/dev/null
  made=$?
  set +C
  return "$made"
}

# Print the number of $key if the registry agrees.
spt_flow_audit_known() { # file of the key
  number='' taken=''
  { read -r number <"$1"; } 2>/dev/null || [ -n "$number" ] || return 1
  { read -r taken <"$spt_flow_registry/ids/$number"; } 2>/dev/null && [ "$taken" = "$key" ]
}

# Print the number of $key: its own, or a free one.
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
  # The next start searches from here.
  echo "$number" >"$spt_flow_registry/next"
  return 1
}

# Try twice, because spt-flow-audit may free a number at the moment when it is used again.
spt_flow_audit_register() { # container
  for _ in once again; do
    spt_flow_audit_allocate && echo "$number" >"$spt_flow_registry/containers/$1" &&
      echo "$1" >>"$spt_flow_registry/ids/$number" && read -r taken <"$spt_flow_registry/ids/$number" || return 1
    [ "$taken" != "$key" ] || return 0
  done
  return 1
}

spt_flow_audit_set() { # number
  # /proc/self is this shell, because redirections of built-ins need no other process.
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
  # A container older than the registry gets a number at its next start.
  [ -r "$spt_flow_registry/containers/$1" ] || return 0
  read -r number <"$spt_flow_registry/containers/$1" && spt_flow_audit_set "$number"
}

# Return whether commands of workspaces are recorded now: the daemon runs, and the rules are installed.
spt_flow_audit_active() {
  [ -r "${SPT_FLOW_AUDITD:-/run/auditd.pid}" ] && read -r daemon <"${SPT_FLOW_AUDITD:-/run/auditd.pid}" &&
    [ -n "$daemon" ] && [ -d "/proc/$daemon" ]
}
