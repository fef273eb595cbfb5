# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``verify``: run the checks one after the other and report them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..contract import Failure, Paths, reason
from ..record import printable
from . import report, tools, workspace
from .place import ABOUT, Place, place
from .report import FAILED, PASSED, SKIPPED, UNAVAILABLE, Row, Subject

HELP = "Test an image and, if one runs, its workspace, by using each tool."
STATUSES = """exit status: 0 no failure (unavailable and skipped are none), 1 a check failed, 2 wrong usage or no space.
In a new container: docker run --rm --entrypoint spt-workspace IMAGE verify --format json
With json and junit, progress goes to stderr and the result to stdout."""

Check = tuple[str, Callable[[Place], str]]


def main(arguments: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    """Run the checks and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="spt-workspace verify",
        description=HELP,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=[*report.FORMS], default="table", help="default: table")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="names of checks; default: all")
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    signal.signal(signal.SIGTERM, _interrupt)
    with place(paths, environ) as found:
        subject = Subject(
            "workspace" if found.running else "image",
            str(found.about.get("profile") or "unknown"),
            str(found.about.get("hash") or ""),
        )
        rows = _rows(found, options.checks, sys.stdout if options.format == "table" else sys.stderr)
    if options.format == "table":
        print(report.closing(rows, subject))
    else:
        print(report.FORMS[options.format](rows, subject), end="")
    return 1 if report.counts(rows)[FAILED] else 0


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _rows(found: Place, names: Sequence[str], screen: Any) -> list[Row]:
    """Run the checks and print each result; raise ``Failure`` for an unknown name."""
    absent = {name: tool.get("reason", "") for name, tool in found.tools.items() if tool.get("state") == "unavailable"}
    checks: list[Check] = [
        ("image", _image),
        *((tool.name, tool.attempt) for tool in tools.of(found)),
        *workspace.of(found),
    ]
    unknown = sorted(set(names) - {name for name, _check in checks} - set(absent))
    if unknown:
        there = ", ".join([*(name for name, _check in checks), *absent])
        raise Failure(f"There is no check {printable(unknown[0])} here. There are: {there}.", 2)
    rows = []
    for name, check in checks:
        if not names or name in names:
            rows.append(_tried(name, check, found))
            print(report.line(rows[-1]), file=screen, flush=True)
    for name, why in absent.items():
        if not names or name in names:
            rows.append(Row(name, UNAVAILABLE, why))
            print(report.line(rows[-1]), file=screen, flush=True)
    return rows


def _tried(name: str, check: Callable[[Place], str], found: Place) -> Row:
    began = time.monotonic()
    try:
        state, detail = PASSED, check(found)
    except Failure as failure:
        state, detail = SKIPPED if failure.state == SKIPPED else FAILED, failure.sentence
    except OSError as error:
        state, detail = FAILED, f"{error.filename or name}: {reason(error)}."
    except Exception as error:  # noqa: BLE001 - an unexpected error in one check must not hide the others
        state, detail = FAILED, f"The check failed unexpectedly: {type(error).__name__}: {error}."
    return Row(name, state, printable(detail), round(time.monotonic() - began, 3))


def _image(found: Place) -> str:
    """Check that the image describes itself, because the other checks depend on it."""
    if not found.packages:
        raise Failure(f"/{ABOUT} says nothing about this image; it was not built by spt.flow, or has been damaged.")
    return f"profile {found.about.get('profile')}, {found.about.get('base')}, {str(found.about.get('hash'))[:12]}"
