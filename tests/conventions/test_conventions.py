# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of docs/architecture.md and CONTRIBUTING.md, each as a test over the files of the checkout."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = sorted((CHECKOUT / "plugins/modules").glob("[!_]*.py"))
PLAYBOOKS = sorted((CHECKOUT / "playbooks").glob("*.yml"))
ROLES = sorted(path for path in (CHECKOUT / "roles").glob("*") if path.is_dir())
ACTIONS = {path.stem for path in (CHECKOUT / "plugins/action").glob("[!_]*.py")}
ON_NODES = {path.stem for path in MODULES} - (ACTIONS - {"host_files"})
"""Modules that run on nodes. All others document the action plugin of their name."""
CLIENTS = {"docker", "coder"}
"""Commands that roles must not run, because the engine plans and tests what they do."""
CLIENT_CALLS = {("roles/host_docker/tasks/network.yml", "docker network create")}
"""Exceptions: this bridge of Coder's template must exist before any client that could create it."""
NO_COMMENTS = {".json", ".log", ".md5", ".png", ".svg", ".patch", ".pub"}
NO_HEADER = {"LICENSE", "GPL-3.0-or-later.txt", "motd", "CHANGELOG.md", ".gitignore", "changelog.yaml"}
NO_HEADER |= {"ignore-2.19.txt", "ignore-2.20.txt", "ignore-2.21.txt", "ignore-2.22.txt"}
SHOWN_TO_USERS = {"templates/coder/spt-flow/README.md"}
"""Pages that Coder's dashboard shows as they are; REUSE.toml has their licence."""
LICENCE = b"SPDX-%s-Identifier: GPL-3.0-or-later" % b"License"


def tracked() -> list[Path]:
    """Return every file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [CHECKOUT / name for name in names if name and (CHECKOUT / name).is_file()]


def relative(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def identity(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def assigned(path: Path) -> dict[str, Any]:
    """Return the literal values assigned at the top level and in the classes of a Python file, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for body in [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
    return found


def documentation(module: Path) -> dict[str, Any]:
    """Return a module's DOCUMENTATION merged with its fragments, as ansible-doc shows it."""
    own = yaml.safe_load(assigned(module)["DOCUMENTATION"])
    merged: dict[str, Any] = {"options": {}, "attributes": {}}
    for name in own.get("extends_documentation_fragment", []):
        namespace, collection, fragment, *part = name.split(".")
        if (namespace, collection) != ("spt", "flow"):
            continue
        shared = importlib.import_module(
            f"ansible_collections.spt.flow.plugins.doc_fragments.{fragment}"
        ).ModuleDocFragment
        document = yaml.safe_load(getattr(shared, part[0].upper() if part else "DOCUMENTATION"))
        for key in merged:
            merged[key].update(document.get(key) or {})
    for key in merged:
        merged[key].update(own.get(key) or {})
    return {**own, **merged}


# Values


def documented_options() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return each option's documentation as (module, text) for every module that takes user values."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for module in (path for path in MODULES if path.stem not in ON_NODES):
        for name, text in documentation(module)["options"].items():
            found.setdefault(name, []).append((module.stem, text))
    return found


@pytest.mark.parametrize("name", settings_options.OPTIONS)
def test_every_option_is_documented_with_its_default_and_choices(name: str) -> None:
    option = settings_options.OPTIONS[name]
    texts = documented_options().get(name, [])
    assert texts, f"option {name} is in no module's documentation"
    for module, text in texts:
        assert set(text.get("choices", ())) == set(option.choices), f"{module}: choices of {name}"
        assert text["type"] == option.ansible_type, f"{module}: type of {name}"
        if "default" in text:
            assert text["default"] == option.default, f"{module}: default of {name}"


def test_every_documented_workspace_option_exists() -> None:
    own = {"create", "state"}
    documented = set(documentation(CHECKOUT / "plugins/modules/workspace.py")["options"]) - own
    assert documented <= set(settings_options.OPTIONS)


def test_every_option_is_in_the_reference() -> None:
    text = (CHECKOUT / "docs/reference/settings.md").read_text(encoding="utf-8")
    assert [name for name in settings_options.OPTIONS if f"| `{name}` |" not in text] == []


# Plugins and playbooks


@pytest.mark.parametrize("module", MODULES, ids=identity)
def test_module_is_documented(module: Path) -> None:
    texts, document = assigned(module), documentation(module)
    examples = yaml.safe_load(texts["EXAMPLES"])
    assert document["module"] == module.stem
    assert any(f"spt.flow.{module.stem}" in task for task in examples), "no example calls the module by its full name"
    assert yaml.safe_load(texts["RETURN"])
    assert {"check_mode", "diff_mode", "idempotent", "action_group"} <= set(document["attributes"])
    assert document["requirements"][0].startswith("python >= 3.")
    assert all(text.get("description") for text in document["options"].values())


@pytest.mark.parametrize("module", MODULES, ids=identity)
def test_module_is_in_the_action_group(module: Path) -> None:
    assert module.stem in load(CHECKOUT / "meta/runtime.yml")["action_groups"]["flow"]


def test_action_group_names_only_existing_modules() -> None:
    assert set(load(CHECKOUT / "meta/runtime.yml")["action_groups"]["flow"]) == {module.stem for module in MODULES}


def test_every_action_has_a_module_of_the_same_name() -> None:
    actions = {path.stem for path in (CHECKOUT / "plugins/action").glob("[!_]*.py")}
    assert actions <= {module.stem for module in MODULES}


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=identity)
def test_playbook_describes_itself_and_contains_no_logic(playbook: Path) -> None:
    lines = playbook.read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith("# "), "line 3 says what the playbook does"
    assert any(line.startswith("# Values: ") for line in lines[: lines.index("---")])
    reference = (CHECKOUT / "docs/reference/playbooks.md").read_text(encoding="utf-8")
    assert f"`spt.flow.{playbook.stem}`" in reference
    for play in load(playbook):
        assert "roles" in play or "ansible.builtin.import_playbook" in play or len(play["tasks"]) <= 3
        assert "vars" not in play


