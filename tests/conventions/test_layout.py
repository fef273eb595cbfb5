# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Python code lives and what it may import. Each rule is a function that returns its violations.

One test applies every rule to the checkout; another breaks each rule in a copy and expects the violation to be found.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.targets import TARGETS
from ansible_collections.spt.flow.tests.conventions import imports

CHECKOUT = Path(__file__).resolve().parents[2]
NODE = Path("plugins/module_utils/_node")
ENGINE = Path("plugins/plugin_utils/_engine")
ANSIBLE = Path("plugins/plugin_utils/_ansible")
FLOORS = (
    ("_node",),
    ("common",),
    ("repository", "image"),
    ("settings",),
    ("identity",),
    ("workspace",),
    ("docker",),
    ("coder", "ci"),
    ("controller",),
    ("_ansible",),
)
"""Packages from the bottom up; each imports only from its own level or lower ones."""
CLIENTS = {
    "docker": (ENGINE / "image",),
    "http.client": (
        ENGINE / "image/download.py",
        NODE / "docker/http.py",
        NODE / "proxy/server.py",
        NODE / "reaper/coder.py",
    ),
    "urllib.request": (ENGINE / "image/download.py", NODE / "reaper/coder.py"),
    "urllib3": (ENGINE / "coder",),
    "requests": (),
    "defusedxml": (ENGINE / "ci/artifacts.py",),
    "xml": (ENGINE / "ci/artifacts.py", NODE / "acceptance/report.py"),
    "yaml": (ENGINE, Path("plugins/action/doctor.py")),
}
"""Modules that reach servers or parse untrusted text, and the files that may import them."""
STANDARD = sys.stdlib_module_names
LONGEST_FILE, LONGEST_FUNCTION = 400, 50

Rule = Callable[[Path], list[str]]


def files(root: Path, folder: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in (root / folder).rglob("*.py"))


def floor(path: Path) -> int | None:
    """Return the level of a file's package; ``None`` for plugins, which may use every level."""
    for number, packages in enumerate(FLOORS):
        if set(packages) & set(path.parts[2:4]):
            return number
    return None


def node_library_needs_only_the_standard_library(root: Path) -> list[str]:
    return [
        f"{path}:{one.line} imports {one.target or one.package}"
        for path in files(root, NODE)
        for one in imports.imports(root / path, root)
        if (one.target and NODE not in one.target.parents) or (one.package and one.package not in STANDARD)
    ]


def modules_need_only_the_node_library(root: Path) -> list[str]:
    """A module and all its imports run on nodes, which have neither the SDK nor the engine."""
    wrong = []
    for module in files(root, Path("plugins/modules")):
        for path in imports.closure(root, module):
            if path != module and NODE not in path.parents:
                wrong.append(f"{module} reaches {path}")
            wrong += [
                f"{module} needs {one.package} ({path}:{one.line})"
                for one in imports.imports(root / path, root)
                if one.package and one.package not in STANDARD | {"ansible"}
            ]
    return wrong


def only_plugins_and_their_base_import_ansible(root: Path) -> list[str]:
    return [
        f"{path}:{one.line} imports {one.target or one.package}"
        for folder in (NODE, ENGINE)
        for path in files(root, folder)
        for one in imports.imports(root / path, root)
        if one.package == "ansible" or (one.target and ANSIBLE in one.target.parents)
    ]


def imports_go_down(root: Path) -> list[str]:
    wrong = []
    for path, targets in imports.graph(root).items():
        here = floor(path)
        for target in targets:
            there = floor(target)
            if here is not None and (there is None or there > here):
                wrong.append(f"{path} imports {target}, which lies above it")
    return wrong


def no_circular_imports(root: Path) -> list[str]:
    return [" and ".join(map(str, group)) for group in imports.circles(imports.graph(root))]


def third_party_packages_are_imported_late(root: Path) -> list[str]:
    """At the top of a file they would slow down every run and have to be installed by every user."""
    return [
        f"{path}:{one.line} imports {one.package}"
        for folder, allowed in ((ENGINE, set()), (ANSIBLE, {"ansible"}))
        for path in files(root, folder)
        for one in imports.imports(root / path, root)
        if one.top and one.package and one.package not in STANDARD | allowed
    ]


def one_client_reaches_each_server(root: Path) -> list[str]:
    wrong = []
    for path in files(root, Path("plugins")):
        for one in imports.imports(root / path, root):
            allowed = CLIENTS.get(one.module, CLIENTS.get(one.package))
            if allowed is None:
                if one.package and one.package not in STANDARD | {"ansible"}:
                    wrong.append(f"{path}:{one.line} imports {one.module}, which no rule names")
            elif not any(place == path or place in path.parents for place in allowed):
                wrong.append(f"{path}:{one.line} imports {one.module}")
    return wrong


