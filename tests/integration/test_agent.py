# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace agent in real workspaces: Docker inside, access, liveness, private repositories with the SSH agent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration.agent_harness import (
    Inside,
    docker,
    unavailable,
    wait_for,
    workspace,
)
from ansible_collections.spt.flow.tests.unit import user_side

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "runs")

FAST = {"SPT_FLOW_TICK": "60"}
"""A workspace clock on which a second counts as a minute."""
# A file system of one program and its library, because images for Docker inside must not come from a network.
ROOTFS = "tar -C / -ch bin/dash lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/libc.so.6 | docker import - tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def demo(folder) -> Iterator[Inside]:
    """A workspace shared by most tests, which leave it unchanged."""
    with workspace(folder, docker="auto") as inside:
        inside.wait("ide", "ok")
        yield inside


@pytest.fixture
def agent(tmp_path) -> Iterator[dict[str, str]]:
    """The caller's SSH agent with one key: the environment that names it, and the public key."""
    key, place = tmp_path / "mine", tmp_path / "agent"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "callers-key", "-f", key], check=True)
    daemon = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        wait_for(place.exists, 5)
        env = {**os.environ, "SSH_AUTH_SOCK": str(place)}
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True)
        yield {"SSH_AUTH_SOCK": str(place), "public": key.with_suffix(".pub").read_text()}
    finally:
        daemon.terminate()
        daemon.wait()


def with_agent(agent: dict[str, str]) -> dict[str, object]:
    return {"env": {**os.environ, "SSH_AUTH_SOCK": agent["SSH_AUTH_SOCK"]}}


FORWARD = ("-A", "-o", "IdentityAgent=SSH_AUTH_SOCK")


def test_steps_succeed_and_log_status_and_file_agree(demo):
    assert demo.wait("docker", "ok")["detail"].startswith("ready in")
    status = demo.status()
    for name in ("home", "clone", "docker", "ide", "dotfiles"):
        told = demo.step(name)
        assert {k: told[k] for k in ("state", "started", "ended", "detail")} == status["steps"][name]
    print({name: round(step["ended"] - step["started"], 2) for name, step in status["steps"].items()})
    assert status["boot"] == demo.events()[0]["boot"] and status["notes"] == []
    assert status["directory"] == "/home/coder"
    assert demo.exec("cat", "/proc/1/comm") == "tini"


def test_ide_answers_on_the_hosts_loopback_and_requires_the_password(demo):
    port = demo.ide_port()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.url.startswith(f"http://127.0.0.1:{port}/login")
    assert demo.status()["ide"]["password"] not in demo.log() + docker("inspect", demo.container).stdout
    assert (
        demo.exec(
            "sh",
            "-c",
            'grep -rlF -- "$1" /home /var /tmp /etc 2>/dev/null; true',
            "x",
            demo.status()["ide"]["password"],
        )
        == ""
    )


def test_docker_inside_runs_containers_with_and_without_network(demo):
    demo.wait("docker", "ok")
    demo.sh(ROOTFS)
    assert demo.sh("docker run --rm --network none tiny /bin/dash -c 'echo $((6*7))'") == "42"
    assert demo.sh("docker run --rm tiny /bin/dash -c 'echo netted'") == "netted"
    assert demo.sh("docker info -f '{{.Driver}} {{.DockerRootDir}}'") == "overlay2 /var/lib/spt-flow-docker"
    assert demo.ssh("docker run --rm tiny /bin/dash -c 'exit 9'").returncode == 9, (
        "non-interactive sessions know it too"
    )


def test_crashed_docker_inside_is_restarted_and_reported(demo):
    demo.wait("docker", "ok")
    demo.exec("sh", "-c", "kill -9 $(cat /run/user/1000/docker.pid)")
    told = wait_for(
        lambda: "started again 1 times" in demo.step("docker").get("detail", "") and demo.step("docker"), 30
    )
    assert told["state"] == "ok" and demo.sh("docker version -f '{{.Server.Version}}'")


