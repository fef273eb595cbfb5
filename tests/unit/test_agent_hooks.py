# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's git hooks: installed at every start, run before the clone's own, and verified by a refused commit."""

from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.tests.unit import test_agent_verify as verifying
from spt_workspace import hooks

machine = verifying.machine
REFUSES = "#!/bin/sh\necho not this one >&2\nexit 3\n"


def lists(**scripts: str) -> str:
    return json.dumps({name.replace("_", "-"): text for name, text in scripts.items()})


def started(machine, text: str) -> None:
    machine.start(SPT_FLOW_GIT_HOOKS=text, SPT_FLOW_DIRECTORY=str(machine.paths.home))
    machine.wait("ide", "ok")


def user_git(machine, *words, check=True, **env):
    """Run git as the workspace's user, with the workspace agent's settings."""
    author = ("-c", "user.name=U", "-c", "user.email=u@example.org")
    environ = {"PATH": machine.environ["PATH"], "HOME": str(machine.paths.home), **env}
    environ["GIT_CONFIG_SYSTEM"] = machine.environ["GIT_CONFIG_SYSTEM"]
    done = subprocess.run(["git", *author, *words], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.fixture
def repository(machine):
    place = machine.paths.home / "r"
    subprocess.run(["/usr/bin/git", "init", "-q", "-b", "main", str(place)], check=True)
    return place


def commit(machine, repository, check=True, **env):
    return user_git(machine, "-C", str(repository), "commit", "-q", "--allow-empty", "-m", "x", check=check, **env)


def own_hook(repository, name: str, text: str) -> None:
    place = repository / ".git/hooks" / name
    place.write_text(text)
    place.chmod(0o755)


def test_operator_hook_refuses_a_commit(machine, repository):
    started(machine, lists(pre_commit=REFUSES))
    done = commit(machine, repository, check=False)
    assert done.returncode != 0 and "not this one" in done.stderr


def test_clone_hook_runs_after_the_operator_hook(machine, repository):
    ran = machine.root / "ran"
    own_hook(repository, "pre-commit", f"#!/bin/sh\necho own >>{ran}\n")
    started(machine, lists(pre_commit=f"#!/bin/sh\necho operator >>{ran}\n"))
    commit(machine, repository)
    assert ran.read_text() == "operator\nown\n"
    own_hook(repository, "pre-commit", "#!/bin/sh\nexit 1\n")
    assert commit(machine, repository, check=False).returncode != 0


def test_both_hooks_read_what_git_pushes(machine, repository):
    ran = machine.root / "ran"
    subprocess.run(["/usr/bin/git", "init", "-q", "--bare", str(machine.root / "there")], check=True)
    own_hook(repository, "pre-push", f"#!/bin/sh\nsed 's/^/own /' >>{ran}\n")
    started(machine, lists(pre_push=f"#!/bin/sh\nsed 's/^/operator /' >>{ran}\n"))
    commit(machine, repository)
    user_git(machine, "-C", str(repository), "push", "-q", str(machine.root / "there"), "main")
    first, second = ran.read_text().splitlines()
    assert first.startswith("operator refs/heads/main ")
    assert second == first.replace("operator", "own")


def test_removed_hook_is_deleted_at_the_next_start(machine, repository):
    started(machine, lists(pre_commit=REFUSES, commit_msg=REFUSES))
    machine.end()
    started(machine, lists(commit_msg="#!/bin/sh\n"))
    commit(machine, repository)
    machine.end()
    started(machine, "")
    assert not hooks.folder(machine.paths).exists()
    assert user_git(machine, "config", "core.hooksPath", check=False).stdout == ""


def test_invalid_list_is_a_note_and_the_start_continues(machine):
    started(machine, "nonsense")
    assert any("SPT_FLOW_GIT_HOOKS" in note for note in machine.status()["notes"])


def test_verify_proves_hooks_by_a_refused_commit(machine):
    verifying.holds(machine)
    started(machine, lists(pre_commit="#!/bin/sh\nexit 0\n", pre_push=REFUSES))
    status, rows, _found = verifying.verify(machine, "hooks", "repository-hooks")
    assert status == 0, rows
    assert rows["hooks"]["detail"] == "pre-commit, pre-push installed; a test commit was refused"
    assert rows["repository-hooks"]["state"] == "passed"


def test_verify_finds_a_changed_or_bypassed_hook(machine):
    verifying.holds(machine)
    started(machine, lists(pre_commit=REFUSES))
    (machine.paths.home / ".gitconfig").write_text("[core]\n\thooksPath = /elsewhere\n")
    assert "core.hooksPath is set to something else" in verifying.verify(machine, "hooks")[1]["hooks"]["detail"]
    (machine.paths.home / ".gitconfig").unlink()
    (hooks.folder(machine.paths) / "operator/pre-commit").write_text("#!/bin/sh\n")
    status, rows, _found = verifying.verify(machine, "hooks")
    assert status == 1 and "pre-commit is missing or was changed" in rows["hooks"]["detail"]


def test_hook_names_match_the_settings():
    assert hooks.NAMES == settings_options.GIT_HOOKS


def resolved(value):
    return settings_resolve.resolve([{"git_hooks": value}])["git_hooks"]


def test_mapping_and_its_json_are_equal():
    scripts = {"pre-push": "#!/bin/sh\n", "commit-msg": "#!/bin/sh\ntrue\n"}
    assert resolved(scripts) == resolved(json.dumps(scripts)) == json.dumps(scripts, sort_keys=True)
    assert resolved({}) == resolved("") == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pre-commit", "not a mapping"),
        (["pre-commit"], "single value"),
        ({"pre-commit": 1}, "not a mapping"),
        ({"precommit": "#!/bin/sh"}, "'precommit'"),
        ({"../x": "#!/bin/sh"}, "not a hook of git clients"),
        ({"pre-commit": "make check"}, "does not begin with #!"),
        ({"pre-commit": "#!/bin/sh\n" + "#" * 70000}, "at most 65536"),
    ],
)
def test_invalid_hook_is_refused_with_a_message(value, said):
    with pytest.raises(errors.InvalidInput, match=said):
        resolved(value)
