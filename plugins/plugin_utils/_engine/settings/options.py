# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every option of the collection: one table for documentation, validation and resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .targets import TARGETS

PREFIX = "SPT_FLOW_"
TEXT_LIMIT = 1024
"""Default limit of an option's text, in characters."""
MANY_LINES = {
    "known_hosts": 65536,
    "command": 131072,
    "artifacts": 4096,
    "junit": 4096,
    "env": 4096,
    "git_hooks": 65536,
}
"""Options that may have several lines, with their longest text in characters."""
DAY = 86400
MEBIBYTE = 1024**2
GIBIBYTE = 1024**3


@dataclass(frozen=True)
class Option:
    """A value that users can set.

    ``type``: str, bool, int, float, duration (text; seconds once resolved) or size (text; bytes once resolved).
    ``scope``: ``verb`` (for one run), ``workspace`` (fixed when the workspace is created or restarted; part of
    ``Settings.hash``), ``client`` (how this client works) or ``image``. ``low`` and ``high`` bound numbers; 0 is
    allowed if ``zero`` gives it a meaning.
    """

    name: str
    type: str
    default: Any
    description: str
    scope: str = "verb"
    choices: tuple[str, ...] = ()
    secret: bool = False
    low: float | None = None
    high: float | None = None
    zero: str = ""

    @property
    def ansible_type(self) -> str:
        return "str" if self.type in ("duration", "size") else self.type

    @property
    def environment(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def inventory(self) -> str:
        return f"flow_{self.name}"


GIT_HOOKS = (
    "applypatch-msg",
    "commit-msg",
    "post-applypatch",
    "post-checkout",
    "post-commit",
    "post-merge",
    "post-rewrite",
    "pre-applypatch",
    "pre-auto-gc",
    "pre-commit",
    "pre-merge-commit",
    "pre-push",
    "pre-rebase",
    "prepare-commit-msg",
)
"""Hooks that the workspace agent can install (``hooks.NAMES``); a test compares them."""
PROFILES = ("slim", "fat", "fat-ubuntu-24.04", "fat-debian-13", "fat-packages")
"""Profiles in image/versions.yml; a test compares them."""
OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "repo", "str", "", "Repository: https, ssh or git@host:path, owner/name on default_host, or a local path."
        ),
        Option("ref", "str", "", "Branch, tag or commit of a new clone; by default the repository's own."),
        Option("workspace", "str", "", "Name of the workspace; by default derived from the repository's name."),
        Option("owner", "str", "", "Owner of the workspace; by default the login name."),
        Option("target", "str", "auto", "Target on which workspaces run.", choices=("auto", *reversed(TARGETS))),
        Option(
            "node",
            "str",
            "",
            "Host of the inventory's group flow_nodes on which workspaces run; by default this machine.",
        ),
        Option("template", "str", "spt-flow", "Coder template of new workspaces."),
        Option(
            "dotfiles",
            "str",
            "",
            "Your dotfiles repository, installed and updated at each start; append #branch for a branch.",
        ),
        Option("trust", "bool", False, "Allow the postCreateCommand of the repository's devcontainer.json."),
        Option("connect", "bool", True, "At a terminal, end the run in a shell of the workspace."),
        Option(
            "output",
            "str",
            "text",
            "Format of the output: text, or one JSON object on standard output.",
            choices=("text", "json"),
        ),
        Option("command", "str", "", "Shell command to run in the workspace instead of opening a shell."),
        Option("confirm", "bool", False, "Delete without asking."),
        Option("hours", "float", 8.0, "Number of hours by which keepalive delays the idle stop.", low=0, high=24),
        Option("size", "bool", False, "Let status measure the sizes of volumes."),
        Option("follow", "bool", False, "Follow the log until the workspace stops."),
        Option("tail", "int", 0, "Number of last lines of the log to show.", low=0, high=1_000_000, zero="all"),
        Option(
            "from_run", "str", "", "Directory of a finished CI run; creates a workspace with its commit and settings."
        ),
        Option("commit", "str", "", "Full commit id of a CI job; by default the commit of ref."),
        Option(
            "ttl", "duration", "30m", "Time from its creation after which a CI workspace is deleted.", low=20, high=DAY
        ),
        Option(
            "artifacts",
            "str",
            "",
            "Files to collect after the job: globs relative to the clone, separated by commas or newlines.",
        ),
        Option(
            "junit",
            "str",
            "",
            "JUnit reports of the job: globs relative to the clone, separated by commas or newlines.",
        ),
        Option(
            "artifacts_dir",
            "str",
            "spt-flow-ci",
            "Directory for results on this machine; each CI run makes a directory in it.",
        ),
        Option("env", "str", "", "Names of environment variables to pass to the job, separated by commas or newlines."),
        Option("env_file", "str", "", "File of NAME=value lines to pass to the job; deleted after reading."),
        Option(
            "profile",
            "str",
            "auto",
            "Profile of the image; auto means fat, and slim on a Docker engine of this machine that cannot get fat.",
            "workspace",
            choices=("auto", *PROFILES),
        ),
        Option("cpus", "float", 4.0, "CPU limit of a workspace.", "workspace", low=0.1, high=1024),
        Option("memory", "size", "8g", "Memory limit of a workspace.", "workspace", low=256 * MEBIBYTE, high=2**50),
        Option(
            "pids", "int", 4096, "Limit of processes and threads of a workspace.", "workspace", low=128, high=4194304
        ),
        Option(
            "kvm",
            "str",
            "auto",
            "Whether a workspace gets /dev/kvm.",
            "workspace",
            choices=("auto", "required", "disabled"),
        ),
        Option(
            "docker",
            "str",
            "auto",
            "Whether Docker runs inside; unsafe allows it on an engine without user namespaces, where a workspace"
            " can become root on the machine.",
            "workspace",
            choices=("auto", "required", "disabled", "unsafe"),
        ),
        Option(
            "idle_stop",
            "duration",
            "2h",
            "Time without activity after which a workspace stops.",
            "workspace",
            low=60,
            high=30 * DAY,
            zero="never",
        ),
        Option(
            "ide_port",
            "int",
            0,
            "Port of the IDE on this machine.",
            "workspace",
            low=1024,
            high=65535,
            zero="any free one",
        ),
        Option("depth", "int", 0, "Number of commits to fetch.", "workspace", low=1, high=10**6, zero="all"),
        Option("submodules", "bool", False, "Fetch submodules.", "workspace"),
        Option("lfs", "bool", True, "Fetch files of Git LFS.", "workspace"),
        Option(
            "clone_cache", "bool", False, "Share git objects between clones in a cache on the machine.", "workspace"
        ),
        Option(
            "disk",
            "size",
            "20g",
            "Size of a workspace's home, and of the files it writes outside volumes.",
            "workspace",
            low=256 * MEBIBYTE,
            high=2**43,
            zero="no limit",
        ),
        Option(
            "docker_disk",
            "size",
            "20g",
            "Size of the data of Docker inside a workspace.",
            "workspace",
            low=256 * MEBIBYTE,
            high=2**43,
            zero="no limit",
        ),
        Option("known_hosts", "str", "", "Additional known_hosts entries.", "workspace"),
        Option(
            "git_hooks",
            "str",
            "",
            "Git hooks that run before the clone's own: a mapping of names to scripts, or its JSON.",
            "workspace",
        ),
        Option(
            "host_reserve_memory",
            "size",
            "1g",
            "Memory of the machine that workspaces may not use.",
            "workspace",
            low=0,
            high=2**50,
        ),
        Option("git_name", "str", "", "Your name in commits; by default from your git configuration.", "client"),
        Option(
            "git_email", "str", "", "Your e-mail address in commits; by default from your git configuration.", "client"
        ),
        Option(
            "credentials",
            "bool",
            True,
            "Let your workspaces use your git, gh and Docker credentials while you are connected.",
            "client",
        ),
        Option(
            "credential_hosts",
            "str",
            "",
            "Further hosts whose credentials workspaces may use, separated by commas; * means every host. The host of a"
            " workspace's repository is always included.",
            "client",
        ),
        Option(
            "ssh_agent",
            "str",
            "on",
            "Whether workspaces may use your SSH agent while you are connected; ask confirms each use.",
            "client",
            choices=("on", "off", "ask"),
        ),
        Option("default_host", "str", "github.com", "Host of repositories given as owner/name.", "client"),
        Option("wait_timeout", "duration", "10m", "Maximum time to wait for the IDE.", "client", low=1, high=DAY),
        Option(
            "image_base",
            "str",
            "auto",
            "Source of the image's base: a registry, or bootstrap from the distribution's mirror.",
            "image",
            choices=("auto", "registry", "bootstrap"),
        ),
        Option(
            "image_release",
            "str",
            "",
            "File that records each profile's verified image; empty uses the image that this collection describes.",
            "image",
        ),
        Option("mirror_apt", "str", "", "Address of a mirror of the distribution's packages.", "image"),
        Option(
            "mirror_crates",
            "str",
            "",
            "Address of a mirror of crates.io: its sparse index, and crates below crates/.",
            "image",
        ),
        Option("mirror_go", "str", "", "Address of a Go module proxy.", "image"),
        Option("mirror_npm", "str", "", "Address of an npm registry.", "image"),
        Option("mirror_pypi", "str", "", "Address of a Python package index.", "image"),
        Option("mirror_files", "str", "", "Address of a mirror of released files.", "image"),
        Option("ca_bundle", "str", "", "File with additional trusted certificates.", "image"),
    )
}
