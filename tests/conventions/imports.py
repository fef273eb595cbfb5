# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve the imports of the collection's Python files to files; shared by the tests of this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COLLECTION = "ansible_collections.spt.flow."


@dataclass(frozen=True)
class Import:
    """One imported module or name.

    ``target`` is the file of the collection that is imported, relative to its root; ``None`` for other packages.
    ``module`` is the dotted name of an import from elsewhere. ``top`` is false inside functions.
    """

    line: int
    target: Path | None
    module: str
    top: bool

    @property
    def package(self) -> str:
        """Return the top-level package of an external import."""
        return self.module.partition(".")[0]


def statements(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield each import statement except those for type checkers, and whether it runs when the file is loaded."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, top
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def _file(root: Path, parts: list[str]) -> Path | None:
    """Return the file of a dotted module, relative to ``root``."""
    name = Path(*parts).with_suffix(".py") if parts else None
    return name if name and (root / name).is_file() else None


def imports(path: Path, root: Path) -> list[Import]:
    """Return the imports of ``path``; ``root`` is the collection's folder.

    ``from . import x`` and ``from ..package import x`` are resolved to the file of ``x`` where it is a module.
    """
    return _imports(path, root, path.stat().st_size)


@cache
def _imports(path: Path, root: Path, size: int) -> list[Import]:
    """Import cache; ``size`` invalidates the entry of a changed file."""
    found = []
    for node, top in statements(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                own = alias.name.startswith(COLLECTION)
                target = _file(root, alias.name.removeprefix(COLLECTION).split(".")) if own else None
                found.append(Import(node.lineno, target, "" if own else alias.name, top))
            continue
        if node.level:
            parts = list(path.parent.relative_to(root).parts)
            parts = parts[: len(parts) - node.level + 1] + (node.module or "").split(".")
        elif f"{node.module}.".startswith(COLLECTION):
            parts = f"{node.module}.".removeprefix(COLLECTION).split(".")
        else:
            found.append(Import(node.lineno, None, str(node.module), top))
            continue
        parts = [part for part in parts if part]
        for alias in node.names:
            target = _file(root, [*parts, alias.name]) or _file(root, parts)
            found.append(Import(node.lineno, target, "", top))
    return found


def graph(root: Path, folder: str = "plugins") -> dict[Path, set[Path]]:
    """Return the files below ``folder``, each with the files of the collection that it imports anywhere."""
    return {
        path.relative_to(root): {one.target for one in imports(path, root) if one.target}
        for path in sorted((root / folder).rglob("*.py"))
    }


def closure(root: Path, start: Path) -> set[Path]:
    """Return ``start`` and every file of the collection that it imports, directly or indirectly."""
    todo, seen = [start], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [one.target for one in imports(root / path, root) if one.target]
    return seen


def circles(edges: dict[Path, set[Path]]) -> list[list[Path]]:
    """Return groups of files that import each other, by Tarjan's algorithm."""
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[list[Path]] = []

    def visit(node: Path) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, set()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in edges.get(node, set()):
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found