def test_exit_status_environment_and_terminal_work_over_ssh(demo):
    assert demo.ssh("exit 7").returncode == 7
    env = dict(line.split("=", 1) for line in demo.ssh("env").stdout.splitlines() if "=" in line)
    assert env["DOCKER_HOST"] == "unix:///run/user/1000/docker.sock" and env["XDG_RUNTIME_DIR"] == "/run/user/1000"
    assert env["GOTMPDIR"].startswith("/var/tmp/") and "/usr/local/bin" in env["PATH"].split(":")
    assert not [name for name in env if name.startswith("SPT_FLOW")]
    assert demo.ssh("tty && id -u", options=("-tt",)).stdout.split()[0].startswith("/dev/pts/")
    assert demo.ssh("sudo -n id -u").stdout.strip() == "0"


def test_wrong_key_and_wrong_host_key_are_refused(demo, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    assert demo.ssh("true", options=("-i", str(other), "-o", "IdentityFile=none")).returncode == 0
    public = other.with_suffix(".pub").read_text().strip()
    proxy = f"docker exec -i -u 1000:1000 {demo.container} spt-workspace session '{public}'"
    refused = demo.ssh("true", options=("-o", f"ProxyCommand={proxy}"))
    assert refused.returncode == 255 and "Permission denied" in refused.stderr
    refused = demo.ssh("true", options=("-o", "KnownHostsCommand=/bin/true"))
    assert refused.returncode == 255 and "verification failed" in refused.stderr
    bad = docker("exec", "-i", demo.container, "spt-workspace", "session", "nonsense", check=False)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1


def test_agent_forwarding_shows_the_callers_keys(demo, agent):
    assert "callers-key" in demo.ssh("ssh-add -l", options=FORWARD, **with_agent(agent)).stdout


def test_local_forwarding_reaches_a_service_of_the_workspace(demo):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = demo.ssh_argv(options=("-N", "-L", f"127.0.0.1:{port}:127.0.0.1:8080", "-o", "ExitOnForwardFailure=yes"))
    tunnel = subprocess.Popen(argv)
    try:

        def asked() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                    return int(answer.status)
            except OSError:
                return 0

        assert wait_for(asked, 20) == 200
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def test_scp_and_rsync_copy_files_both_ways(demo, tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "data").write_bytes(data)
    far = f"{demo.container}:/home/coder/data"
    for argv in (
        ["scp", "-q", "-F", str(demo.config), str(tmp_path / "data"), far],
        ["scp", "-q", "-F", str(demo.config), far, str(tmp_path / "back")],
    ):
        subprocess.run(argv, check=True, timeout=60)
    assert (tmp_path / "back").read_bytes() == data
    assert demo.exec("sha256sum", "/home/coder/data").split()[0] == hashlib.sha256(data).hexdigest()
    if not shutil.which("rsync"):
        pytest.skip("scp works; this machine has no rsync of its own")
    shell = f"ssh -F {demo.config}"
    subprocess.run(["rsync", "-a", "-e", shell, f"{tmp_path}/", f"{demo.container}:tree/"], check=True, timeout=60)
    subprocess.run(
        ["rsync", "-a", "-e", shell, f"{demo.container}:tree/", f"{tmp_path}/again/"], check=True, timeout=60
    )
    assert (tmp_path / "again/data").read_bytes() == data
    demo.exec("rm", "-r", "/home/coder/tree", "/home/coder/data")


def test_killed_client_ends_the_session_and_its_programs(demo):
    left = "tmux -L left new-session -d 'sleep 4343'; sleep 4242; echo never"
    client = subprocess.Popen(demo.ssh_argv(left), stdin=subprocess.DEVNULL)
    find = ("pgrep", "-x", "-f", "sleep 4242")
    wait_for(lambda: demo.exec(*find, check=False), 20)
    assert demo.status()["life"]["reason"] == "an SSH session is open"
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_for(lambda: not demo.exec(*find, check=False), 20)
    wait_for(lambda: demo.exec("ls", "/run/spt-flow/sessions") == "", 20)
    wait_for(lambda: demo.status()["life"]["reason"] != "an SSH session is open", 20)
    assert demo.exec("pgrep", "-x", "-f", "sleep 4343"), "daemonised processes keep running"
    demo.exec("tmux", "-L", "left", "kill-server")


FILL = "printf 'protocol=https\\nhost=git.example.org\\n\\n' | GIT_TERMINAL_PROMPT=0 git credential fill"


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short name, because names of sockets are limited to 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="spt-") as made:
        yield Path(made)


def forwarding(user: user_side.UserSide) -> dict[str, object]:
    return {"env": {**os.environ, "SSH_AUTH_SOCK": str(user.place)}}


