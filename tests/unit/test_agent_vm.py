# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``flow-vm``: the choice of accelerator, its report, and failures of the emulator."""

from __future__ import annotations

import gzip
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe as kvm_probe
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace import kvm, machine, tree
from spt_workspace.contract import Failure, Paths

# Echoes what is typed, like a serial console with a shell.
CONSOLE = """#!{python}
import re, sys
print("console", flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
    print("shell-42" if "echo shell" in line else "loop-1.0-3.0-", flush=True)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a kernel and a fake emulator."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "run/spt-flow").mkdir(parents=True)
    for version in ("6.1.0-9", "6.1.0-56"):
        (tmp_path / f"boot/vmlinuz-{version}-cloud").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SPT_FLOW_ACCEL", "")
    monkeypatch.setattr(machine, "_can_tap", lambda: False)
    monkeypatch.setattr(machine, "first_files", lambda kernel: b"")
    monkeypatch.setattr(machine, "_modules", lambda version, paths: ())
    monkeypatch.setattr(machine, "LOOP", "sleep 0.2")
    emulator(tmp_path, CONSOLE)
    return tmp_path


def emulator(root: Path, text: str) -> None:
    place = root / "bin" / machine.EMULATOR
    place.write_text(text.replace("{python}", sys.executable))
    place.chmod(0o755)


def says(monkeypatch, state: str) -> None:
    monkeypatch.setattr(kvm, "verdict", lambda device: (state, f"KVM is {state}."))


def test_kvm_is_used_if_a_guest_boots(root, monkeypatch, capsys):
    says(monkeypatch, "works")
    assert machine.main([], Paths(root)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["KVM is works.", "Booting Linux 6.1.0-56-cloud with kvm …"]
    assert said[2].startswith("Under KVM the guest's shell answered after ")
    assert "no tap can be made here" in said[2] and "times slower than this one." in said[2]
    assert (root / "run/spt-flow/accel").read_text() == "kvm\n"


def test_emulation_is_used_without_kvm(root, monkeypatch, capsys):
    says(monkeypatch, "absent")
    assert machine.main([], Paths(root)) == 0
    assert "Under TCG (software emulation) the guest's shell" in capsys.readouterr().out
    assert (root / "run/spt-flow/accel").read_text() == "tcg\n"


def test_kvm_that_boots_no_guest_falls_back_to_emulation(root, monkeypatch, capsys):
    says(monkeypatch, "works")
    monkeypatch.setattr(machine, "TRIAL", 0.5)
    emulator(root, CONSOLE.replace("import re, sys", "import sys, time\nif 'kvm' in sys.argv: time.sleep(60)"))
    assert machine.main([], Paths(root)) == 0
    said = capsys.readouterr().out
    assert "did not answer under kvm within 0 s; its console said last: nothing. Booting with tcg" in said
    assert (root / "run/spt-flow/accel").read_text() == "tcg\n"


@pytest.mark.parametrize("wish", ["--accel", "SPT_FLOW_ACCEL"])
def test_explicit_accelerator_is_never_replaced(root, monkeypatch, capsys, wish):
    says(monkeypatch, "denied")
    monkeypatch.setenv("SPT_FLOW_ACCEL", "kvm" if wish == "SPT_FLOW_ACCEL" else "")
    assert machine.main(["--accel", "kvm"] if wish == "--accel" else [], Paths(root)) == 1
    assert "not possible here. KVM is denied." in capsys.readouterr().err


def test_invalid_accelerator_is_wrong_usage(root, monkeypatch, capsys):
    monkeypatch.setenv("SPT_FLOW_ACCEL", "xen")
    assert machine.main([], Paths(root)) == 2
    assert "'xen', neither kvm nor tcg" in capsys.readouterr().err
    assert machine.main(["--accel", "xen"], Paths(root)) == 2


def test_crashed_emulator_is_reported_with_its_output(root, monkeypatch, capsys):
    says(monkeypatch, "absent")
    emulator(root, "#!/bin/sh\necho could not load PC BIOS >&2\nexit 1\n")
    assert machine.main([], Paths(root)) == 1
    assert "ended under tcg with status 1; it said last: could not load PC BIOS." in capsys.readouterr().err


def test_missing_requirement_has_its_own_exit_status(root, capsys):
    (root / "bin" / machine.EMULATOR).unlink()
    assert machine.main([], Paths(root)) == 6
    assert "no qemu-system-x86_64; profile fat has" in capsys.readouterr().err
    emulator(root, CONSOLE)
    for kernel in (root / "boot").iterdir():
        kernel.unlink()
    assert machine.main([], Paths(root)) == 6


def test_interrupted_run_ends_the_emulator(root, tmp_path):
    emulator(root, f"#!/bin/sh\necho $$ >{root}/pid\nexec sleep 60\n")
    program = (
        f"import sys; sys.path.insert(0, {str(harness.LIBRARY)!r}); sys.dont_write_bytecode = True\n"
        "from pathlib import Path\nfrom spt_workspace import kvm, machine\nfrom spt_workspace.contract import Paths\n"
        "machine._can_tap, machine.first_files, machine._modules = lambda: False, lambda k: b'', lambda v, p: ()\n"
        f"sys.exit(machine.main(['--accel', 'tcg'], Paths(Path({str(root)!r}))))"
    )
    for _attempt in range(5):  # The signal comes when the emulator has just started.
        (root / "pid").unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        harness.wait_for(lambda: (root / "pid").exists() and (root / "pid").read_text().strip())
        child.terminate()
        assert child.wait(20) == 130
        assert not Path("/proc", (root / "pid").read_text().strip()).exists()


def test_archive_round_trips():
    made = tree.of(["sh", "cat"], {"init": b"#!/bin/sh\n"}, ["proc"])
    assert {"bin/sh", "bin/cat", "init", "proc"} <= set(made)
    paths = list(made)
    assert all(path.rpartition("/")[0] in ("", *paths[: paths.index(path)]) for path in paths), "folders come first"
    assert list(unpacked(gzip.decompress(tree.cpio(made)))) == [*made.items(), ("TRAILER!!!", (0, b""))]


def unpacked(archive: bytes):
    """Return path, mode and content of each entry (kernel documentation: initramfs buffer format)."""
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        begin = at + 110
        content = begin + fields[11] + -(110 + fields[11]) % 4
        yield archive[begin : begin + fields[11] - 1].decode(), (fields[1], archive[content : content + fields[6]])
        at = content + fields[6] + -fields[6] % 4


def test_missing_program_is_named():
    with pytest.raises(Failure, match="no-such-program is not installed"):
        tree.of(["no-such-program"])


@pytest.mark.parametrize(
    "name", ["_tried", "_run_guest", "_prepare", "_followed", "_call", "_owner", "_errno", "_said"]
)
def test_trial_is_the_same_as_on_hosts(name):
    assert inspect.getsource(getattr(kvm, name)) == inspect.getsource(getattr(kvm_probe, name))
    constants = [key for key in vars(kvm_probe) if key.isupper()]
    assert {key: getattr(kvm, key) for key in constants} == {key: getattr(kvm_probe, key) for key in constants}
