# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the owner of a session answers when a workspace asks for credentials, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import git as identity_git
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import journal as identity_journal
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import messages, program
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import queries as identity_queries
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import record as identity_record
from ansible_collections.spt.flow.tests.unit import identity_harness as harness
from ansible_collections.spt.flow.tests.unit.processes import Processes

SECRET = "canary-5f1d"
ANSWERING = f"""
cat >"$HOME/asked.$1"
test "$1" = get && printf 'username=ada\\npassword={SECRET}\\n'
"""
HOST = "git.example.com"
GET = f"protocol=https\nhost={HOST}\n"


@pytest.fixture
def user(tmp_path: Path) -> harness.User:
    (tmp_path / "home").mkdir()
    found = harness.User(tmp_path / "home", harness.private(tmp_path))
    found.helper(ANSWERING)
    found.record("git.example.com")
    return found


@pytest.fixture
def queries(user: harness.User, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask without an owner process, so that a test can change limits."""
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("SPT_FLOW_")]:
        monkeypatch.delenv(name)
    answers = identity_queries.Queries("demo")

    def ask(**query: Any) -> dict[str, Any]:
        reply = answers.answer(harness.string(json.dumps(query).encode()))
        answer: dict[str, Any] = json.loads(reply[5:])
        return answer

    return ask


def test_git_gets_the_users_credential_and_nothing_is_written(user: harness.User) -> None:
    watched = Processes(SECRET)
    watched.start()
    with user.session() as inside:
        answer = inside.git(GET)
        assert answer == {"ok": True, "output": f"{GET}username=ada\npassword={SECRET}\n"}
    assert watched.stop() == set()
    (line,) = user.log()
    assert (line["workspace"], line["kind"], line["subject"], line["verdict"]) == (
        "demo",
        "git",
        "get git.example.com",
        "given",
    )
    written = [path for path in user.home.rglob("*") if path.is_file() and path.name != "helper"]
    assert not [path for path in written if SECRET in path.read_text()]
    assert os.stat(user.home / "state/spt-flow/credentials.log").st_mode & 0o077 == 0


def test_fields_of_protocol_version_2_pass_both_ways(user: harness.User) -> None:
    user.program(
        "git",
        f"""cat >"$HOME/asked"; printf '%s\\n' protocol=https host=git.example.com capability[]=authtype \\
        authtype=Bearer credential={SECRET} ephemeral=1 state[]=one state[]=two oauth_refresh_token=r \\
        password_expiry_utc=1999999999 unknown=x""",
    )
    sent = (
        GET + "capability[]=authtype\ncapability[]=state\nwwwauth[]=Basic realm=x\nwwwauth[]=Bearer\npath=o/r\nodd=1\n"
    )
    with user.session() as inside:
        output = inside.git(sent)["output"].splitlines()
    assert (user.home / "asked").read_text() == sent.replace("odd=1\n", "")
    assert output[2:] == [
        "capability[]=authtype",
        "authtype=Bearer",
        f"credential={SECRET}",
        "ephemeral=1",
        "state[]=one",
        "state[]=two",
        "oauth_refresh_token=r",
        "password_expiry_utc=1999999999",
    ]


def test_path_is_passed_only_if_the_users_git_uses_it(user: harness.User) -> None:
    with user.session() as inside:
        inside.git(f"{GET}path=../../etc/passwd\n")
        assert "path" not in (user.home / "asked.get").read_text()
        with open(user.home / ".gitconfig", "a") as file:
            file.write("\tuseHttpPath = true\n")
        inside.git(f"{GET}path=o/r.git\n")
        assert "path=o/r.git\n" in (user.home / "asked.get").read_text()


def test_revoked_credential_is_erased_and_only_that_one(user: harness.User) -> None:
    with user.session() as inside:
        given = inside.git(GET)["output"]
        assert inside.git(given.replace(SECRET, "another"), "erase") == {"ok": True, "output": ""}
        assert inside.git(GET, "erase") == {"ok": True, "output": ""}
        assert not (user.home / "asked.erase").exists()
        inside.git(given, "erase")
        assert f"password={SECRET}\n" in (user.home / "asked.erase").read_text()


def test_workspace_cannot_store_a_credential_of_its_own(user: harness.User) -> None:
    with user.session() as inside:
        assert inside.git(f"{GET}username=eve\npassword=eves\n", "store")["ok"]
        assert not (user.home / "asked.store").exists()
        inside.git(inside.git(GET)["output"], "store")
        assert "username=ada\n" in (user.home / "asked.store").read_text()


def test_token_of_gh_is_the_second_choice_and_is_not_stored(user: harness.User) -> None:
    user.helper('cat >"$HOME/asked.$1"')
    user.program("gh", f'test "$*" = "auth token --hostname git.example.com" && echo {SECRET}')
    with user.session() as inside:
        answer = inside.git(GET)["output"]
        assert answer == f"{GET}username=x-access-token\npassword={SECRET}\n"
        inside.git(answer, "store")
        assert not (user.home / "asked.store").exists()
        assert inside.query(kind="token", host="git.example.com") == {"ok": True, "token": SECRET, "user": ""}


def test_token_of_glab_is_the_third_choice(user: harness.User) -> None:
    user.helper("exit 1")
    user.program("gh", "exit 1")
    user.program("glab", f'test "$*" = "config get token --host git.example.com" && echo {SECRET}')
    with user.session() as inside:
        assert inside.git(GET)["output"].endswith(f"username=oauth2\npassword={SECRET}\n")


def test_gh_inside_gets_the_password_of_git_without_gh_here(user: harness.User) -> None:
    with user.session() as inside:
        assert inside.query(kind="token", host="git.example.com")["token"] == SECRET


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "no credentials for git.example.com"),
        ("echo garbage; echo =; printf '\\0\\0'", "no credentials for git.example.com"),
        ("exec </dev/tty; read answer", "no credentials for git.example.com"),
        ("echo username=ada", "no credentials for git.example.com"),
        ("echo host=other.example.com; echo password=x", "no credentials for git.example.com"),
    ],
)
def test_useless_helper_ends_in_a_sentence(user: harness.User, script: str, said: str) -> None:
    user.helper(script)
    with user.session() as inside:
        answer = inside.git(GET)
    assert not answer["ok"] and said in answer["error"] and "git.example.com" in answer["hint"]


def test_missing_helper_ends_in_a_sentence(user: harness.User) -> None:
    (user.home / ".gitconfig").write_text("[credential]\n\thelper = does-not-exist\n")
    with user.session() as inside:
        assert "no credentials for git.example.com" in inside.git(GET)["error"]


def test_helper_that_hangs_is_killed(queries: Any, user: harness.User, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program.LIMIT + identity_queries.TURN < 30
    monkeypatch.setattr(program, "LIMIT", 1.0)
    user.helper('echo $$ >"$HOME/pid"; sleep 300 & wait')
    begun = time.monotonic()
    answer = queries(kind="git", operation="get", input=GET)
    assert time.monotonic() - begun < 10
    assert answer["error"] == "On your machine, git did not answer within 1 s."
    pid = int((user.home / "pid").read_text())
    harness.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the helper is killed")


def test_helper_ends_with_the_session(user: harness.User) -> None:
    user.helper('echo $$ >"$HOME/pid"; sleep 300')
    with harness.owner(user.socket, **user.environment), harness.Inside(user.socket) as inside:
        inside.socket.sendall(harness.framed(harness.extension("query@spt.flow", {"kind": "token", "host": HOST})))
        harness.wait_for((user.home / "pid").exists, "the helper runs")
    pid = int((user.home / "pid").read_text())
    harness.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the helper is killed")


def test_slow_helper_is_waited_for(user: harness.User) -> None:
    user.helper(f"sleep 2; {ANSWERING}")
    with user.session() as inside:
        assert inside.git(GET)["ok"]


def test_hung_helpers_leave_other_requests_bounded(queries: Any, user: harness.User, monkeypatch: Any) -> None:
    monkeypatch.setattr(program, "LIMIT", 1.0)
    monkeypatch.setattr(identity_queries, "TURN", 0.1)
    user.helper("sleep 300")
    answers: list[dict[str, Any]] = []
    asking = [
        threading.Thread(target=lambda: answers.append(queries(kind="git", operation="get", input=GET)))
        for _number in range(8)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(20)
    assert sorted({answer["error"] for answer in answers}) == [
        "On your machine, git did not answer within 1 s.",
        "Your machine is busy with other requests.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "protocol=https\nhost=git.example.com\nhost=evil.example.com\n",
        "host=evil.example.com\nprotocol=https\nhost=git.example.com\n",
        f"{GET}url=https://evil.example.com\n",
        "protocol=http\nhost=git.example.com\n",
        "protocol=https\nhost=git.example.com/../evil\n",
        "protocol=https\nhost=git.example.com\r\n",
        "protocol=https\nhost=git.example.com\0evil\n",
        "protocol=https\nhost=\n",
        "protocol=https\n",
        "protocol=https\nhost=evil@git.example.com\n",
        "protocol=https\nhost=git.example.com:99999\n",
        "protocol=https\nhost=g\u0456t.example.com\n",
        "no field",
        GET + "state[]=x\n" * 300,
    ],
)
def test_ambiguous_request_reaches_no_helper(user: harness.User, text: str) -> None:
    with user.session() as inside:
        answer = inside.git(text)
    assert answer["ok"] is False and answer["error"] and SECRET not in str(answer)
    assert not (user.home / "asked.get").exists()


@pytest.mark.parametrize(
    "host", ["evil.example.com", "git.example.com.evil.org", "example.com", "git.example.com:8443"]
)
def test_other_host_is_refused_and_the_setting_is_named(user: harness.User, host: str) -> None:
    with user.session() as inside:
        answer = inside.git(f"protocol=https\nhost={host}\n")
    assert host in answer["error"] and "credential_hosts" in answer["hint"]
    assert [line["verdict"] for line in user.log()] == ["refused"]
    assert not (user.home / "asked.get").exists()


def test_thousand_other_hosts_leave_the_owner_small(user: harness.User) -> None:
    with harness.owner(user.socket, **user.environment) as process, harness.Inside(user.socket) as inside:
        for number in range(1000):
            assert "may not use" in inside.git(f"protocol=https\nhost=h{number}.example.com\n")["error"]
        assert inside.git(GET)["ok"]
        assert int(harness.status(process.pid)["VmHWM"].split()[0]) < 40 * 1024
    assert len(user.log()) == 1001


def test_log_is_bounded(user: harness.User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(user.home / "state"))
    monkeypatch.setattr(identity_journal, "LARGEST", 1000)
    for _number in range(50):
        identity_journal.write("demo", "git", "x" * 1000, identity_journal.REFUSED)
    files = list((user.home / "state/spt-flow").glob("credentials.log*"))
    assert len(files) == 2 and all(path.stat().st_size < 3000 for path in files)
    assert 0 < identity_journal.counts()["demo"]["refused"] < 50


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xff\xff\xff", harness.string(b"{"), harness.string(b"[]")])
def test_malformed_query_is_answered_or_closed(user: harness.User, content: bytes) -> None:
    with user.session() as inside:
        reply = inside.ask(b"\x1b" + harness.string(b"query@spt.flow") + content)
        assert reply == b"" or json.loads(reply[5:])["ok"] is False
    with user.session() as inside:
        inside.socket.sendall(struct.pack(">I", 100) + b"\x1bhalf")
        with harness.Inside(user.socket) as other:
            assert other.git(GET)["ok"]


def test_unknown_kind_is_refused(user: harness.User) -> None:
    with user.session() as inside:
        for query in ({"kind": "shell"}, {}, {"kind": ["git"]}, {"kind": "git", "operation": "fill"}, {"kind": "git"}):
            assert inside.query(**query)["ok"] is False


def test_answer_that_is_too_large_is_a_sentence(user: harness.User) -> None:
    user.program("docker-credential-big", "head -c 400000 /dev/zero | tr '\\0' x")
    user.program(
        "docker-credential-wide",
        """printf '{"Username":"a","Secret":"'; head -c 300000 /dev/zero | tr '\\0' x; echo '"}'""",
    )
    (user.home / ".docker").mkdir()
    (user.home / ".docker/config.json").write_text('{"credsStore": "wide"}')
    with user.session() as inside:
        assert inside.query(kind="docker", operation="get", server="git.example.com")["error"] == (
            "The answer of your machine is too large."
        )
    assert messages.LARGEST == 256 * 1024


def test_settings_have_the_usual_order(user: harness.User) -> None:
    other = "protocol=https\nhost=other.example.com\n"
    user.record("git.example.com", credential_hosts="inventory.example.com", credentials=False)
    with user.session() as inside:
        assert "may not use your credentials" in inside.git(GET)["error"]
        user.settings(credentials="on", credential_hosts="other.example.com")
        assert inside.git(GET)["ok"] and inside.git(other)["ok"]
    with user.session(SPT_FLOW_CREDENTIALS="off") as inside:
        assert "SPT_FLOW_CREDENTIALS=on" in inside.git(GET)["hint"]
    with user.session(SPT_FLOW_CREDENTIAL_HOSTS="third.example.com") as inside:
        assert inside.git(GET)["ok"] and "may not" in inside.git(other)["error"]
        assert inside.git("protocol=https\nhost=third.example.com\n")["ok"]
    with user.session(SPT_FLOW_CREDENTIAL_HOSTS="*") as inside:
        assert inside.git("protocol=https\nhost=any.example.com:8443\n")["ok"]


def test_invalid_settings_file_gives_nothing(user: harness.User, tmp_path: Path) -> None:
    user.settings(credentials="maybe")
    with harness.agent(tmp_path) as (place, _public), user.session(SSH_AUTH_SOCK=str(place)) as inside:
        assert "neither true nor false" in inside.git(GET)["error"]
        assert harness.keys(user.socket) == "The agent has no identities."


@pytest.mark.parametrize("known", [True, False])
def test_ci_and_unknown_workspaces_get_credentials_only_on_request(user: harness.User, known: bool) -> None:
    user.record("git.example.com", own=False)
    if not known:
        (user.home / "state/spt-flow/workspaces/demo.json").unlink()
    with user.session(SPT_FLOW_CREDENTIAL_HOSTS="git.example.com") as inside:
        assert "may not use your credentials" in inside.git(GET)["error"]
    with user.session(SPT_FLOW_CREDENTIAL_HOSTS="git.example.com", SPT_FLOW_CREDENTIALS="on") as inside:
        assert inside.git(GET)["ok"]


def test_ssh_agent_off_hides_the_keys(user: harness.User, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, _public):
        with user.session(SSH_AUTH_SOCK=str(place), SPT_FLOW_SSH_AGENT="off") as inside:
            assert harness.keys(user.socket) == "The agent has no identities."
            assert inside.git(GET)["ok"], "credentials have a setting of their own"
        user.settings(ssh_agent="off")
        with user.session(SSH_AUTH_SOCK=str(place)):
            assert harness.keys(user.socket) == "The agent has no identities."


@pytest.mark.parametrize(("status", "signed"), [(0, True), (1, False), (None, False)])
def test_ssh_agent_ask_confirms_each_use(user: harness.User, tmp_path: Path, status: int | None, signed: bool) -> None:
    (tmp_path / "file").write_text("text")
    asker = user.program("asker", f'echo "$SSH_ASKPASS_PROMPT $1" >>"$HOME/confirmed"; exit {status}')
    path = "/usr/bin:/bin"
    environment = {"SPT_FLOW_SSH_AGENT": "ask", "PATH": path} | (
        {"SSH_ASKPASS": str(asker)} if status is not None else {}
    )
    with harness.agent(tmp_path) as (place, public), user.session(SSH_AUTH_SOCK=str(place), **environment):
        assert harness.keys(user.socket) == public
        (tmp_path / "public").write_text(public)
        done = harness.sign(user.socket, tmp_path / "public", tmp_path / "file")
        assert (done.returncode == 0) == signed
    if status is not None:
        (asked,) = (user.home / "confirmed").read_text().splitlines()
        assert asked.startswith("confirm Allow workspace demo to use the key SHA256:")
    (line,) = user.log()
    assert line["kind"] == "ssh" and line["verdict"] == ("given" if signed else "refused")


def test_docker_credentials_come_from_the_users_configuration(user: harness.User) -> None:
    (user.home / ".docker").mkdir()
    auth = base64.b64encode(f"ada:{SECRET}".encode()).decode()
    config = {
        "auths": {"git.example.com": {"auth": auth}, "https://index.docker.io/v1/": {"auth": auth}, "else.org": {}},
        "credHelpers": {"https://helped.example.com": "mine"},
    }
    (user.home / ".docker/config.json").write_text(json.dumps(config))
    user.program("docker-credential-mine", f"""cat >"$HOME/server"; echo '{{"Username":"bob","Secret":"{SECRET}"}}'""")
    hosts = "helped.example.com,docker.io,nothing.example.com"
    with user.session(SPT_FLOW_CREDENTIAL_HOSTS=hosts) as inside:

        def get(server: str) -> dict[str, Any]:
            return inside.query(kind="docker", operation="get", server=server)

        wanted = {"ok": True, "username": "ada", "secret": SECRET}
        assert get("git.example.com") == wanted == get("https://index.docker.io/v1/") == get("docker.io")
        assert get("helped.example.com")["username"] == "bob"
        assert (user.home / "server").read_text() == "helped.example.com"
        assert "docker login nothing.example.com" in get("nothing.example.com")["hint"]
        assert "credential_hosts" in get("else.org")["hint"]
        listed = inside.query(kind="docker", operation="list")
        assert sorted(listed["servers"]) == [
            "git.example.com",
            "https://helped.example.com",
            "https://index.docker.io/v1/",
        ]


def test_signing_facts_of_ssh_have_no_private_key(user: harness.User, tmp_path: Path) -> None:
    key = user.home / "signing"
    key.write_text("PRIVATE")
    key.with_suffix(".pub").write_text("ssh-ed25519 AAAA comment\n")
    config = f"[user]\n\temail = ada@example.com\n\tsigningKey = {key}\n[gpg]\n\tformat = ssh\n[commit]\n\tgpgSign\n"
    (user.home / ".gitconfig").write_text(config)
    with user.session() as inside:
        answer = inside.query(kind="signing")
        assert answer == {
            "ok": True,
            "format": "ssh",
            "key": "ssh-ed25519 AAAA",
            "commits": True,
            "tags": False,
            "allowed_signers": "ada@example.com ssh-ed25519 AAAA\n",
            "public_keys": "",
            "ownertrust": "",
        }
        (user.home / ".gitconfig").write_text("")
        assert inside.query(kind="signing")["format"] == ""
        (user.home / ".gitconfig").write_text(config)
    for limited in ({"SPT_FLOW_CREDENTIALS": "off"}, {"SPT_FLOW_SSH_AGENT": "off"}):
        with user.session(**limited) as inside:
            answer = inside.query(kind="signing")
            assert answer["ok"] and answer["format"] == answer["key"] == ""
    assert user.log() == [], "nothing secret was given"


def test_stream_needs_a_user_who_signs_with_gnupg(user: harness.User) -> None:
    with user.session() as inside:
        reply = inside.ask(harness.extension("stream@spt.flow", {"kind": "gpg"}))
        assert reply[:1] == b"\x05" and "does not sign with GnuPG" in json.loads(reply[5:])["error"]
    with user.session() as inside:
        assert inside.ask(harness.extension("stream@spt.flow", {"kind": "shell"}))[:1] == b"\x05"


def test_record_of_a_workspace_is_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    record = identity_record.Record(True, ("git.example.com",), {"credentials": False})
    identity_record.remember("demo", record)
    assert identity_record.read("demo") == record
    identity_record.forget("demo")
    assert identity_record.read("demo") == identity_record.Record()


def test_parsing_refuses_what_two_readers_could_understand_differently() -> None:
    assert identity_git.parse("host=a\n\nprotocol=https") == [("host", "a"), ("protocol", "https")]
    with pytest.raises(Exception, match="twice"):
        identity_git.parse("host=a\nhost=b")