def test_root_playbooks_only_import() -> None:
    for shim in CHECKOUT.glob("*.yml"):
        content = load(shim)
        if isinstance(content, list):
            assert all("ansible.builtin.import_playbook" in play for play in content), shim.name


# Roles


@pytest.mark.parametrize("role", ROLES, ids=identity)
def test_role_defaults_match_argument_specification_and_readme(role: Path) -> None:
    specification = load(role / "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    defaults = load(role / "defaults/main.yml") or {}
    readme = (role / "README.md").read_text(encoding="utf-8")
    optional = {name for name, option in specification.items() if not option.get("required")}
    assert set(defaults) == optional
    for name, value in defaults.items():
        assert name.startswith((f"{role.name}_", "flow_")), f"{name} lacks the role's prefix"
        if not (isinstance(value, str) and "{{" in value):
            assert specification[name].get("default", "") == (value if value is not None else ""), name
    assert [name for name in specification if f"| `{name}` |" not in readme] == []


def tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Return every task of a task file, a play or a block, at any depth."""
    for entry in content if isinstance(content, list) else []:
        if isinstance(entry, dict):
            yield entry
            for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
                yield from tasks(entry.get(key))


def bad_asserts(root: Path) -> list[str]:
    """Assertions of roles that check several facts at once or have no message of their own."""
    found = []
    for path in sorted(root.glob("roles/*/tasks/*.yml")):
        for task in tasks(load(path)):
            words = task.get("ansible.builtin.assert")
            if words and not (isinstance(words["that"], str) and words.get("fail_msg")):
                found.append(f"{path.relative_to(root)}: {task.get('name')}")
    return found


def test_roles_assert_one_fact_with_its_own_message() -> None:
    assert bad_asserts(CHECKOUT) == []


@pytest.mark.parametrize("words", ["{that: [a == 1, b == 2], fail_msg: x}", "{that: a == 1}"])
def test_assert_of_several_facts_or_without_a_message_is_found(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "roles/host_kvm/tasks"
    folder.mkdir(parents=True)
    (folder / "main.yml").write_text(f"- name: Break the rule\n  ansible.builtin.assert: {words}\n")
    assert len(bad_asserts(tmp_path)) == 1


@pytest.mark.parametrize("role", ROLES, ids=identity)
def test_role_files_fit_on_a_screen(role: Path) -> None:
    files = [path for folder in ("tasks", "handlers", "vars", "defaults") for path in (role / folder).rglob("*.yml")]
    assert [relative(path) for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 90] == []


def test_declared_dependencies_are_the_collections_that_roles_use() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "roles").rglob("*.yml"))
    used = set(re.findall(r"^\s*(?:- )?((?!ansible\.builtin|spt\.flow)[a-z]+\.[a-z]+)\.[a-z_]+:$", text, re.MULTILINE))
    assert used == set(load(CHECKOUT / "galaxy.yml")["dependencies"])


def commands(path: Path) -> Iterator[str]:
    """Return the command lines that a task file runs."""
    for task in tasks(load(path)):
        for name, words in task.items():
            if name.rpartition(".")[2] in {"command", "shell", "raw", "script"}:
                line = words.get("argv") or words.get("cmd") or "" if isinstance(words, dict) else words
                yield " ".join(map(str, line)) if isinstance(line, list) else str(line)


def client_calls(root: Path) -> list[str]:
    """Return the Docker and Coder commands of roles, except for the known exceptions."""
    found = []
    for path in sorted(root.glob("roles/*/tasks/*.yml")):
        for command in commands(path):
            words = [word.rpartition("/")[2] for word in command.removeprefix("sudo ").split()]
            allowed = (str(path.relative_to(root)), " ".join(words[:3])) in CLIENT_CALLS
            if words and words[0] in CLIENTS and not allowed:
                found.append(f"{path.relative_to(root)}: {command[:60]}")
    return found


def network_requests(root: Path) -> list[str]:
    """Return the tasks of roles that call an HTTP API other than the engine's socket."""
    return [
        f"{path.relative_to(root)}: {task.get('name')}"
        for path in sorted(root.glob("roles/*/tasks/*.yml"))
        for task in tasks(load(path))
        for name, words in task.items()
        if name.rpartition(".")[2] == "uri" and "unix_socket" not in (words or {})
    ]


def test_roles_run_no_client_and_call_no_http_api() -> None:
    assert client_calls(CHECKOUT) == []
    assert network_requests(CHECKOUT) == []


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        ("ansible.builtin.command: {argv: [docker, ps]}", client_calls),
        ("ansible.builtin.command:\n    argv:\n      - docker\n      - ps", client_calls),
        ("ansible.builtin.shell: sudo docker ps", client_calls),
        ("ansible.builtin.command: /usr/bin/coder users list", client_calls),
        ("ansible.builtin.uri: {url: 'http://localhost/'}", network_requests),
    ],
)
def test_role_rules_find_violations(task: str, rule: Any, tmp_path: Path) -> None:
    folder = tmp_path / "roles/host_kvm/tasks"
    folder.mkdir(parents=True)
    (folder / "main.yml").write_text(f"- name: Break the rule\n  {task}\n")
    assert len(rule(tmp_path)) == 1


