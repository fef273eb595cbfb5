# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# The audit number of a workspace, sourced by the runtime spt-flow before it becomes runc.
# ids/<number> begins with the workspace's key and is made by link(2), which exactly one of several can win: a key has one number
# and a number one key, for as long as the trail is kept. containers/<id> tells exec the number without believing its environment.
# keys/<owner>.<workspace> only saves looking for the number: it counts when ids/ says the same.
spt_flow_registry=${SPT_FLOW_AUDIT_REGISTRY:-/var/lib/spt-flow/audit/registry}

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

# The number of $key: where it was before, where its checksum points, or the next one that is free.
spt_flow_audit_allocate() {
  known=$spt_flow_registry/keys/${key%/*}.${key#*/} taken=''
  [ -r "$known" ] && read -r number <"$known" && read -r taken <"$spt_flow_registry/ids/$number" && [ "$taken" = "$key" ] && return 0
  spt_flow_audit_search || return 1
  case "$key" in
    container/*) ;;
    *) mkdir -p "$spt_flow_registry/keys" && echo "$number" >"$known" ;;
  esac
}

spt_flow_audit_search() {
  sum=$(printf %s "$key" | cksum)
  offset=$((${sum%% *} % 100000)) tries=0 fresh=$spt_flow_registry/.new.$$
  while [ "$tries" -lt 100000 ]; do
    number=$((700000 + (offset + tries) % 100000))
    file=$spt_flow_registry/ids/$number
    if [ ! -e "$file" ]; then
      printf '%s\n' "$key" >"$fresh" && ln "$fresh" "$file" 2>/dev/null
      rm -f "$fresh"
    fi
    read -r taken <"$file" || return 1
    [ "$taken" = "$key" ] && return 0
    tries=$((tries + 1))
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
  if ! spt_flow_audit_allocate || ! echo "$number" >"$spt_flow_registry/containers/$2" ||
    ! echo "$2" >>"$spt_flow_registry/ids/$number"; then
    echo "spt-flow: no audit number can be registered in $spt_flow_registry, so this workspace is not started." >&2
    return 1
  fi
  spt_flow_audit_set "$number"
}

spt_flow_audit_exec() { # container
  # A container that is older than the registry has no number; it gets one at its next start.
  [ -r "$spt_flow_registry/containers/$1" ] || return 0
  read -r number <"$spt_flow_registry/containers/$1" && spt_flow_audit_set "$number"
}