def test_git_asks_the_clients_helper_and_stores_nothing(demo, root):
    with user_side.session(root, user_side.credentials(password="canary-4711")) as user:
        done = demo.ssh(FILL, options=FORWARD, **forwarding(user))
    assert "password=canary-4711" in done.stdout, done.stderr
    asked = [request["input"] for request in user.asked if request["kind"] == "git"]
    assert len(asked) == 1 and "host=git.example.org" in asked[0]
    again = demo.ssh(FILL, options=FORWARD)
    assert again.returncode and "canary" not in again.stdout and "Connect from your own machine" in again.stderr
    assert "canary-4711" not in demo.log()
    assert demo.exec("sh", "-c", "grep -rl canary-4711 /home /run/spt-flow /tmp 2>/dev/null; true") == ""


def test_docker_asks_the_clients_logins_and_stores_nothing(demo, root):
    demo.wait("docker", "ok")
    assert json.loads(demo.exec("cat", "/home/coder/.docker/config.json")) == {"credsStore": "spt-flow"}
    answer = {"ok": True, "username": "ada", "secret": "canary-4712"}
    fill = "echo registry.example.com | docker-credential-spt-flow get"
    with user_side.session(root, lambda request: answer) as user:
        done = demo.ssh(fill, options=FORWARD, **forwarding(user))
    assert json.loads(done.stdout)["Secret"] == "canary-4712", done
    assert {"kind": "docker", "operation": "get", "server": "registry.example.com"} in user.asked
    assert "not found" in demo.ssh(fill).stdout
    assert demo.exec("sh", "-c", "grep -rl canary-4712 /home /run/spt-flow /tmp 2>/dev/null; true") == ""


def test_processes_outside_of_the_session_use_its_agent_until_it_ends(demo, agent):
    """The IDE's terminals and tmux have the stable path, as this command of the engine has it."""
    keys = ("env", "SSH_AUTH_SOCK=/run/spt-flow/agent.sock", "ssh-add", "-l")
    assert demo.exec(*keys, check=False).strip() in ("The agent has no identities.", "")
    client = subprocess.Popen(demo.ssh_argv("cat", options=FORWARD), stdin=subprocess.PIPE, **with_agent(agent))
    try:
        wait_for(lambda: "callers-key" in demo.exec(*keys, check=False), 20)
        assert demo.ssh("echo $SSH_AUTH_SOCK").stdout.strip() == "/run/spt-flow/agent.sock"
    finally:
        client.communicate(b"", timeout=20)
    assert "callers-key" not in demo.exec(*keys, check=False)


def sign(demo: Inside, name: str) -> str:
    """Return what git says about a commit that is signed without an option."""
    author = "git config user.name Ada && git config user.email ada@example.com"
    make = f"rm -rf /tmp/{name} && git init -q /tmp/{name} && cd /tmp/{name} && {author}"
    return f"{make} && git commit -q --allow-empty -m first && git verify-commit HEAD"


def test_commits_are_signed_with_the_callers_ssh_key(demo, agent, root):
    """The user has a real agent and a channel for the answers of the session's owner about git."""
    key = agent["public"].strip()
    signing = {"ok": True, "format": "ssh", "key": key, "commits": True, "tags": True}
    signing["allowed_signers"] = f"ada@example.com {key}\n"
    with user_side.session(root, lambda request: signing, upstream=agent["SSH_AUTH_SOCK"]) as user:
        client = subprocess.Popen(demo.ssh_argv("cat", options=FORWARD), stdin=subprocess.PIPE, **forwarding(user))
        wait_for(lambda: demo.exec("cat", "/run/spt-flow/gitconfig.signing", check=False), 20)
        done = demo.ssh(sign(demo, "by-ssh"), options=FORWARD, **forwarding(user))
        client.communicate(b"", timeout=20)
    assert done.returncode == 0 and 'Good "git" signature for ada@example.com' in done.stdout + done.stderr, done
    unsigned = demo.ssh("cd /tmp/by-ssh && git commit -q --allow-empty -m second")
    assert unsigned.returncode, "a commit without a session is not made instead of being unsigned"


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg is not installed")
def test_commits_are_signed_with_the_callers_gpg_key(demo, root):
    home = root / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    make = ["--passphrase", "", "--quick-generate-key", "Ada <ada@example.com>", "ed25519", "sign"]
    subprocess.run([*gpg, *make], check=True, capture_output=True, timeout=60)
    shown = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True, timeout=60)
    listed = subprocess.run([*gpg, "--with-colons", "-K"], check=True, capture_output=True, text=True, timeout=60)
    key = next(line.split(":")[9] for line in listed.stdout.splitlines() if line.startswith("fpr"))
    extra = ["gpgconf", "--homedir", str(home), "--list-dirs", "agent-extra-socket"]
    far = subprocess.run(extra, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    signing = {"ok": True, "format": "openpgp", "key": key, "commits": True, "tags": True}
    signing |= {"public_keys": shown.stdout, "ownertrust": f"{key}:6:\n"}
    try:
        with user_side.session(root, lambda request: signing, stream=far) as user:
            client = subprocess.Popen(demo.ssh_argv("cat", options=FORWARD), stdin=subprocess.PIPE, **forwarding(user))
            wait_for(lambda: "openpgp" in demo.exec("cat", "/run/spt-flow/gitconfig.signing", check=False), 20)
            done = demo.ssh(sign(demo, "by-gpg"), options=FORWARD, **forwarding(user))
            client.communicate(b"", timeout=20)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, timeout=60)
    assert done.returncode == 0 and 'Good signature from "Ada <ada@example.com>"' in done.stderr, done
    assert demo.exec("sh", "-c", "find /home/coder /run/spt-flow -path '*private-keys*' -type f") == ""