# Commands


def test_no_shell_is_run_with_values() -> None:
    for path in tracked():
        if path.suffix == ".py" and "plugins" in path.parts:
            assert not re.search(r"shell\s*=\s*True|os\.system|os\.popen", path.read_text(encoding="utf-8")), relative(
                path
            )


# Files


def test_every_file_names_its_licence() -> None:
    missing = []
    for path in tracked():
        if path.suffix in NO_COMMENTS or path.name in NO_HEADER or path.stat().st_size == 0:
            continue
        if relative(path) in SHOWN_TO_USERS:
            continue
        head = path.read_bytes()[:600]
        if b"\0" not in head and LICENCE not in head:
            missing.append(relative(path))
    assert missing == []


def test_only_files_with_an_interpreter_line_are_executable() -> None:
    wrong = []
    for path in tracked():
        if "modules" in path.parts:  # Ansible's modules have an interpreter line and are never executable
            continue
        script = path.read_bytes()[:2] == b"#!"
        if script != os.access(path, os.X_OK) or (os.geteuid() == 0 and script != bool(path.stat().st_mode & 0o111)):
            wrong.append(relative(path))
    assert wrong == []


def test_no_file_is_a_symbolic_link() -> None:
    assert [relative(path) for path in tracked() if path.is_symlink()] == []


