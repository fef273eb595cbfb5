# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Session owner: run the command that carries an SSH connection, and serve the agent socket of the session meanwhile.

OpenSSH starts this file as its `ProxyCommand`: ``python -IS owner.py SOCKET COMMAND…``. The command gets OpenSSH's own
descriptors, so no byte passes through here, and it starts before anything else is imported. Its exit status and signals
are passed on. If serving fails, the connection works without credentials.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

IGNORED_BY_PYTHON = (13, 25)
"""SIGPIPE and SIGXFSZ, which the command must not inherit as ignored; importing ``signal`` first would cost time."""
PACKAGE = "plugins.plugin_utils._engine.identity"


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status, or end by the signal that ended it."""
    socket, *command = arguments
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigdef=IGNORED_BY_PYTHON)
    except OSError as error:
        os.write(2, f"Cannot run {command[0]}: {error.strerror}\n".encode())
        return 127
    _pass_signals_on(child)
    # Otherwise OpenSSH would not see that the command has closed them.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    stop = _serve(socket)
    _pid, status = os.waitpid(child, 0)
    stop()
    if os.WIFSIGNALED(status):
        return _end_by(os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


def _pass_signals_on(child: int) -> None:
    import signal

    def pass_on(number: int, _frame: object) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)


def _serve(socket: str) -> Callable[[], None]:
    """Serve ``socket`` in a thread. Return the function that ends it."""
    import importlib
    import threading

    served: list[Any] = []

    def serve() -> None:
        # At the end of the path, so that no folder of the collection hides a module of Python.
        sys.path.append(os.path.abspath(__file__).removesuffix(f"/{PACKAGE.replace('.', '/')}/owner.py"))
        server = importlib.import_module(f"{PACKAGE}.serve").Server(socket)
        served.append(server)
        server.run()

    def stop() -> None:
        for server in served:
            server.close()

    def quiet(_failure: object) -> None:
        """Print nothing into the user's terminal: the session works, and inside says that it has no credentials."""

    threading.excepthook = quiet
    threading.Thread(target=serve, daemon=True).start()
    return stop


def _end_by(number: int) -> int:
    import signal

    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    # Threads that wait for the user's agent must not delay the end.
    os._exit(main(sys.argv[1:]))
