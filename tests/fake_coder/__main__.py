# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m tests.fake_coder``: the fake server as a program for units, playbooks and measurements."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import signal
import threading
from pathlib import Path

from .jobs import Clock
from .rules import Refused
from .server import Fake, describe
from .state import VERSION, State


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fake_coder", description="A Coder server without Coder, in memory.")
    listen = os.environ.get("CODER_HTTP_ADDRESS", "127.0.0.1:3000")
    parser.add_argument(
        "--listen", default=listen, metavar="HOST:PORT", help="default: CODER_HTTP_ADDRESS, 127.0.0.1:3000"
    )
    parser.add_argument("--port", type=int, help="instead of the port in --listen; 0 for any free one")
    parser.add_argument("--owner", default="admin", help="user name of the first user, who is made with --token")
    parser.add_argument(
        "--token", default=os.environ.get("FAKE_CODER_TOKEN", ""), help="<id>-<secret> of the first user"
    )
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--speed", type=float, default=1.0, help="seconds that pass in a second")
    parser.add_argument("--data", type=Path, help="file that keeps the state over restarts")
    parser.add_argument("--faults", type=float, default=0.0, metavar="SHARE", help="share of answers that go wrong")
    parser.add_argument("--openapi", default=os.environ.get("CODER_OPENAPI", ""), help="the API's description")
    parser.add_argument("--cli", type=Path, help="what /bin/coder-* answers")
    parser.add_argument("--url-file", type=Path, help="where the URL is written once it listens")
    return parser.parse_args()


def _state(options: argparse.Namespace) -> State:
    if options.data and options.data.exists():
        state: State = pickle.loads(options.data.read_bytes())  # its own file
        state.clock.restart(options.speed)
        state.build_version = options.version
        return state
    return State(Clock(options.speed), options.version)


def _save(state: State, file: Path) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(pickle.dumps(state))
    fresh.replace(file)


def main() -> None:
    options = _arguments()
    state = _state(options)
    if options.token and not state.users:
        with contextlib.suppress(Refused):
            user = state.first_user(
                f"{options.owner}@example.com", options.owner, "Never-used-1-" + os.urandom(8).hex()
            )
            state.give_token(user, options.token)
    state.cli = options.cli.read_bytes() if options.cli else b""
    host, _colon, port = options.listen.rpartition(":")
    fake = Fake(
        state,
        host or "127.0.0.1",
        int(port) if options.port is None else options.port,
        options.openapi,
        changed=(lambda: _save(state, options.data)) if options.data else None,
    )
    fake.faults.share = options.faults
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: done.set())
    with fake:
        print(describe(fake), flush=True)
        if options.url_file:
            options.url_file.write_text(fake.url)
        done.wait()
    if fake.checker:
        print("\n".join(fake.checker.problems), end="", flush=True)


if __name__ == "__main__":
    main()
