# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user at a terminal: into the shell of a workspace and back."""

from __future__ import annotations

from collections.abc import Iterator

import pexpect
import pytest
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks

pytestmark = pytest.mark.terminal


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    with playbook_harness.playbooks(tmp_path_factory.mktemp("terminal")) as playbooks:
        yield playbooks


def type_in(playbooks: Playbooks, verb: str, *more: str, **environment: str) -> pexpect.spawn:
    argv = playbooks.argv(verb, *more)
    env = playbooks.environment(TERM="xterm", **environment)
    return pexpect.spawn(
        argv[0], argv[1:], cwd=str(playbooks.cwd), env=env, encoding="utf-8", timeout=240, dimensions=(24, 100)
    )


def leave(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return int(child.exitstatus)


def test_up_ends_in_the_shell_with_its_exit_status(playbooks: Playbooks) -> None:
    child = type_in(playbooks, "up", "-e", f"repo={playbooks.repository}")
    child.expect("PLAY RECAP")
    child.expect("password")
    child.expect(r"\$ ")
    child.sendline('echo "in:$(hostname):$(id -un):$(tty):$COLUMNS"; stty size')
    child.expect(rf"in:{playbooks.name}:coder:/dev/pts/\d+:")
    child.expect("24 100")
    child.sendline("exit 23")
    assert leave(child) == 23
    assert list((playbooks.home / ".ansible/tmp").glob("*")) == []


def test_connect_false_does_not_enter(playbooks: Playbooks) -> None:
    child = type_in(playbooks, "up", "-e", f"repo={playbooks.repository} connect=false")
    assert leave(child) == 0


def test_interrupt_in_the_shell_does_not_end_it(playbooks: Playbooks) -> None:
    child = type_in(playbooks, "ssh")
    child.expect("PLAY RECAP")
    child.expect(r"\$ ")
    child.sendline("sleep 100; echo no")
    child.expect("echo no")
    child.sendintr()
    # What is typed before the prompt is back is lost with the interrupted command.
    child.expect(r"\$ ")
    child.sendline("echo still-$((40 + 2))")
    child.expect("still-42")
    child.sendline("exit")
    leave(child)


@pytest.mark.parametrize(("answer", "status"), [("no", 2), ("yes", 0)])
def test_delete_asks_for_confirmation(playbooks: Playbooks, answer: str, status: int) -> None:
    child = type_in(playbooks, "delete", "-e", f"workspace={playbooks.name}")
    child.expect("Type yes")
    child.sendline(answer)
    assert leave(child) == status
    assert bool(playbook_harness.belongings(playbooks.owner)) == (answer == "no")
