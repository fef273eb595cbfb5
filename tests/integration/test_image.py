# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built image: its tools answer, few files have privileges, and nothing is left over."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

Inside = Callable[[str], str]
TOOLS = {
    "bash": "--version",
    "capsh": "--print",
    "cc": "--version",
    "code-server": "--version",
    "curl": "--version",
    "docker": "--version",
    "dockerd": "--version",
    "fuse-overlayfs": "--version",
    "git": "--version",
    "git-lfs": "version",
    "gpg": "--version",
    "ip": "-V",
    "iptables": "--version",
    "jq": "--version",
    "kvm-ok": "",
    "less": "--version",
    "locale": "",
    "make": "--version",
    "nano": "--version",
    "newuidmap": "",
    "ping": "-V",
    "ps": "--version",
    "python3": "--version",
    "rootlesskit": "--version",
    "rsync": "--version",
    "scp": "",
    "slirp4netns": "--version",
    "ssh": "-V",
    "sshd": "-V",
    "sudo": "--version",
    "tini": "--version",
    "tmux": "-V",
    "vim": "--version",
    "xz": "--version",
}
"""Arguments that make each tool of the slim profile answer; those without any only have to exist."""


@pytest.fixture(scope="module", params=["slim", pytest.param("fat-packages", marks=pytest.mark.full)])
def image(request: pytest.FixtureRequest) -> image_identity.Image:
    """The image of a profile, built if the engine does not have it."""
    found = image_identity.identity(request.param)
    image_build.ensure(found, {}, Progress())
    return found


