# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the requirements of a workspace host. Read-only."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from .. import process
from ..docker.http import Engine
from ..errors import FlowError
from ..kvm import probe as kvm_probe
from ..machine import audit as machine_audit
from ..machine import facts as machine_facts
from ..snapshots import config as snapshots_config
from ..snapshots import status as snapshots_status
from .report import Row, rate

LIBRARY = "/usr/local/lib/spt-flow"
GIB = 1 << 30
TIMERS = (
    "spt-flow-audit-status",
    "spt-flow-audit-archive",
    "spt-flow-snapshots",
    "spt-flow-snapshots-verify",
    "spt-flow-snapshots-status",
    "spt-flow-images",
)


def collect(kvm_required: bool = False, firewall: bool = True, min_free_gib: int = 5) -> list[Row]:
    """Return all requirements, in the order in which the roles fulfil them."""
    systemd = Path("/run/systemd/system").is_dir()
    return [
        rate("systemd", "yes" if systemd else "process 1 is not systemd", "yes", systemd, possible=False),
        *kvm(kvm_required),
        *engine(min_free_gib),
        *images(systemd),
        *([firewall_rules()] if firewall else []),
        *audit(systemd, machine_facts.system(Path("/"))["container"]),
        *snapshots(systemd),
    ]


def kvm(required: bool) -> list[Row]:
    """Check that KVM runs guest code. A host without KVM passes unless KVM is required."""
    verdict = kvm_probe.verdict()
    limit = "works" if required else "works, or emulation"
    rows = [rate("virtual machines (KVM)", f"{verdict.state}: {verdict.message}", limit, verdict.works, required)]
    if Path(verdict.device).exists():
        mode = os.stat(verdict.device).st_mode & 0o777
        rows.append(rate("device for workspaces", f"{verdict.device} {mode:04o}", "0666", mode & 0o006 == 0o006))
    return rows


def engine(min_free_gib: int) -> list[Row]:
    """Check the settings that the engine reports."""
    try:
        info: dict[str, Any] = Engine("unix:///var/run/docker.sock").get_json("/info")
    except FlowError as error:
        return [rate("Docker engine", error.message, "answers", False)]
    options = [option.partition(",")[0] for option in info.get("SecurityOptions") or []]
    root = info.get("DockerRootDir", "/var/lib/docker")
    free = shutil.disk_usage(root).free // GIB if Path(root).exists() else 0
    return [
        rate("Docker engine", info.get("ServerVersion", "?"), "answers", True),
        rate("user-namespace remapping", ", ".join(options), "name=userns", "name=userns" in options),
        rate("seccomp", ", ".join(options), "name=seccomp", "name=seccomp" in options),
        rate(
            "AppArmor",
            "name=apparmor" if "name=apparmor" in options else "not in this kernel",
            "name=apparmor",
            "name=apparmor" in options,
            Path("/sys/kernel/security/apparmor").is_dir(),
        ),
        rate(
            "runtime spt-flow",
            ", ".join(sorted(info.get("Runtimes", {}))),
            "spt-flow",
            "spt-flow" in info.get("Runtimes", {}),
        ),
        rate(
            "engine restarts keep workspaces",
            f"live-restore {info.get('LiveRestoreEnabled')}",
            "live-restore True",
            bool(info.get("LiveRestoreEnabled")),
        ),
        rate(
            "free space for workspaces",
            f"{free} GiB free at {root}",
            f"at least {min_free_gib} GiB",
            free >= min_free_gib,
        ),
    ]


def images(systemd: bool) -> list[Row]:
    """Check that the image recorded by the role host_images exists, and that its timer runs."""
    code, said = _run(f"{LIBRARY}/spt-flow-images")
    return [
        rate("workspace image", said.partition(" Install it:")[0], "present", code == 0),
        _timer(TIMERS[5], systemd),
    ]


def firewall_rules() -> Row:
    """Check that the firewall blocks workspaces from the host's services and from cloud metadata."""
    code, said = _run(f"{LIBRARY}/spt-flow-firewall", "check")
    return rate("firewall", "in place" if code == 0 else said or "rules are missing", "in place", code == 0)


def audit(systemd: bool, container: bool) -> list[Row]:
    """Check that the kernel records commands and that the daemon writes them. Read-only, unlike the node's own check.

    A container shares the kernel with its host and has no audit trail of its own.
    """
    possible = systemd and not container
    try:
        status = machine_audit.kernel()
        found = machine_audit.problems(status, _run("auditctl", "-l")[1], status.get("lost", 0))
    except (FlowError, OSError) as error:
        found, status = [getattr(error, "message", str(error))], {}
    on = bool(status.get("enabled"))
    lost = status.get("lost", 0) if on else "nothing is recorded"
    return [
        rate("audit trail", " ".join(found) or "whole", "whole", not found, possible),
        rate("audit records lost", lost, "0", lost == 0, possible or on),
        *[_timer(name, systemd) for name in TIMERS[:2]],
    ]


def snapshots(systemd: bool) -> list[Row]:
    """Check that every home volume has a recent snapshot. Without systemd no timer creates them."""
    possible = systemd
    try:
        found = snapshots_status.report(snapshots_config.Config.load(), time.time())
        problems, volumes = found["problems"], len(found["volumes"])
    except (FlowError, OSError) as error:
        problems, volumes, possible = [getattr(error, "message", str(error))], 0, True
    said = " ".join(problems) or f"{volumes} volumes are safe"
    return [
        rate("snapshots of home volumes", said, "every volume, in time", not problems, possible),
        *[_timer(name, systemd) for name in TIMERS[2:5]],
    ]


def _timer(name: str, systemd: bool) -> Row:
    state = _run("systemctl", "is-active", "--", f"{name}.timer")[1] if systemd else "no systemd"
    return rate(f"timer {name}", state or "unknown", "active", state == "active", systemd)


def _run(*argv: str) -> tuple[int, str]:
    """Return exit status and output. A program that cannot be run counts as failed, with the reason as output."""
    status, out, messages = process.ask(*argv)
    return status, (out + messages).strip()
