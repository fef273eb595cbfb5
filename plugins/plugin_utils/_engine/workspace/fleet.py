# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage many workspaces in one call: read and validate a list, then process several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput
from ..common import text as common_text
from ..repository.address import Repository
from ..settings import options as settings_options
from ..settings import resolve as settings_resolve

STATES = ("started", "stopped", "absent")
OF_A_RUN = ("trust", "connect", "output", "command", "confirm", "hours", "size", "follow", "tail")
"""Options without a meaning for single workspaces of a list."""
OF_AN_ENTRY = ("repo", "workspace", "ref")
"""Options that only an entry can set: a value for the whole run would apply to every entry."""
ENTRY = tuple(name for name in settings_options.OPTIONS if name not in OF_A_RUN)

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One workspace of a list: its position (from 1), the wanted state, the resolved values of all options."""

    index: int
    state: str
    values: dict[str, Any]

    @property
    def repository(self) -> Repository | None:
        return Repository.parse(self.values["repo"], self.values["default_host"]) if self.values["repo"] else None

    @property
    def title(self) -> str:
        """The workspace's name, as far as it is known without a request."""
        return str(self.values["workspace"]) or (self.repository.slug if self.repository else "")

    @property
    def conflict_key(self) -> tuple[str, ...]:
        """Equal for entries that might get the same name. They are processed one after the other."""
        return (*self._target_key, self.title)

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for entries that mean the same workspace."""
        by_name = str(self.values["workspace"])
        return (*self._target_key, by_name, "" if by_name or not self.repository else self.repository.identity)

    @property
    def _target_key(self) -> tuple[str, str, str]:
        return (
            self.values["target"],
            self.values.get("engine", ""),
            self.values["owner"] or settings_resolve.default_owner(),
        )


def read(
    given: Any,
    layers: Mapping[str, Mapping[str, Any]],
    complete: Callable[[dict[str, Any]], None] = lambda values: None,
) -> list[Entry]:
    """Return the entries of ``given``, all validated; missing options come from ``layers``.

    ``complete`` may add to an entry's resolved values and reject them. Raise one ``InvalidInput`` with a sentence for
    every mistake in the list.
    """
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise InvalidInput(
            "The workspaces are not a list.", "Write one entry per workspace: `- repo: https://host/owner/name.git`."
        )
    general = {
        source: {name: value for name, value in layer.items() if name not in OF_AN_ENTRY}
        for source, layer in layers.items()
    }
    entries: list[Entry] = []
    mistakes: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
    for index, words in enumerate(given, 1):
        try:
            entry = _entry(index, words, general, complete)
            first = seen.setdefault(entry.identity, index)
            if first != index:
                raise InvalidInput(
                    f"It means the same workspace as entry {first}.", "Set another name for one of them."
                )
            entries.append(entry)
        except FlowError as error:
            mistakes.append(f"Entry {index}{_entry_label(words)}: {error}")
    if mistakes:
        raise InvalidInput(
            f"{len(mistakes)} of {len(given)} workspace entries are invalid. Nothing was changed.",
            "\n".join(mistakes),
            {"entries": mistakes},
        )
    return entries


def _entry(
    index: int, words: Any, general: Mapping[str, Mapping[str, Any]], complete: Callable[[dict[str, Any]], None]
) -> Entry:
    if not isinstance(words, Mapping):
        raise InvalidInput("It is not a mapping of options.", "Write `repo: https://host/owner/name.git`.")
    own = dict(words)
    state = own.pop("state", "started")
    if state not in STATES:
        close = common_text.nearest(str(state), STATES)
        hint = f"Use one of {', '.join(STATES)}" + (f"; did you mean {close}?" if close else ".")
        raise InvalidInput(f"state is {common_text.redact_value(state)!r}, which is not a known state.", hint)
    for name in own:
        if name not in ENTRY:
            close = common_text.nearest(str(name), ENTRY)
            reason = "is an option of the whole run" if name in OF_A_RUN else "is not an option of a workspace"
            raise InvalidInput(
                f"{common_text.redact_value(str(name))} {reason}.", f"Did you mean {close}?" if close else ""
            )
    values = settings_resolve.resolve({"the entry": own, **general})
    if not (values["repo"] or values["workspace"]):
        raise InvalidInput("It does not name a workspace.", "Set repo, or the name of an existing workspace.")
    complete(values)
    return Entry(index, state, values)


def _entry_label(words: Any) -> str:
    """Return the part of an entry that identifies it for users."""
    name = (words.get("workspace") or words.get("repo")) if isinstance(words, Mapping) else ""
    return f" ({common_text.redact_value(str(name))})" if name else ""


def each(entries: Iterable[Entry], work: Callable[[Entry], Row], parallel: int) -> list[Row]:
    """Return the rows that ``work`` returns for all entries, in order; at most ``parallel`` at a time.

    Entries that might get the same name are processed in order, so that the first gets it. ``work`` must not raise.
    """
    from concurrent.futures import ThreadPoolExecutor

    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.conflict_key, []).append(entry)
    with ThreadPoolExecutor(max(1, min(parallel, len(groups) or 1)), "spt-flow-fleet") as pool:
        rows = [
            row for made in pool.map(lambda group: [work(entry) for entry in group], groups.values()) for row in made
        ]
    return sorted(rows, key=lambda row: int(row["index"]))


def failure(rows: Sequence[Row], what: str = "workspaces") -> FlowError | None:
    """Return the error that names every failed row with its sentence, or ``None``."""
    failed = [row for row in rows if "error" in row]
    if not failed:
        return None
    names = ", ".join(row["name"] for row in failed)
    sentences = [f"{row['name']} ({row['owner']}): {row['msg']}" for row in failed]
    return FlowError(f"{len(failed)} of {len(rows)} {what} failed: {names}.", "\n".join(sentences))


def lines(rows: Sequence[Row]) -> list[str]:
    """Return one line for each row and a summary."""
    words = {row["index"]: "failed" if "error" in row else "changed" if row["changed"] else "ok" for row in rows}
    counts = ", ".join(f"{list(words.values()).count(word)} {word}" for word in ("ok", "changed", "failed"))
    return [*(f"  {words[row['index']]:<8}{row['msg']}" for row in rows), f"{len(rows)} workspaces: {counts}."]