@pytest.fixture(scope="module")
def inside(image: image_identity.Image) -> Iterator[Inside]:
    """Run a shell script in a container of the image, as its user and without a network."""
    command = ["docker", "run", "--detach", "--rm", "--network", "none", "--label", "spt.flow.test=image"]
    words = ["--entrypoint", "/usr/bin/sleep", image.tag, "600"]
    started = subprocess.run([*command, *words], check=True, capture_output=True, text=True, timeout=60)
    identifier = started.stdout.strip()

    def run(script: str) -> str:
        argv = ["docker", "exec", identifier, "/bin/sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout.strip()

    yield run
    subprocess.run(["docker", "rm", "-f", identifier], capture_output=True, timeout=60)


def test_every_tool_answers(inside: Inside) -> None:
    answers = "\n".join(
        f"command -v {tool} >/dev/null || echo {tool}: absent"
        + (f"; {tool} {words} </dev/null >/dev/null 2>&1 || echo {tool}: fails" if words else "")
        for tool, words in TOOLS.items()
        if tool != "sshd"
    )
    # -V is an unknown option for older releases of sshd, which still print their version.
    assert inside(f"PATH=$PATH:/usr/sbin:/sbin\n{answers}\nsshd -V 2>&1 | grep -q OpenSSH || echo sshd: fails") == ""


def test_every_package_of_the_profile_is_installed(inside: Inside, image: image_identity.Image) -> None:
    packages = [name for group in image_identity.recipe(image.profile).packages.values() for name in group]
    found = inside(f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' {' '.join(packages)}").splitlines()
    assert sorted(found) == sorted(f"installed {package}" for package in packages)


def test_only_sudo_raises_privileges(inside: Inside) -> None:
    files = inside("sudo find / -xdev -path /proc -prune -o -perm /6000 -type f -print | sort")
    assert files == inside("cat /usr/local/lib/spt-workspace/setuid.list")
    setuid = inside("sudo find / -xdev -path /proc -prune -o -perm /4000 -type f -print | sort").splitlines()
    # su asks for a password and no user has one; ssh-keysign serves only host-based logins, which are disabled.
    assert set(setuid) - {"/usr/bin/su", "/usr/lib/openssh/ssh-keysign"} == {"/usr/bin/sudo"}
    assert inside("sudo awk -F: '$2 !~ /^[*!]/ {print $1}' /etc/shadow") == ""


def test_ids_are_mapped_by_file_capabilities(inside: Inside) -> None:
    found = inside("sudo getcap -r /usr /opt 2>/dev/null | sort").splitlines()
    assert found == ["/usr/bin/newgidmap cap_setgid=ep", "/usr/bin/newuidmap cap_setuid=ep"]
    assert inside("cat /etc/subuid /etc/subgid") == "coder:100000:65536\ncoder:100000:65536"


def test_nothing_is_left_over_from_the_build(inside: Inside) -> None:
    left = inside(
        "sudo find /var/lib/apt/lists /var/cache/apt/archives -type f ! -name lock;"
        " sudo find /var/cache/apt -name '*.bin'; sudo find /tmp /var/tmp /root -mindepth 1 -type f ! -name '.*';"
        " ls /etc/ssh/ssh_host_* /usr/sbin/policy-rc.d /usr/local/lib/spt-flow-build 2>/dev/null || true"
    )
    assert left == ""


def test_no_key_password_or_mirror_of_the_builder_remains(inside: Inside, image: image_identity.Image) -> None:
    public = image_identity.recipe(image.profile).distribution["archives"]
    found = inside("cat /etc/apt/sources.list.d/* /etc/apt/sources.list 2>/dev/null | grep -oE 'https?://[^ ]+'")
    assert found.split() == public
    assert inside("env | cut -d= -f1 | grep -iE 'proxy|cert|token' || true") == ""


def test_apt_refuses_unsigned_and_outdated_archives(inside: Inside) -> None:
    weak = r'Check-Valid-Until "(false|no|0)"|(AllowInsecure|AllowUnauth|AllowWeak)[^ ]* "(true|yes|1)"'
    assert inside(f"apt-config dump | grep -iE '{weak}' || true") == ""
    assert inside("grep -c ^Signed-By /etc/apt/sources.list.d/*.sources") == "2"
    assert inside("grep -ciE 'valid-until|trusted' /etc/apt/sources.list.d/*.sources || true") == "0"


def test_image_describes_what_it_was_built_from(inside: Inside, image: image_identity.Image) -> None:
    said = json.loads(inside("cat /usr/share/spt-flow/image.json"))
    assert said == image_build.inventory(image_identity.recipe(image.profile), image)


def test_user_has_id_1000_and_may_become_root(inside: Inside) -> None:
    assert inside("id -un; id -u; id -g; sudo -n id -u; echo $HOME").split() == [
        "coder",
        "1000",
        "1000",
        "0",
        "/home/coder",
    ]


def test_tag_and_label_name_the_inputs(image: image_identity.Image) -> None:
    found = docker_http.connect().get_json(f"/images/{image.tag}/json")
    labels = found["Config"]["Labels"]
    assert (labels["spt.flow.image"], labels["spt.flow.profile"]) == (image.hash, image.profile)
    assert image.tag.endswith(f":{image.profile}-{image.hash[:12]}")
    assert found["Config"]["User"] == "1000:1000"
    assert found["Config"]["Entrypoint"][-2:] == ["/usr/local/bin/spt-workspace", "run"]


def kvm_ok(image: image_identity.Image, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["docker", "run", "--rm", "--network", "none", *options, "--entrypoint", "kvm-ok", image.tag]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_kvm_ok_succeeds_where_guest_code_runs(image: image_identity.Image) -> None:
    if not probe.verdict().works:
        pytest.skip("KVM does not work on this machine")
    done = kvm_ok(image, "--device", "/dev/kvm")
    assert (done.returncode, done.stdout) == (0, "INFO: /dev/kvm exists\nKVM acceleration can be used\n"), done.stderr


def test_kvm_ok_fails_with_a_reason_without_kvm(image: image_identity.Image) -> None:
    done = kvm_ok(image)
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert said[0] == "INFO: /dev/kvm does not exist" and said[1].startswith(
        "HINT: start the workspace with kvm=required"
    )
    assert said[-1] == "KVM acceleration can NOT be used"


def test_second_run_builds_nothing(image: image_identity.Image) -> None:
    said: list[str] = []
    begun = time.monotonic()
    assert image_build.ensure(image_identity.identity(image.profile), {}, Progress(said.append)) is False
    assert time.monotonic() - begun < 2
    assert said == []