def targets_are_not_told_apart_by_name(root: Path) -> list[str]:
    """Outside a target's package, code asks for a capability; a comparison would have to change for each new target."""
    own = [ENGINE / module.partition(".")[0] for module in TARGETS.values()]
    return [
        f"{path}:{node.lineno} compares the name of a target"
        for path in files(root, Path("plugins"))
        if not any(package in path.parents for package in own)
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
        if any(part.value in TARGETS for place in compared(node) for part in constants(place))
    ]


def compared(node: ast.AST) -> list[ast.AST]:
    """What a node compares: both sides of an operator, the value of a case, the words of ``startswith``."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.MatchValue):
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
        return list(node.args)
    return []


def constants(node: ast.AST) -> list[ast.Constant]:
    """The strings of an operand: itself, or the members of a tuple, list, set or dictionary."""
    if isinstance(node, ast.Constant):
        return [node] if isinstance(node.value, str) else []
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return [one for part in node.elts for one in constants(part)]
    if isinstance(node, ast.Dict):
        return [one for part in node.keys if part is not None for one in constants(part)]
    return []


def node_library_runs_programs_in_one_way(root: Path) -> list[str]:
    """``process`` sets input, language and decoding; ``docker/http`` talks to a program that keeps running."""
    allowed = (NODE / "process.py", NODE / "docker/http.py")
    return [
        f"{path}:{node.lineno} calls {ast.unparse(node.func)}"
        for path in files(root, NODE)
        if path not in allowed
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.match(r"subprocess\.|os\.(system|popen|spawn)", ast.unparse(node.func))
    ]


def files_and_functions_are_short(root: Path) -> list[str]:
    wrong = []
    for path in files(root, Path("plugins")):
        text = (root / path).read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST_FILE:
            wrong.append(f"{path} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    wrong.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    return wrong


BREAKS: dict[Rule, tuple[str, str]] = {
    node_library_needs_only_the_standard_library: (
        "plugins/module_utils/_node/errors.py",
        "def f():\n    from ...plugin_utils._engine.common import wait\n    return wait\n",
    ),
    modules_need_only_the_node_library: (
        "plugins/module_utils/_node/kvm/probe.py",
        "def f():\n    import docker\n    return docker\n",
    ),
    only_plugins_and_their_base_import_ansible: (
        "plugins/plugin_utils/_engine/common/wait.py",
        "from ..._ansible import values\n",
    ),
    imports_go_down: (
        "plugins/plugin_utils/_engine/repository/names.py",
        "def f():\n    from ..workspace import lifecycle\n    return lifecycle\n",
    ),
    no_circular_imports: (
        "plugins/plugin_utils/_engine/settings/options.py",
        "def f():\n    from . import resolve\n    return resolve\n",
    ),
    third_party_packages_are_imported_late: ("plugins/plugin_utils/_engine/image/build.py", "import docker\n"),
    one_client_reaches_each_server: (
        "plugins/plugin_utils/_engine/docker/target.py",
        "def f():\n    import requests\n    return requests\n",
    ),
    targets_are_not_told_apart_by_name: (
        "plugins/plugin_utils/_engine/workspace/report.py",
        "def f(workspace):\n    return workspace.target == 'coder'\n",
    ),
    node_library_runs_programs_in_one_way: (
        "plugins/module_utils/_node/machine/facts.py",
        "import subprocess\n\nsubprocess.run(['true'])\n",
    ),
    files_and_functions_are_short: (
        "plugins/plugin_utils/_engine/common/text.py",
        "def f():\n" + "    print()\n" * LONGEST_FUNCTION,
    ),
}


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_checkout_follows_the_rule(rule: Rule) -> None:
    assert rule(CHECKOUT) == []


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(CHECKOUT / "plugins", root / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_rule_finds_violations(rule: Rule, copied: Path) -> None:
    name, addition = BREAKS[rule]
    path = copied / name
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept + addition, encoding="utf-8")
    try:
        assert any(name in line for line in rule(copied))
    finally:
        path.write_text(kept, encoding="utf-8")


@pytest.mark.parametrize(
    "code",
    [
        "x = 'docker' != target.name",
        "x = target.name in ('coder', 'other')",
        "x = target.name not in {'docker'}",
        "x = target.name in {'docker': 1}",
        "x = target.name.startswith('coder')",
        "match target.name:\n    case 'docker':\n        pass",
    ],
)
def test_comparison_of_a_target_is_found_in_each_form(code: str, copied: Path) -> None:
    path = copied / "plugins/plugin_utils/_engine/workspace/compares.py"
    path.write_text(code + "\n", encoding="utf-8")
    try:
        assert [line for line in targets_are_not_told_apart_by_name(copied) if path.name in line]
    finally:
        path.unlink()


def test_module_utils_and_plugin_utils_contain_only_the_two_trees() -> None:
    kept = {
        path.parts[2]
        for folder in ("module_utils", "plugin_utils")
        for path in files(CHECKOUT, Path("plugins") / folder)
    }
    assert kept == {"_node", "_engine", "_ansible"}
