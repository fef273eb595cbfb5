# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words and names that plain English replaces, and the text of a file in which they are searched."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

DIALECT = re.compile(
    r"\b("
    r"anew|in vain|whoever|whomever|as wished|wished for|of whom|thereby|once more|somebody|beside|way back"
    r"|(?<!-u )nobody"
    r"|is no (?:size|dump|duration|port|mapping|address|option)|ended well|start contract"
    r")\b",
    re.IGNORECASE,
)
"""Words of the style that plain English replaces; see CONTRIBUTING.md. ``sudo -u nobody`` names a user."""

NAME = re.compile(r"_*(bring|doomed|gone|judged?|attend|outlast|deafen|alone|wish|unmade|door|house|kit|lab)")
"""Whole names of functions, classes and files that do not say what the thing does."""

SENTENCE = re.compile(r"[A-Za-z]{2,} \S+ \S+")
"""What makes a string a message: three words at least."""


def prose(source: str, tree: ast.Module, messages: bool = True) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of docstrings, comments, names of functions and classes, and, with ``messages``, messages."""
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.add(id(node.value))
            yield node.lineno, node.value.value
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name.replace("_", " ")
    for node in ast.walk(tree):
        if messages and isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield from [(node.lineno, node.value)] if SENTENCE.search(node.value) else []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def found(source: str, messages: bool = True) -> list[str]:
    """Return ``line: word`` for each word of the dialect in a Python file, in the order of the lines."""
    tree = ast.parse(source)
    hits = {
        (line, match[0].lower())
        for line, text in prose(source, tree, messages)
        for match in DIALECT.finditer(" ".join(text.split()))
    }
    hits |= {
        (node.lineno, node.name)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and NAME.fullmatch(node.name.lower())
    }
    return [f"{line}: {word}" for line, word in sorted(hits)]


def found_in_text(text: str) -> list[str]:
    """Return ``line: word`` for each word of the dialect in a file that is not Python."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {match[0].lower()}" for number, line in lines for match in DIALECT.finditer(line)]