def test_stop_is_clean_and_quick_and_images_inside_survive(folder):
    with workspace(folder, "stops", docker="auto") as inside:
        inside.wait("docker", "ok")
        inside.sh(ROOTFS)
        inside.sh(
            "docker run -d --name sleeper tiny /bin/dash -c 'trap exit TERM; while :; do read x < /proc/uptime; done'"
        )
        first = inside.status()
        began = time.monotonic()
        docker("stop", "-t", "30", inside.container)
        took = time.monotonic() - began
        assert inside.state() == (False, 0) and took < 25, took
        inside.again("start")
        inside.wait("docker", "ok")
        inside.wait("ide", "ok")
        assert "tiny" in inside.sh("docker images --format '{{.Repository}}'")
        second = inside.status()
        assert second["boot"] != first["boot"] and second["host_key"] != first["host_key"]
        assert second["ide"]["password"] != first["ide"]["password"]
        inside.exec("ls", "/home/coder/.local/state/spt-flow/home.json")
        assert second["steps"]["home"]["detail"] == "the home was left as it is"


def test_killed_workspace_starts_normally(folder):
    with workspace(folder, "killed", docker="auto") as inside:
        inside.wait("docker", "ok")
        docker("kill", inside.container)
        inside.again("start")
        assert inside.wait("docker")["state"] == "ok" and inside.wait("ide")["state"] == "ok"


def test_idle_workspace_ends_with_status_0(folder):
    with workspace(folder, "idle", idle_stop=240, environment=FAST) as inside:
        wait_for(lambda: not inside.state()[0], 40)
        assert inside.state() == (False, 0)
        assert [e["reason"] for e in inside.events() if e["event"] == "life"][-1] == "idle for too long"


def test_session_delays_the_idle_stop_until_it_ends(folder):
    with workspace(folder, "held", idle_stop=240, environment=FAST) as inside:
        inside.wait("home", "ok")
        began = time.monotonic()
        assert inside.ssh("sleep 9").returncode == 0
        wait_for(lambda: not inside.state()[0], 30)
        assert time.monotonic() - began > 10


def test_keepalive_survives_a_restart_and_expires(folder):
    with workspace(folder, "kept", idle_stop=240, environment=FAST) as inside:
        inside.wait("home", "ok")
        said = json.loads(inside.exec("spt-workspace", "keepalive", "0.5", "me"))  # 30 s on this clock
        inside.again("restart")
        wait_for(lambda: inside.status()["life"].get("keepalive_by") == "me", 20)
        time.sleep(8)
        assert inside.state()[0]
        wait_for(lambda: not inside.state()[0], 60)
        assert time.time() >= said["keepalive"]["until"] - 1 and inside.state()[1] == 0


def test_ci_workspace_deletes_itself_at_its_deadline(folder):
    with workspace(folder, "ci", kind="ci", deadline=int(time.time()) + 20, docker="auto") as inside:
        assert inside.wait("docker", "ok")
        assert inside.sh("docker info -f '{{.Driver}}'") == "fuse-overlayfs"
        wait_for(lambda: inside.state() == (False, -1), 40)
        assert time.time() >= inside.workspace.deadline - 1
        names = docker("volume", "ls", "-q").stdout.split()
        assert not [name for name in names if name.startswith(inside.container)]


