# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check requests and answers against Coder's API description (Swagger 2.0), where that is correct."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from uuid import UUID

Json = dict[str, Any]

WRONG = frozenset({
    # The description says a list, the handler returns one version.
    ("GET", "/api/v2/templates/{}/versions/{}"),
    # The handler returns {template_id, archived_ids}.
    ("POST", "/api/v2/templates/{}/versions/archive"),
    # Its keys are capitalised.
    ("GET", "/api/v2/templateversions/{}/presets"),
    # Any bytes, as of a file.
    ("POST", "/api/v2/files"),
})  # fmt: skip
"""Routes with wrong answers in the description."""
UNTOLD = frozenset({
    ("codersdk.APIKey", "username"), ("codersdk.TransitionStats", "P50"), ("codersdk.TransitionStats", "P95")
})  # fmt: skip
"""Fields of the server that the description lacks or spells differently."""
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,)
}  # fmt: skip


def normal(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


class Checker:
    """``problems`` collects sentences; tests assert that it is empty."""

    def __init__(self, file: str) -> None:
        with open(file, encoding="utf-8") as stream:
            description = json.load(stream)
        self._definitions: Json = description["definitions"]
        self._routes: dict[tuple[str, str], Json] = {
            (method.upper(), normal(path)): operation
            for path, item in description["paths"].items()
            for method, operation in item.items()
        }
        self.problems: list[str] = []

    def request(self, method: str, route: str, query: Json, body: Any) -> None:
        operation = self._operation(method, route)
        if operation is None:
            return
        parameters = operation.get("parameters", [])
        known = {one["name"]: one for one in parameters if one["in"] == "query"}
        for name in set(query) - set(known) - {"limit", "offset", "q", "expect_status", "include_deleted"}:
            self.problems.append(f"{method} {route}: the query {name} is not described")
        schema = next((one["schema"] for one in parameters if one["in"] == "body" and "schema" in one), None)
        if schema is not None and isinstance(body, dict):
            self._check(schema, body, f"{method} {route}")

    def answer(self, method: str, route: str, status: int, data: Any) -> None:
        operation = self._operation(method, route)
        if operation is None or data is None or (status < 300 and (method, normal(route)) in WRONG):
            return
        if status >= 400:
            self._check({"$ref": "#/definitions/codersdk.Response"}, data, f"{status} of {method} {route}")
            return
        good = [one for code, one in sorted(operation["responses"].items()) if code.startswith("2") and "schema" in one]
        if good:
            self._check(good[0]["schema"], data, f"{status} of {method} {route}")

    def _operation(self, method: str, route: str) -> Json | None:
        """Return None for paths outside the API; an unknown route of the API is a problem."""
        if not route.startswith("/api/v2/") or route == "/api/v2/":
            return None
        operation: Json | None = self._routes.get((method, normal(route)))
        if operation is None:
            self.problems.append(f"{method} {route} is not described")
        return operation

    def _check(self, schema: Json, data: Any, where: str, name: str = "") -> None:
        if data is None:
            return
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name != "uuid.NullUUID":
                self._check(self._definitions[name], data, where, name)
            return
        for part in schema.get("allOf", ()):
            self._check(part, data, where, name)
        kind = schema.get("type", "")
        if kind and (not isinstance(data, _TYPES[kind]) or (isinstance(data, bool) and kind != "boolean")):
            self.problems.append(f"{where}: {data!r} is no {kind}")
            return
        # Next to an allOf, the enum is an outdated choice of the referenced values (reason of a build).
        if "enum" in schema and "allOf" not in schema and data not in schema["enum"]:
            self.problems.append(f"{where}: {data!r} is none of {schema['enum']}")
        if isinstance(data, list):
            for number, item in enumerate(data):
                self._check(schema.get("items", {}), item, f"{where}[{number}]")
        elif isinstance(data, dict):
            self._object(schema, data, where, name)
        elif isinstance(data, str) and not _formed(schema.get("format", ""), data):
            self.problems.append(f"{where}: {data!r} is no {schema['format']}")

    def _object(self, schema: Json, data: Json, where: str, name: str) -> None:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for field in schema.get("required", ()):
            if data.get(field) is None:
                self.problems.append(f"{where}: {field} is missing")
        for field, value in data.items():
            if field in properties:
                self._check(properties[field], value, f"{where}.{field}")
            elif isinstance(others, dict):
                self._check(others, value, f"{where}.{field}")
            elif properties and not others and (name, field) not in UNTOLD:
                self.problems.append(f"{where}: {name or 'it'} has no field {field}")


def _formed(kind: str, text: str) -> bool:
    if not text:
        return True
    try:
        if kind == "uuid":
            UUID(text)
        elif kind == "date-time":
            datetime.fromisoformat(text)
    except ValueError:
        return False
    return kind != "email" or "@" in text