@pytest.mark.parametrize("path", sorted((CHECKOUT / "image").glob("**/Dockerfile*")), ids=relative)
def test_dockerfile_works_with_the_classic_builder(path: Path) -> None:
    """Decision B9."""
    text = re.sub(r"^#(?! *syntax=).*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not re.search(r"--mount|<<-?\w|--chmod|--link|^# *syntax=", text, re.MULTILINE)
    assert not re.search(r"(curl|wget)[^\n]*\|\s*(ba)?sh", text)


@pytest.mark.parametrize("path", sorted((CHECKOUT / "requirements").iterdir()), ids=identity)
def test_python_packages_are_pinned_with_hashes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    pin = r"[\w.-]+==[\w.]+( ; python_full_version [><=]+ '3\.1\d(\.\*)?')?( and [^\\]*)?"
    package = rf"{pin}( \\\n    --hash=sha256:[0-9a-f]{{64}})+\n"
    assert re.fullmatch(rf"(#.*\n)*({package})+", text)


def test_image_versions_are_pinned() -> None:
    text = (CHECKOUT / "image/versions.yml").read_text(encoding="utf-8")
    assert not re.search(r":\s*[\"']?(latest|stable|main|master|nightly)\b", text)


def workflow_actions() -> Iterator[tuple[str, str]]:
    """Return (file, value) of every ``uses:`` in workflows and in the examples of documents."""
    for path in tracked():
        if path.suffix in {".md", ".yml", ".yaml"}:
            for value in re.findall(r"^\s*-? ?uses: *(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
                yield relative(path), value


def test_workflow_actions_are_pinned_by_commit() -> None:
    found = list(workflow_actions())
    assert len(found) >= 5
    pinned = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [pair for pair in found if not (pinned.fullmatch(pair[1]) or pair[1].startswith("./"))] == []


def test_each_action_has_one_version_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for _, value in workflow_actions():
        versions.setdefault(value.partition("@")[0], set()).add(value)
    assert [values for values in versions.values() if len(values) > 1] == []


def test_help_lists_every_target() -> None:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    listed = set(
        re.findall(r"^  make (\S+)", subprocess.check_output(["make", "help"], cwd=CHECKOUT, text=True), re.MULTILINE)
    )
    wanted = {
        "quickstart",
        "test",
        "test-full",
        "lint",
        "unit",
        "sanity",
        "bench",
        "docs",
        "image",
        "build",
        "clean",
        "help",
    }
    assert wanted <= listed == targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony and set(phony[1].split()) == targets
    rules = re.findall(r"^[a-z-]+:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    assert max(rule.count("\n") for rule in rules) <= 2


def test_workflows_call_only_existing_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for workflow in (CHECKOUT / ".github/workflows").glob("*.yml"):
        called = set(re.findall(r"\bmake ([a-z-]+)", workflow.read_text(encoding="utf-8")))
        assert called and called <= targets, workflow.name


def test_ci_runs_make_test() -> None:
    assert re.search(r"^exec make test\b", (CHECKOUT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)


def promise_rows(page: str) -> list[str]:
    """Return the rows of a page's table of promises and tests."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    table = text.partition("\n| Promise | Test |\n| --- | --- |\n")[2].partition("\n\n")[0]
    return table.strip().splitlines()


def broken_promises(rows: list[str]) -> list[str]:
    """Return rows without a test, and tests that do not exist."""
    broken = []
    for row in rows:
        named = re.findall(
            r"`(tests/[^`:]+|extensions/molecule/[^`:]+)(?:::(\w+))?`", row.rstrip(" |").rpartition(" | ")[2]
        )
        broken += [] if named else [f"no test: {row}"]
        for name, test in named:
            text = (CHECKOUT / name).read_text(encoding="utf-8") if (CHECKOUT / name).exists() else ""
            if not text or (test and not re.search(rf"^(async )?def {test}\(", text, re.MULTILINE)):
                broken.append(f"no {name}::{test}")
    return broken


@pytest.mark.parametrize(("page", "least"), [("docs/promises.md", 100), ("docs/security.md", 25)])
def test_every_promise_names_an_existing_test(page: str, least: int) -> None:
    rows = promise_rows(page)
    assert len(rows) >= least
    assert broken_promises(rows) == []


@pytest.mark.parametrize(
    "row",
    [
        "| A promise |  |",
        "| A promise | trust us |",
        "| A promise | `tests/unit/test_nowhere.py::test_it` |",
        "| A promise | `tests/unit/test_venv.py::test_that_nobody_wrote` |",
    ],
)
def test_promise_without_a_test_is_found(row: str) -> None:
    assert len(broken_promises([row])) == 1


def test_plugins_do_not_assert() -> None:
    """ansible-test forbids the statement, because Python's -O removes it."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (CHECKOUT / "plugins").rglob("*.py")}
    found = [relative(path) for path, tree in trees.items() if any(isinstance(n, ast.Assert) for n in ast.walk(tree))]
    assert found == []


def refused_ignores(text: str) -> list[str]:
    """Return entries of an ignore file that have no reason or that the inclusion checklist does not allow."""
    entry = re.compile(r"(?P<path>\S+) (?P<test>\S+)  # \S.*")
    found = [(line, entry.fullmatch(line)) for line in text.splitlines()]
    allowed = [line for line, match in found if match and permitted(match["path"], match["test"])]
    return [line for line, _ in found if line not in allowed]


def permitted(path: str, test: str) -> bool:
    folder = path.partition("/")[0]
    return (CHECKOUT / path).exists() and folder != "plugins" and (folder != "roles" or test == "shebang")


def test_sanity_ignores_only_what_the_inclusion_checklist_allows() -> None:
    files = sorted((CHECKOUT / "tests/sanity").glob("ignore-*.txt"))
    cores = {path.stem.removeprefix("core-") for path in (CHECKOUT / "requirements").glob("core-*.txt")}
    assert {path.stem.removeprefix("ignore-") for path in files} == cores
    assert len({path.read_text(encoding="utf-8") for path in files}) == 1
    assert refused_ignores(files[0].read_text(encoding="utf-8")) == []


def unlisted_programs(ignores: str) -> list[str]:
    """Return Python programs of the tarball that ansible-test would take for modules with a wrong first line."""
    roots = [CHECKOUT / name for name in ("extensions", "image", "roles")]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    python = [path for path in files if re.match(rb"#!/usr/bin/(env )?python3\b", path.read_bytes()[:30])]
    return sorted(relative(path) for path in python if f"{relative(path)} shebang  # " not in ignores)


def test_sanity_knows_every_program() -> None:
    ignores = (CHECKOUT / "tests/sanity/ignore-2.21.txt").read_text(encoding="utf-8")
    assert unlisted_programs(ignores) == []
    name = "roles/host_docker/files/spt-flow-disk"
    assert unlisted_programs(ignores.replace(name, "x")) == [name]


@pytest.mark.parametrize(
    "line",
    [
        "plugins/modules/reap.py validate-modules:missing-return  # later",
        "roles/host_docker/files/spt-flow-disk pep8:E501  # long",
        "roles/host_docker/files/spt-flow-disk shebang",
        "roles/nowhere/files/program shebang  # gone",
    ],
)
def test_ignore_that_the_checklist_forbids_is_found(line: str) -> None:
    assert refused_ignores(line) == [line]