@pytest.fixture
def git_server(tmp_path, folder, agent) -> Iterator[dict[str, str]]:
    """A git server with a private repository: a real sshd in its own container.

    A workspace reaches neither services of this machine nor its neighbours. Therefore the server has its own network,
    to which the workspace is attached before it starts.
    """
    name = f"spt-flow-test-git-server-{os.getpid()}"
    docker("network", "create", "--label", "spt.flow.test=1", name)
    script = (
        "set -e; umask 077; mkdir -p ~/.ssh ~/r; printf '%s' \"$KEY\" > ~/keys; cd ~/r; git init -q -b main; "
        "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one; cd; git clone -q --bare r r.git; "
        "ssh-keygen -q -t ed25519 -N '' -f ~/host; "
        "exec /usr/sbin/sshd -D -e -p 2222 -o PidFile=none -o UsePAM=no -o StrictModes=no "
        "-o HostKey=/home/coder/host -o AuthorizedKeysFile=/home/coder/keys -o PasswordAuthentication=no"
    )
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

    words = ("--network", name, "--network-alias", "git.test", "-e", f"KEY={agent['public']}", "--user", "1000:1000")
    docker("run", "-d", "--name", name, *words, "--entrypoint", "/bin/sh", image_identity.identity().tag, "-c", script)
    try:
        reading = ("exec", name, "cat", "/home/coder/host.pub")
        public = wait_for(lambda: docker(*reading, check=False).stdout, 20)
        wait_for(lambda: "Server listening" in docker("logs", name).stderr, 20)
        head = docker("exec", name, "git", "-C", "/home/coder/r.git", "rev-parse", "HEAD").stdout.strip()
        yield {"network": name, "known": f"[git.test]:2222 {' '.join(public.split()[:2])}\n", "head": head}
    finally:
        docker("rm", "-f", name, check=False)
        docker("network", "rm", name, check=False)


def test_private_repository_is_cloned_with_the_callers_agent(folder, git_server, agent):
    environment = {
        "SPT_FLOW_REPO": "ssh://coder@git.test:2222/home/coder/r.git",
        "SPT_FLOW_REPO_ID": "git.test/home/coder/r",
        "SPT_FLOW_DIRECTORY": "/home/coder/r",
        "SPT_FLOW_KNOWN_HOSTS": git_server["known"],
    }

    def attach(inside: Inside) -> None:
        docker("network", "connect", git_server["network"], inside.container)

    with workspace(folder, "private", before_start=attach, environment=environment) as inside:
        step = inside.wait("clone")
        assert step["state"] == "needs-auth", step
        assert "ansible-playbook spt.flow.ssh -e workspace=private" in step["detail"]
        assert inside.wait("ide")["state"] == "ok", "the other steps continue"
        without = inside.ssh("spt-workspace clone")
        assert without.returncode == 4 and "No access" in without.stderr
        done = inside.ssh("spt-workspace clone", options=FORWARD, **with_agent(agent))
        assert done.returncode == 0, done.stderr
        assert inside.exec("git", "-C", "/home/coder/r", "rev-parse", "HEAD") == git_server["head"]
        wait_for(lambda: inside.step("clone").get("state") == "ok", 10)
        assert inside.exec("sh", "-c", "grep -rl 'PRIVATE KEY' /home/coder 2>/dev/null; true") == ""


def test_unknown_host_key_is_reported_and_not_trusted(folder, git_server):
    environment = {
        "SPT_FLOW_REPO": "ssh://coder@git.test:2222/home/coder/r.git",
        "SPT_FLOW_REPO_ID": "git.test/home/coder/r",
        "SPT_FLOW_DIRECTORY": "/home/coder/r",
    }

    def attach(inside: Inside) -> None:
        docker("network", "connect", git_server["network"], inside.container)

    with workspace(folder, "unknown", before_start=attach, environment=environment) as inside:
        step = inside.wait("clone")
        assert step["state"] == "failed" and "could not be verified" in step["detail"]
        assert "known_hosts" in step["detail"]
        assert inside.exec("sh", "-c", "cat ~/.ssh/known_hosts 2>/dev/null; true") == ""
