# shellcheck shell=sh
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Variables of every login shell: the inner Docker engine, the SSH agent, paths of installed tools, caches on the container's disk
# (docs/decisions/memory-file-systems.md).
if [ "$(id -u)" = 1000 ]; then
    export XDG_RUNTIME_DIR=/run/user/1000
    export DOCKER_HOST="unix://$XDG_RUNTIME_DIR/docker.sock"
    # Coder's agent sets the socket of the one session; this one outlives it.
    [ ! -S /run/spt-flow/agent.sock ] || export SSH_AUTH_SOCK=/run/spt-flow/agent.sock
    export GOTMPDIR=/var/tmp/coder CARGO_TARGET_DIR=/var/tmp/coder/cargo-target
    export PATH="$PATH:$HOME/.cargo/bin:$HOME/go/bin"
    # The accelerator that flow-vm found.
    if [ -z "${SPT_FLOW_ACCEL:-}" ] && [ -r /run/spt-flow/accel ]; then
        read -r SPT_FLOW_ACCEL </run/spt-flow/accel
        export SPT_FLOW_ACCEL
    fi
    export PIP_CACHE_DIR=/var/tmp/coder/pip npm_config_cache=/var/tmp/coder/npm
    # Variables of the repository's devcontainer.json; the workspace agent writes them.
    [ ! -r /run/spt-flow/environment.sh ] || . /run/spt-flow/environment.sh
fi
