# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at a terminal: into the shell of a workspace and back."""

from __future__ import annotations

from collections.abc import Iterator

import pexpect
import pytest
from ansible_collections.spt.flow.tests.integration import doors_kit
from ansible_collections.spt.flow.tests.integration.doors_kit import Doors

pytestmark = pytest.mark.terminal


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with doors_kit.doors(tmp_path_factory.mktemp("terminal")) as house:
        yield house


def type_in(house: Doors, verb: str, *more: str, **environment: str) -> pexpect.spawn:
    argv = house.argv(verb, *more)
    env = house.environment(TERM="xterm", **environment)
    return pexpect.spawn(
        argv[0], argv[1:], cwd=str(house.cwd), env=env, encoding="utf-8", timeout=240, dimensions=(24, 100)
    )


def leave(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return int(child.exitstatus)


def test_up_ends_in_the_shell_and_gives_its_status(house: Doors) -> None:
    child = type_in(house, "up", "-e", f"repo={house.repository}")
    child.expect("PLAY RECAP")
    child.expect("password")
    child.expect(r"\$ ")
    child.sendline('echo "in:$(hostname):$(id -un):$(tty):$COLUMNS"; stty size')
    child.expect(rf"in:{house.name}:coder:/dev/pts/\d+:")
    child.expect("24 100")
    child.sendline("exit 23")
    assert leave(child) == 23
    assert list((house.home / ".ansible/tmp").glob("*")) == []


def test_connect_false_stays_out(house: Doors) -> None:
    child = type_in(house, "up", "-e", f"repo={house.repository} connect=false")
    assert leave(child) == 0


def test_an_interrupt_in_the_shell_does_not_end_it(house: Doors) -> None:
    child = type_in(house, "ssh")
    child.expect("PLAY RECAP")
    child.expect(r"\$ ")
    child.sendline("sleep 100; echo no")
    child.expect("echo no")
    child.sendintr()
    # What is typed before the prompt is back goes the way of the interrupted command.
    child.expect(r"\$ ")
    child.sendline("echo still-$((40 + 2))")
    child.expect("still-42")
    child.sendline("exit")
    leave(child)


@pytest.mark.parametrize(("answer", "status"), [("no", 2), ("yes", 0)])
def test_delete_asks_a_person(house: Doors, answer: str, status: int) -> None:
    child = type_in(house, "delete", "-e", f"workspace={house.name}")
    child.expect("Type yes to delete")
    child.sendline(answer)
    assert leave(child) == status
    assert bool(doors_kit.belongings(house.owner)) == (answer == "no")
