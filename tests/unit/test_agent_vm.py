# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``flow-vm``: the choice of accelerator, its report, failures of the emulator, and Firecracker; ``kvm-ok``."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe as kvm_probe
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace import guest, kvm, machine, microvm, tree
from spt_workspace.contract import Contract, Failure, Paths
from spt_workspace.verify import place, workspace

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
    monkeypatch.setattr(guest, "can_tap", lambda: False)
    monkeypatch.setattr(guest, "file_system", lambda kernel: b"")
    monkeypatch.setattr(guest, "_modules", lambda version, paths: ())
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
    assert "no tap can be created here" in said[2] and "times slower than this one." in said[2]
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
    assert "did not answer under kvm within 0 s. Last line of its console: nothing. Booting with tcg" in said
    assert (root / "run/spt-flow/accel").read_text() == "tcg\n"


@pytest.mark.parametrize("wish", ["--accel", "SPT_FLOW_ACCEL"])
def test_explicit_accelerator_is_never_replaced(root, monkeypatch, capsys, wish):
    says(monkeypatch, "denied")
    monkeypatch.setenv("SPT_FLOW_ACCEL", "kvm" if wish == "SPT_FLOW_ACCEL" else "")
    assert machine.main(["--accel", "kvm"] if wish == "--accel" else [], Paths(root)) == 1
    assert "Cannot use KVM. KVM is denied." in capsys.readouterr().err


def test_invalid_accelerator_is_wrong_usage(root, monkeypatch, capsys):
    monkeypatch.setenv("SPT_FLOW_ACCEL", "xen")
    assert machine.main([], Paths(root)) == 2
    assert "SPT_FLOW_ACCEL is 'xen'. Use kvm or tcg." in capsys.readouterr().err
    assert machine.main(["--accel", "xen"], Paths(root)) == 2


def test_crashed_emulator_is_reported_with_its_output(root, monkeypatch, capsys):
    says(monkeypatch, "absent")
    emulator(root, "#!/bin/sh\necho could not load PC BIOS >&2\nexit 1\n")
    assert machine.main([], Paths(root)) == 1
    assert "tcg ended with status 1. Its last line: could not load PC BIOS." in capsys.readouterr().err


def test_missing_requirement_has_its_own_exit_status(root, monkeypatch, capsys):
    (root / "bin" / machine.EMULATOR).unlink()
    monkeypatch.setenv("PATH", str(root / "bin"))
    assert machine.main([], Paths(root)) == 6
    assert "no qemu-system-x86_64. Use the profile fat." in capsys.readouterr().err
    emulator(root, CONSOLE)
    for kernel in (root / "boot").iterdir():
        kernel.unlink()
    assert machine.main([], Paths(root)) == 6


