# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's own devcontainer.json: what is read, what is allowed, and that nothing runs without consent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from hypothesis import given, settings
from hypothesis import strategies as st
from spt_workspace import contract, devcontainer

quick = settings(max_examples=200, deadline=None, database=None)
CLONE = Path("/home/coder/demo")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
comments = st.sampled_from(["", " ", "\n", '// a "word", ]\n', "/* , } // */", '/* " */', "//\n/**/\t"])


@st.composite
def commented(draw: st.DrawFn) -> tuple[dict, str]:
    """Return an object, and its text with comments and commas wherever they are allowed."""

    def text(value: object) -> str:
        gap = draw(comments)
        if isinstance(value, dict):
            parts = [f"{gap}{json.dumps(name)}{draw(comments)}:{text(inner)}" for name, inner in value.items()]
            return "{" + ",".join(parts) + (draw(st.sampled_from(["", ","])) if parts else "") + gap + "}"
        if isinstance(value, list):
            parts = [text(inner) for inner in value]
            return "[" + ",".join(parts) + (draw(st.sampled_from(["", ","])) if parts else "") + gap + "]"
        return gap + json.dumps(value) + draw(comments)

    value = draw(st.dictionaries(st.text(), json_values, max_size=4))
    return value, draw(comments) + text(value) + draw(comments)


@quick
@given(commented())
def test_comments_and_trailing_commas_are_ignored(pair: tuple[dict, str]) -> None:
    value, text = pair
    assert devcontainer.parse(text.encode()) == value


@quick
@given(st.binary() | st.text().map(str.encode) | json_values.map(json.dumps).map(str.encode))
def test_any_text_gives_an_object_or_a_message(raw: bytes) -> None:
    try:
        assert isinstance(devcontainer.parse(raw), dict)
    except contract.Failure as failure:
        assert failure.sentence.endswith("was not read.")


KEYS = ("forwardPorts", "containerEnv", "customizations", "postCreateCommand", "image", "runArgs")


@quick
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, json_values)))
def test_any_request_grants_only_the_safe_part(data: dict) -> None:
    found = devcontainer.wishes(data, CLONE)
    assert all(1024 <= port <= 65535 for port in found.ports)
    assert all("\n" not in text and "\0" not in text for text in found.environment.values())
    assert all("/" not in name and not name.startswith("-") for name in found.extensions)
    assert all(command and all(isinstance(word, str) for word in command) for command in found.commands)
    for name in ("image", "runArgs"):
        assert (name in data) == (name in found.ignored)


