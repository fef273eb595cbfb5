# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second Docker engine with its own data root and the checkout's runtime, which tests may stop and kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ROOT / "roles/host_docker/files"
NODE = ROOT / "plugins/module_utils/_node"
PROGRAMS = [
    "sh",
    "dd",
    "df",
    "ls",
    "cat",
    "sleep",
    "rm",
    "mkdir",
    "find",
    "stat",
    "sync",
    "ln",
    "sha256sum",
    "truncate",
]
IMAGE = "tiny"


class SecondEngine:
    """Started by ``start``; ``docker`` runs the client against it."""

    def __init__(self, folder: Path) -> None:
        # The remapped root user must reach the data.
        folder.chmod(0o711)
        self.folder, self.data = folder, folder / "data"
        self.run = Path(tempfile.mkdtemp(prefix="spt-flow-", dir="/run"))
        self.socket = self.run / "docker.sock"
        self.records = self.run / "disk"
        self.program = folder / "spt-flow-disk"
        self._process: subprocess.Popen[bytes] | None = None
        self._install()

    def _install(self) -> None:
        package = self.folder / "lib/spt_flow_node"
        shutil.copytree(NODE, package)
        for path in (package / "disk").glob("*.py"):
            path.write_text(path.read_text().replace("/run/spt-flow/disk", str(self.records)))
        for name, program in {"spt-flow-runc": self.folder / "runtime", "spt-flow-disk": self.program}.items():
            text = (FILES / name).read_text()
            text = text.replace("/usr/local/lib/spt-flow/spt-flow-disk", str(self.program))
            text = text.replace("/usr/local/lib/spt-flow", str(self.folder / "lib"))
            program.write_text(text.replace("/run/spt-flow/disk", str(self.records)))
            program.chmod(0o755)
        settings = {
            "live-restore": True,
            "userns-remap": "spt-flow-remap",
            "runtimes": {"spt-flow": {"path": str(self.folder / "runtime")}},
        }
        (self.folder / "daemon.json").write_text(json.dumps(settings))

    def start(self) -> None:
        pidfile = self.run / "docker.pid"
        for left in (
            pidfile,
            self.run / "exec/containerd/containerd.pid",
            self.run / "exec/containerd/containerd.sock",
        ):
            left.unlink(missing_ok=True)
        # A separate network: an engine without a bridge removes the other engine's docker0.
        argv = [
            "unshare",
            "--net",
            "--",
            "dockerd",
            "--config-file",
            self.folder / "daemon.json",
            "--data-root",
            self.data,
        ]
        argv += ["--exec-root", self.run / "exec", "--pidfile", pidfile, "--host", f"unix://{self.socket}"]
        argv += ["--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.docker("version", check=False).returncode:
            assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def docker(self, *words: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        argv = ["docker", "--host", f"unix://{self.socket}", *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=180, check=False)
        answer = subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())
        assert not check or done.returncode == 0, answer
        return answer

    def close(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired, OSError):
            if self._process is None or self._process.poll() is not None:
                self.start()
            for name in self.docker("ps", "--all", "--quiet").stdout.split():
                self.docker("rm", "--force", name, check=False)
            self.docker("volume", "prune", "--force", check=False)
        if self._process is not None and self._process.poll() is None:
            self.stop()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith((str(self.data), str(self.run))):
                subprocess.run(["umount", "--lazy", point], check=False, timeout=60)
        for left in self.run.parent.glob(f"{self.run.name}*"):
            shutil.rmtree(left, ignore_errors=True)

    def image(self) -> None:
        """Create an image of a few programs of this machine and their libraries."""
        root = self.folder / "image"
        for name in PROGRAMS:
            program = Path(str(shutil.which(name))).resolve()
            listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=60).stdout
            for path in {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}:
                target = root / str(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path.resolve(), target)
            (root / "bin").mkdir(exist_ok=True)
            shutil.copy(program, root / "bin" / name)
        for folder in ("home/coder", "var/lib/spt-flow-docker"):
            (root / folder).mkdir(parents=True)
            os.chown(root / folder, 1000, 1000)
        (root / "home/coder/.profile").write_text("from the image\n")
        tar = subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True, timeout=60).stdout
        self.docker("import", "-", IMAGE, stdin=tar)


@contextlib.contextmanager
def second_engine() -> Iterator[SecondEngine]:
    folder = Path(tempfile.mkdtemp(prefix="spt-flow-engine-", dir="/var/lib"))
    engine = SecondEngine(folder)
    try:
        engine.start()
        engine.image()
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder)
