# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/venv installs only files whose hashes are in requirements/*.txt."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="venv")
def tool() -> ModuleType:
    loader = SourceFileLoader("spt_flow_tools_venv", str(CHECKOUT / "tools/venv"))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    loader.exec_module(module)
    return module


@pytest.fixture(name="wheel")
def a_wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels/spt_flow_sample-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("spt_flow_sample.py", "")
        metadata = "Metadata-Version: 2.1\nName: spt-flow-sample\nVersion: 1.0\n"
        archive.writestr("spt_flow_sample-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            "spt_flow_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("spt_flow_sample-1.0.dist-info/RECORD", "")
    return path


def install(venv: ModuleType, wheel: Path, pin: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run the installation command of tools/venv with ``wheel`` as the only source and ``place`` as the target."""
    pins = place.with_suffix(".txt")
    pins.write_text(f"{pin}\n")
    local = ["--no-index", "--find-links", str(wheel.parent), "--target", str(place)]
    command = venv.installation(Path(sys.prefix), [pins], "--only-binary", ":all:", *local)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_file_with_the_pinned_hash_is_installed(venv: ModuleType, wheel: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    done = install(venv, wheel, f"spt-flow-sample==1.0 --hash=sha256:{digest}", tmp_path / "place")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "place/spt_flow_sample.py").exists()


def test_file_with_another_hash_is_refused(venv: ModuleType, wheel: Path, tmp_path: Path) -> None:
    done = install(venv, wheel, f"spt-flow-sample==1.0 --hash=sha256:{'0' * 64}", tmp_path / "place")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "place").exists()


def test_pin_without_a_hash_is_refused(venv: ModuleType, wheel: Path, tmp_path: Path) -> None:
    done = install(venv, wheel, "spt-flow-sample==1.0", tmp_path / "place")
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()


def test_every_installation_step_requires_hashes_and_fetches_no_build_tools(venv: ModuleType) -> None:
    files = venv.requirements("max", dev=True)
    pip = [list(map(str, step)) for step in venv.steps(Path("/place"), Path("/python"), files)[1:]]
    assert all("--require-hashes" in step and "--no-deps" in step for step in pip)
    assert all("--only-binary" in step or "--no-build-isolation" in step for step in pip)
    assert [str(file) for file in files] == [word for step in pip for before, word in pairwise(step) if before == "-r"]


def test_packages_are_byte_compiled_except_rarely_used_ones(venv: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").symlink_to(sys.executable)
    used, seldom, broken = (place / "lib" / name for name in ("used.py", "ansible_collections/a/b/c.py", "broken.py"))
    seldom.parent.mkdir(parents=True)
    for path, text in ((used, "x = 1\n"), (seldom, "x = 1\n"), (broken, "print 'python 2'\n")):
        path.write_text(text)
    venv.byte_compile(place)
    assert [path.parent.name for path in place.rglob("*.pyc")] == ["__pycache__"]
    assert next(place.rglob("*.pyc")).name.startswith("used.")