def test_only_safe_keys_are_granted() -> None:
    found = devcontainer.wishes(
        {
            "name": "x",
            "image": "evil",
            "features": {"ghcr.io/x/y:1": {}},
            "initializeCommand": "id",
            "postStartCommand": "id",
            "forwardPorts": [3000, "localhost:8000", "db:5432", 80, True, 3000, 70000],
            "containerEnv": {
                "DATABASE_URL": "postgres://localhost/db",
                "ROOT": "${containerWorkspaceFolder}/src",
                "NODE_ENV": "development",
                "LANG": "${containerWorkspaceFolder}",
                "TOKEN": "${localEnv:TOKEN}",
            },
            "customizations": {
                "vscode": {"extensions": ["Golang.go", "./evil.vsix", "-ms.x", "a.b@1.2.3", "a.b; id"], "settings": {}},
                "jetbrains": {},
            },
            "postCreateCommand": {"one": "make deps", "two": ["npm", "ci"]},
        },
        CLONE,
    )
    assert found.ports == (3000, 8000)
    assert found.environment == {"NODE_ENV": "development"}
    assert found.unset == ("DATABASE_URL", "ROOT", "LANG")
    assert found.extensions == ("golang.go", "a.b@1.2.3")
    assert found.commands == (("/bin/sh", "-c", "make deps"), ("npm", "ci"))
    assert found.ignored == (
        "features",
        "image",
        "initializeCommand",
        "postStartCommand",
        "forwardPorts db:5432",
        "forwardPorts 80",
        "forwardPorts True",
        "forwardPorts 70000",
        "containerEnv TOKEN",
        "customizations vscode settings",
        "extension ./evil.vsix",
        "extension -ms.x",
        "extension a.b??id",
        "customizations jetbrains",
    )


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PROMPT_COMMAND", "PS1", "SHELL", "HOME", "IFS"),
        *(
            "GIT_SSH_COMMAND",
            "GIT_EXTERNAL_DIFF",
            "GIT_CONFIG_COUNT",
            "EDITOR",
            "PAGER",
            "GH_PAGER",
            "LESSOPEN",
            "BROWSER",
        ),
        *("NODE_OPTIONS", "NODE_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PERL5OPT", "RUBYOPT", "JAVA_TOOL_OPTIONS"),
        *("JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "MAVEN_OPTS", "GRADLE_OPTS", "GOFLAGS", "GOTOOLCHAIN", "RUSTC_WRAPPER"),
        *("CARGO_BUILD_RUSTC", "MAKEFLAGS", "CC", "CFLAGS", "PIP_INDEX_URL", "npm_config_registry", "DOCKER_HOST"),
        *("HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "SSH_AUTH_SOCK", "GPG_TTY", "XDG_CONFIG_HOME", "SUDO_ASKPASS"),
        *("SPT_FLOW_DOTFILES", "CODER_AGENT_TOKEN", "VSCODE_IPC_HOOK_CLI", "EXTENSIONS_GALLERY", "PASSWORD", "VIMINIT"),
        *(
            "APT_CONFIG",
            "KUBECONFIG",
            "AWS_CONFIG_FILE",
            "ANSIBLE_CONFIG",
            "GH_EDITOR",
            "PSQLRC",
            "RIPGREP_CONFIG_PATH",
        ),
        *("KRB5_CONFIG", "HGRCPATH", "R_PROFILE_USER", "JUPYTER_CONFIG_DIR", "FZF_DEFAULT_OPTS", "STARSHIP_CONFIG"),
        *("GTK_MODULES", "QT_PLUGIN_PATH", "GIO_EXTRA_MODULES", "EMACSLOADPATH", "TF_CLI_CONFIG_FILE", "HOSTALIASES"),
        *("JULIA_LOAD_PATH", "MIX_EXS", "MY_OWN", "x"),
    ],
)
def test_variables_that_make_programs_run_others_need_consent(name: str) -> None:
    found = devcontainer.wishes({"containerEnv": {name: "x"}}, CLONE)
    ours = name.startswith(("SPT_FLOW_", "CODER_"))
    assert (found.environment, found.ignored, found.unset) == (
        ({}, (f"containerEnv {name}",), ()) if ours else ({}, (), (name,))
    )
    granted = devcontainer.wishes({"containerEnv": {name: "x"}}, CLONE, consent=True).environment
    assert granted == ({} if name.startswith(("SPT_FLOW_", "CODER_")) else {name: "x"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("LANG", "de_DE.UTF-8"),
            ("LC_ALL", "C.UTF-8"),
            ("LANGUAGE", "de:en"),
            ("TZ", "Europe/Berlin"),
            ("TZ", "UTC"),
        ),
        *(("TZ", "America/Argentina/Buenos_Aires"), ("TZ", "Etc/GMT+1"), ("NODE_ENV", "test"), ("DEBUG", "app:*")),
        *(
            ("RUST_LOG", "info,app=debug"),
            ("PORT", "3000"),
            ("CI", ""),
            ("PYTHONUNBUFFERED", "1"),
            ("RAILS_ENV", "test"),
        ),
    ],
)
def test_harmless_variables_need_no_consent(name: str, text: str) -> None:
    assert devcontainer.wishes({"containerEnv": {name: text}}, CLONE).environment == {name: text}


@pytest.mark.parametrize("name", ["LANG", "LC_ALL", "LANGUAGE", "TZ", "NODE_ENV", "DEBUG", "RUST_LOG", "MIX_ENV"])
@pytest.mark.parametrize(
    "text", ["/etc/x", "./x", "../x", "a/../b", "..", ":/x", "~", "~/x", "$HOME", "`id`", "a\\b", "x" * 300]
)
def test_value_that_may_be_a_path_needs_consent(name: str, text: str) -> None:
    found = devcontainer.wishes({"containerEnv": {name: text}}, CLONE)
    assert (found.environment, found.unset) == ({}, (name,))


