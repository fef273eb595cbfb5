# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What coder_node leaves: a socket for the user coder alone, behind which only the template's calls pass."""

from __future__ import annotations

SOCKET = "/run/spt-flow-coder/engine.sock"
UNIT = "spt-flow-engine-proxy"


def test_only_the_server_can_use_the_socket(host) -> None:  # type: ignore[no-untyped-def]
    found = host.file(SOCKET)
    assert found.is_socket and found.user == "coder" and found.mode == 0o600
    assert host.service(f"{UNIT}.socket").is_enabled
    assert "docker" not in host.user("coder").groups


def test_engine_answers_and_a_refusal_logs_one_line(host) -> None:  # type: ignore[no-untyped-def]
    as_coder = f"runuser -u coder -- docker --host unix://{SOCKET}"
    assert host.check_output(f"{as_coder} version --format '{{{{.Server.Version}}}}'")
    done = host.run(f"{as_coder} run --rm --privileged -v /:/host debian true")
    assert done.rc != 0 and "spt.flow refuses POST /containers/create on this node" in done.stderr
    journal = host.check_output(f"journalctl -u {UNIT} -o cat --grep 'refused: POST /containers/create'")
    assert len(journal.splitlines()) == 1 and "uid=" in journal


def test_proxy_restarts_after_a_kill_and_an_engine_restart(host) -> None:  # type: ignore[no-untyped-def]
    as_coder = f"runuser -u coder -- docker --host unix://{SOCKET} version --format '{{{{.Server.Version}}}}'"
    host.check_output(f"systemctl kill --signal=KILL {UNIT}.service")
    assert host.check_output(as_coder)
    host.check_output("systemctl restart docker")
    assert host.check_output(as_coder)


def test_proxy_has_no_privileges_except_the_engine(host) -> None:  # type: ignore[no-untyped-def]
    said = host.check_output(f"systemctl show {UNIT}.service -p User,DynamicUser,NoNewPrivileges,PrivateNetwork")
    assert {"DynamicUser=yes", "NoNewPrivileges=yes", "PrivateNetwork=yes"} <= set(said.splitlines())


def test_key_is_restricted_to_the_proxy(host) -> None:  # type: ignore[no-untyped-def]
    (line,) = host.file("/home/coder/.ssh/authorized_keys").content_string.splitlines()
    assert line.startswith(f'restrict,command="docker --host unix://{SOCKET} system dial-stdio" ssh-ed25519 ')