def test_interrupted_run_ends_the_emulator(root, tmp_path):
    emulator(root, f"#!/bin/sh\necho $$ >{root}/pid\nexec sleep 60\n")
    program = (
        f"import sys; sys.path.insert(0, {str(harness.LIBRARY)!r}); sys.dont_write_bytecode = True\n"
        "from pathlib import Path\nfrom spt_workspace import guest, machine\nfrom spt_workspace.contract import Paths\n"
        "guest.can_tap, guest.file_system, guest._modules = lambda: False, lambda k: b'', lambda v, p: ()\n"
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
    assert all(path.rpartition("/")[0] in ("", *paths[: paths.index(path)]) for path in paths), (
        "directories precede their files"
    )
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


FIRECRACKER = CONSOLE.replace("import re, sys", "import json, sys\nvm = json.load(open(sys.argv[3]))").replace(
    "for line", "print(json.dumps(vm), file=open('{record}', 'w'), flush=True)\nfor line"
)


def firecracker(root: Path, text: str = FIRECRACKER) -> Path:
    """Install ``text`` as Firecracker; return the file to which it copies its configuration."""
    place = root / "bin/firecracker"
    place.write_text(text.replace("{python}", sys.executable).replace("{record}", str(root / "vm.json")))
    place.chmod(0o755)
    return root / "vm.json"


def test_firecracker_boots_the_same_kernel_and_files(root, monkeypatch, capsys):
    says(monkeypatch, "works")
    record = firecracker(root)
    assert machine.main(["--vmm", "firecracker"], Paths(root)) == 0
    assert "Under Firecracker Linux 6.1.0-56-cloud ran a command on its console" in capsys.readouterr().out
    vm = json.loads(record.read_text())
    assert vm["boot-source"]["kernel_image_path"] == str(root / "boot/vmlinuz-6.1.0-56-cloud")
    assert vm["machine-config"] == {"vcpu_count": 1, "mem_size_mib": 256}
    assert vm["network-interfaces"] == [], "no tap can be created here"


def test_firecracker_gets_a_tap_where_one_can_be_created(root):
    found = guest.kernel(Paths(root))
    (card,) = microvm.configuration(found, root / "initrd", True)["network-interfaces"]
    assert card["host_dev_name"] == guest.TAP


def test_firecracker_without_kvm_says_that_it_has_no_emulation(root, monkeypatch, capsys):
    says(monkeypatch, "absent")
    firecracker(root)
    assert machine.main(["--vmm", "firecracker"], Paths(root)) == 1
    assert "Firecracker needs KVM, and has no software emulation. KVM is absent." in capsys.readouterr().err
    assert machine.main(["--vmm", "firecracker", "--accel", "tcg"], Paths(root)) == 2


def test_image_without_firecracker_is_reported(root, monkeypatch, capsys):
    says(monkeypatch, "works")
    assert machine.main(["--vmm", "firecracker"], Paths(root)) == 6
    assert "no firecracker. Use the profile fat." in capsys.readouterr().err


def verified(root: Path, *names: str) -> str:
    """Return the detail of the check ``firecracker`` of an image with the packages or tools ``names``."""
    for program in ("firecracker", "jailer"):
        if not (root / "bin" / program).exists():
            path = root / "bin" / program
            path.write_text(f"#!/bin/sh\necho {program} v1\n")
            path.chmod(0o755)
    tools = {"firecracker": {"state": "present"}}
    about = {"tools": tools, "packages": {"machines": list(names)}}
    there = place.Place(Paths(root), Contract(), dict(os.environ), about, False, root)
    return dict(workspace.of(there))["firecracker"](there)


def versioned(text: str) -> str:
    """Return the program ``text`` that also answers --version."""
    return text.replace("import json, sys", "import json, sys\nif '--version' in sys.argv: sys.exit(print('fc v1'))")


def test_verify_boots_a_microvm(root, monkeypatch):
    says(monkeypatch, "works")
    firecracker(root, versioned(FIRECRACKER))
    assert verified(root).startswith("fc v1. Under Firecracker Linux 6.1.0-56-cloud ran a command on its console")


@pytest.mark.parametrize("state", ["absent", "denied", "broken"])
def test_verify_skips_firecracker_without_kvm(root, monkeypatch, state):
    says(monkeypatch, state)
    with pytest.raises(Failure, match=f"needs KVM, and has no software emulation. KVM is {state}.") as caught:
        verified(root)
    assert caught.value.state == "skipped"


@pytest.mark.parametrize("boots", [True, False])
def test_verify_blames_firecracker_only_if_qemu_boots_under_kvm(root, monkeypatch, boots):
    says(monkeypatch, "works")
    monkeypatch.setattr(machine, "TRIAL", 1.0)
    if not boots:
        emulator(root, "#!/bin/sh\nexit 1\n")
    firecracker(root, "#!/bin/sh\ncase $* in *version*) echo fc v1;; *) echo 'KVM_RUN failed'; exit 148;; esac\n")
    with pytest.raises(Failure, match=r"ended with status 148. Its last line: KVM_RUN failed") as caught:
        verified(root, "qemu-system-x86")
    assert (caught.value.state == "skipped") is not boots
    assert ("boots no Linux with Firecracker or QEMU" in caught.value.sentence) is not boots


@pytest.mark.parametrize(
    ("state", "status", "lines"),
    [
        ("works", 0, ["INFO: /dev/kvm exists", "KVM acceleration can be used"]),
        ("broken", 1, ["INFO: /dev/kvm exists", "INFO: KVM is broken.", "KVM acceleration can NOT be used"]),
    ],
)
def test_kvm_ok_answers_in_the_usual_words(root, monkeypatch, capsys, state, status, lines):
    says(monkeypatch, state)
    assert kvm.main(Paths(root)) == status
    assert capsys.readouterr().out.splitlines() == lines


def test_kvm_ok_says_what_to_do_without_a_device(tmp_path, capsys):
    assert kvm.main(Paths(tmp_path)) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "INFO: /dev/kvm does not exist" and said[-1] == "KVM acceleration can NOT be used"
    assert said[1] == f"HINT: {kvm.HINTS['absent']}"


def test_kvm_ok_is_a_program_that_needs_no_arguments():
    program = harness.REPOSITORY / "image/rootfs/usr/local/bin/kvm-ok"
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if kvm.verdict()[0] == "works" else 1)
    assert done.stdout.startswith("INFO: /dev/kvm ") and not done.stderr


@pytest.mark.parametrize("name", ["_tried", "_run_guest", "_prepare", "_followed", "_call", "_owner", "_errno"])
def test_nodes_and_workspaces_test_kvm_in_the_same_way(name):
    assert inspect.getsource(getattr(kvm, name)) == inspect.getsource(getattr(kvm_probe, name))
    constants = [key for key in vars(kvm_probe) if key.isupper() and key != "TOOL_TIMEOUT"]
    assert {key: getattr(kvm, key) for key in constants} == {key: getattr(kvm_probe, key) for key in constants}