def test_at_most_32_ports_are_requested() -> None:
    found = devcontainer.wishes({"forwardPorts": list(range(3000, 3040))}, CLONE)
    assert found.ports == tuple(range(3000, 3032)) and found.ignored[0] == "forwardPorts 3032"


def test_file_behind_a_link_out_of_the_clone_is_ignored(tmp_path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / ".devcontainer.json").symlink_to("../outside.json")
    assert devcontainer.find(clone) is None
    (clone / ".devcontainer").mkdir()
    (clone / ".devcontainer/devcontainer.json").write_text("{}")
    assert devcontainer.find(clone) == clone / ".devcontainer/devcontainer.json"


def test_generated_file_requests_nothing(tmp_path) -> None:
    (tmp_path / ".devcontainer.json").write_text('// Written by spt.flow (…)\n{"image": "x", "runArgs": []}')
    assert devcontainer.read(tmp_path) == devcontainer.Wishes()


# In a workspace


@pytest.fixture
def machine(tmp_path):
    machine = harness.Machine(tmp_path / "m")
    code_server = harness.CODE_SERVER.replace(
        "import http.server, os, pathlib, sys, time\n",
        "import http.server, os, pathlib, sys, time\n"
        'if "--install-extension" in sys.argv:\n'
        '    pathlib.Path({root!r}, "installed").open("a").write(sys.argv[-1] + "\\n")\n'
        '    sys.exit("broken" in sys.argv[-1])\n',
    )
    machine.stub("code-server", code_server)
    yield machine
    machine.kill_rest()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    with harness.https_git(place, place) as (prefix, certificate, _handler):
        yield place, prefix, certificate


def publish(served, name: str, file: dict | str, where: str = ".devcontainer/devcontainer.json") -> str:
    work = served[0] / f"{name}.work"
    harness.git("init", "-q", "-b", "main", str(work))
    (work / where).parent.mkdir(parents=True, exist_ok=True)
    (work / where).write_text(file if isinstance(file, str) else json.dumps(file))
    harness.git("add", ".", cwd=work)
    harness.git("commit", "-q", "-m", "x", cwd=work)
    harness.git("clone", "-q", "--bare", str(work), str(served[0] / f"{name}.git"))
    return f"{served[1]}/{name}.git"


def start(machine, served, url: str) -> dict:
    machine.trust(served[2])
    machine.start(SPT_FLOW_REPO=url, SPT_FLOW_REPO_ID="example.com/o/demo")
    return machine.wait("devcontainer")


ALL = {
    "forwardPorts": [3000],
    "containerEnv": {"TZ": "Europe/Berlin", "COLOUR": "it's red", "BASH_ENV": "evil.sh", "SPT_FLOW_X": "1"},
    "customizations": {"vscode": {"extensions": ["golang.go"]}},
    "postCreateCommand": "echo $COLOUR; echo x >> ~/ran",
    "features": {},
}


def test_ports_variables_and_extensions_apply_without_running_anything(machine, served):
    step = start(machine, served, publish(served, "all", "// hello\n" + json.dumps(ALL)))
    assert step["state"] == "ok"
    assert step["detail"] == (
        "extensions: golang.go; its postCreateCommand did not run, with your consent it does: spt-workspace trust; "
        "ports: 3000; variables: TZ; "
        "variables that need your consent: COLOUR, BASH_ENV, spt-workspace trust sets them; "
        "ignored: features, containerEnv SPT_FLOW_X"
    )
    assert not (machine.paths.home / "ran").exists()
    assert (machine.root / "installed").read_text() == "golang.go\n"
    assert '"TZ=Europe/Berlin"' in (machine.paths.run / "sshd_config").read_text()
    assert (machine.paths.run / "environment.sh").read_text() == "export TZ=Europe/Berlin\n"
    assert json.loads((machine.paths.run / "steps.json").read_text())["ports"] == [3000]
    machine.end()
    assert start(machine, served, f"{served[1]}/all.git")["state"] == "ok"
    assert (machine.root / "installed").read_text() == "golang.go\n", "its user may have removed it"
    assert "'TZ': 'Europe/Berlin'" in (machine.root / "code-server.env").read_text(), (
        "the IDE has them from its next start on"
    )


