# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read variables and parameters from the plain HCL of a template's archive, as an import does."""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

_BLOCK = re.compile(r'^\s*(variable|data|resource)\s+"([^"]+)"(?:\s+"([^"]+)")?\s*\{', re.MULTILINE)
_COMMENT = re.compile(r"^\s*(#|//).*$", re.MULTILINE)
_VALUE = r"^\s*{key}\s*=\s*(.+?)\s*$"


@dataclass
class Source:
    """``problem``: why the import fails, if it does."""

    variables: list[dict[str, Any]]
    parameters: list[dict[str, Any]]
    presets: list[dict[str, Any]] = field(default_factory=list)
    readme: str = ""
    problem: str = ""


def read(archive: bytes) -> Source:
    """Read a tar as the server does: regular files only, at least one ``.tf`` at the root."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            files = {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError) as error:
        return Source([], [], problem=f"extract archive: {error}")
    roots = [name for name in files if "/" not in name and name.endswith((".tf", ".tf.json"))]
    if not roots:
        return Source([], [], problem="the archive has no Terraform file at its root")
    text = "\n".join(files[name].decode(errors="replace") for name in sorted(roots) if name.endswith(".tf"))
    readme = next((files[n].decode(errors="replace") for n in ("README.md", "readme.md") if n in files), "")
    blocks = list(_blocks(_COMMENT.sub("", text)))
    return Source(
        [_variable(first, body) for kind, first, _second, body in blocks if kind == "variable"],
        [_parameter(body) for kind, first, _second, body in blocks if (kind, first) == ("data", "coder_parameter")],
        [_preset(body) for kind, first, _second, body in blocks if first == "coder_workspace_preset"],
        readme,
    )


def _blocks(text: str) -> Any:
    """Yield (kind, first label, second label, body) of each block."""
    for found in _BLOCK.finditer(text):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield found[1], found[2], found[3] or "", text[found.end() : end - 1]


def _own(body: str) -> str:
    """Return the body without inner blocks, which have keys of their own."""
    kept, depth = [], 0
    for line in body.splitlines():
        opens, closes = line.count("{"), line.count("}")
        if depth == 0 and not (opens > closes and "=" not in line):
            kept.append(line)
        depth += opens - closes
    return "\n".join(kept)


def _value(body: str, key: str) -> str | None:
    """Return a literal as the string that the API shows; an expression is shown unevaluated."""
    found = re.search(_VALUE.format(key=key), _own(body), re.MULTILINE)
    if not found:
        return None
    text = found[1]
    if text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return "" if text == "null" else text


def _variable(name: str, body: str) -> dict[str, Any]:
    default = _value(body, "default")
    return {
        "name": name,
        "description": _value(body, "description") or "",
        "type": _value(body, "type") or "string",
        "default_value": default or "",
        "required": default is None,
        "sensitive": _value(body, "sensitive") == "true",
    }


def _parameter(body: str) -> dict[str, Any]:
    default = _value(body, "default")
    options = [
        {"name": _value(inner, "name") or "", "description": "", "value": _value(inner, "value") or "", "icon": ""}
        for inner in re.findall(r"\boption\s*\{(.*?)\}", body, re.DOTALL)
    ]
    return {
        "name": _value(body, "name") or "",
        "display_name": _value(body, "display_name") or "",
        "description": _value(body, "description") or "",
        "description_plaintext": _value(body, "description") or "",
        "type": _value(body, "type") or "string",
        "form_type": _value(body, "form_type") or ("dropdown" if options else "input"),
        "mutable": _value(body, "mutable") == "true",
        "default_value": default or "",
        "icon": _value(body, "icon") or "",
        "options": options,
        "validation_error": "",
        "validation_regex": "",
        "required": default is None,
        "ephemeral": _value(body, "ephemeral") == "true",
    }


def _preset(body: str) -> dict[str, Any]:
    """Capitalise the keys like the API's answer."""
    inner = re.search(r"parameters\s*=\s*\{(.*?)\}", body, re.DOTALL)
    values = re.findall(r'"?([\w.-]+)"?\s*=\s*"([^"]*)"', inner[1] if inner else "")
    return {
        "ID": str(uuid4()),
        "Name": _value(body, "name") or "",
        "Parameters": [{"Name": name, "Value": value} for name, value in values],
        "Default": _value(body, "default") == "true",
        "DesiredPrebuildInstances": None,
        "Description": "",
        "Icon": "",
    }
