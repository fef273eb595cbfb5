# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a workspace, and their form on each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .options import GIBIBYTE, MANY_LINES, MEBIBYTE, OPTIONS


@dataclass(frozen=True)
class Settings:
    """The resolved options of scope ``workspace``, and the client's waiting time.

    ``hash`` covers the requested values, so it does not depend on the machine; ``cap`` fits them to one.
    """

    profile: str = "auto"
    cpus: float = 4.0
    memory: int = 8 * GIBIBYTE
    pids: int = 4096
    kvm: str = "auto"
    docker: str = "auto"
    idle_stop: int = 7200
    ide_port: int = 0
    depth: int = 0
    submodules: bool = False
    lfs: bool = True
    clone_cache: bool = False
    disk: int = 20 * GIBIBYTE
    docker_disk: int = 20 * GIBIBYTE
    known_hosts: str = ""
    git_hooks: str = ""
    host_reserve_memory: int = GIBIBYTE
    wait_timeout: int = 600

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Create from the values that ``resolve`` returned."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def hash(self) -> str:
        """Return 64 hex digits of the settings that only a new or restarted workspace gets."""
        import hashlib
        import json

        fixed = {name: value for name, value in asdict(self).items() if OPTIONS[name].scope == "workspace"}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def cap(self, cpus: float, memory: int, reserve: int | None = None) -> tuple[Settings, list[str]]:
        """Return the settings for a machine of ``cpus`` and ``memory`` (bytes) minus ``reserve``, and a sentence if
        they differ.
        """
        reserve = self.host_reserve_memory if reserve is None else reserve
        room = max(memory - reserve, 256 * MEBIBYTE) if memory else self.memory
        fitted = replace(self, cpus=min(self.cpus, cpus or self.cpus), memory=min(self.memory, room))
        changes = []
        machine = []
        if fitted.cpus < self.cpus:
            changes.append(f"{fitted.cpus:g} instead of {self.cpus:g} CPUs")
            machine.append(f"{cpus:g} CPUs")
        if fitted.memory < self.memory:
            changes.append(f"{fitted.memory / GIBIBYTE:.1f} instead of {self.memory / GIBIBYTE:.1f} GiB of memory")
            machine.append(f"{memory / GIBIBYTE:.1f} GiB of memory, of which {reserve / GIBIBYTE:.1f} GiB are reserved")
        if not changes:
            return self, []
        return fitted, [f"The workspace gets {' and '.join(changes)}, because the machine has {' and '.join(machine)}."]

    def tmpfs(self) -> dict[str, str]:
        """Mount options by path, for Docker and Terraform (docs/decisions/memory-file-systems.md)."""
        private = "nosuid,nodev,mode=0700,uid=1000,gid=1000,size=64m"
        return {
            "/tmp": f"exec,nosuid,nodev,mode=1777,size={self.memory // 4}",  # noqa: S108  (a mount point inside)
            "/run": "nosuid,nodev,noexec,mode=0755,size=64m",
            "/run/spt-flow": private,
            "/run/user/1000": private,
        }

    # Targets; tests/unit/test_single_source.py compares them.

    def environment(self) -> dict[str, str]:
        """Return the agent's environment variables that depend on settings, for all targets."""
        return {
            "SPT_FLOW_DEPTH": str(self.depth),
            "SPT_FLOW_SUBMODULES": str(int(self.submodules)),
            "SPT_FLOW_LFS": str(int(self.lfs)),
            "SPT_FLOW_KVM": self.kvm,
            "SPT_FLOW_DISK": str(self.disk),
            "SPT_FLOW_DOCKER_DISK": str(self.docker_disk),
            "SPT_FLOW_KNOWN_HOSTS": self.known_hosts,
            "SPT_FLOW_GIT_HOOKS": self.git_hooks,
        }

    def pipeline_environment(self) -> dict[str, str]:
        """Return the pipeline's variables for CI workspaces with these settings; defaults are omitted.

        A list of variables cannot have values of several lines, so ``known_hosts`` stays in the inventory.
        """
        named = {name: (value, getattr(Settings, name)) for name, value in asdict(self).items()}
        return {
            OPTIONS[name].environment: str(value).lower() if isinstance(value, bool) else str(value)
            for name, (value, default) in named.items()
            if value != default and OPTIONS[name].scope == "workspace" and name not in MANY_LINES
        }

    def terraform_variables(self) -> dict[str, str]:
        """Return the template's variables that depend on settings (``templates/coder/spt-flow/variables.tf``).

        All are text, as Coder's API requires. The runtime sets the limit of processes, because Terraform's provider
        cannot.
        """
        import json

        return {
            "settings_hash": self.hash(),
            "cpus": f"{self.cpus:g}",
            "memory": str(self.memory // MEBIBYTE),
            "kvm": str(self.kvm != "disabled").lower(),
            "docker": str(self.docker != "disabled").lower(),
            "tmpfs": json.dumps(self.tmpfs(), sort_keys=True),
            "environment": json.dumps(self.environment(), sort_keys=True),
        }

    def devcontainer_arguments(self) -> list[str]:
        """Return the ``runArgs`` of ``devcontainer.json`` that depend on settings.

        Uses a quota of processor time, because engines with fewer processors reject ``--cpus``.
        """
        period = 100_000
        return [
            f"--cpu-period={period}",
            f"--cpu-quota={round(self.cpus * period)}",
            f"--memory={self.memory}",
            f"--memory-swap={self.memory}",
            f"--pids-limit={self.pids}",
            *(f"--tmpfs={path}:{options}" for path, options in self.tmpfs().items()),
        ]

    def docker_arguments(self) -> dict[str, Any]:
        """Return the part of Docker's ``HostConfig`` that depends on settings."""
        return {
            "NanoCpus": round(self.cpus * 1e9),
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "PidsLimit": self.pids,
            "Tmpfs": self.tmpfs(),
            "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(self.ide_port)}]},
        }