def test_consent_runs_the_command_once_and_is_stored(machine, served):
    start(machine, served, publish(served, "consent", ALL))
    done = machine.command("trust")
    assert done.returncode == 0 and "its postCreateCommand ran; log: " in done.stderr
    assert (machine.paths.home / "ran").read_text() == "x\n"
    assert "it's red\n" in (machine.paths.state / "devcontainer.log").read_text()
    assert '"COLOUR=it\'s red"' in (machine.paths.run / "sshd_config").read_text()
    harness.wait_for(lambda: "BASH_ENV" in (machine.paths.run / "environment.sh").read_text())
    assert "ran earlier" in machine.command("trust").stderr
    machine.end()
    assert "its postCreateCommand ran earlier" in start(machine, served, f"{served[1]}/consent.git")["detail"]
    assert (machine.paths.home / "ran").read_text() == "x\n"


def test_consent_before_the_clone_applies_and_can_be_withdrawn(machine, served):
    machine.paths.run.mkdir(parents=True)
    machine.environ |= {"SPT_FLOW_REPO_ID": "example.com/o/demo"}
    environ = {name: machine.environ[name] for name in ("SPT_FLOW_REPO_ID", "SPT_FLOW_DIRECTORY")}
    assert machine.command("trust", **environ).returncode == 0
    assert machine.command("trust", "no", **environ).returncode == 0
    assert machine.command("trust", "maybe", **environ).returncode == 2
    assert "did not run" in start(machine, served, publish(served, "early", ALL))["detail"]
    machine.end()
    (machine.paths.home / "demo").rename(machine.paths.home / "old")
    assert "no postCreateCommand to run" in machine.command("trust", **environ).stderr
    machine.start(SPT_FLOW_REPO=f"{served[1]}/early.git", SPT_FLOW_REPO_ID="example.com/o/demo")
    assert "its postCreateCommand ran; " in machine.wait("devcontainer")["detail"]


def test_consent_to_variables_only_sets_them_in_new_shells(machine, served):
    step = start(machine, served, publish(served, "variables", {"containerEnv": {"COLOUR": "it's red"}}))
    assert step["detail"] == "variables that need your consent: COLOUR, spt-workspace trust sets them"
    done = machine.command("trust")
    assert done.returncode == 0 and "New shells have its variables: COLOUR." in done.stderr
    wanted = "export COLOUR='it'\"'\"'s red'\n"
    harness.wait_for(lambda: (machine.paths.run / "environment.sh").read_text() == wanted)


def test_consent_applies_to_one_repository(machine, served):
    start(machine, served, publish(served, "one", ALL))
    assert machine.command("trust").returncode == 0
    machine.end()
    (machine.paths.home / "demo").rename(machine.paths.home / "old")
    machine.start(SPT_FLOW_REPO=publish(served, "other", ALL), SPT_FLOW_REPO_ID="example.com/o/other")
    assert "did not run" in machine.wait("devcontainer")["detail"]
    assert (machine.paths.home / "ran").read_text() == "x\n"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({**ALL, "customizations": {"vscode": {"extensions": ["a.broken"]}}}, "Not installed: a.broken; see "),
        ('{"forwardPorts": ', "is not valid JSON in line 1 and was not read."),
    ],
)
def test_failure_is_reported_and_the_start_continues(machine, served, tmp_path, file, said):
    step = start(machine, served, publish(served, tmp_path.name, file))
    assert step["state"] == "failed" and said in step["detail"]
    assert machine.step("ide")["state"] == "ok" and machine.process.poll() is None


def test_failed_command_is_reported_and_retried(machine, served):
    start(machine, served, publish(served, "fails", {"postCreateCommand": ["sh", "-c", "test -e ~/fixed || exit 7"]}))
    done = machine.command("trust")
    assert done.returncode == 1 and "ended with status 7; see " in done.stderr
    (machine.paths.home / "fixed").touch()
    machine.end()
    assert "its postCreateCommand ran; " in start(machine, served, f"{served[1]}/fails.git")["detail"]


def test_repository_without_the_file_is_unchanged(machine, served):
    assert start(machine, served, publish(served, "none", "x", "README"))["detail"] == "the repository has none"


def test_wait_ends_with_clone_and_ide(machine, served):
    start(machine, served, publish(served, "waited", {}))
    done = machine.command("wait")
    assert done.returncode == 0
    assert [line.partition(",")[0] for line in done.stdout.splitlines()] == ["clone: ok", "ide: ok"]
