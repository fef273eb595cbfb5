# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write files in one step."""

from __future__ import annotations

import os
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Path = Union[str, os.PathLike[str]]


def write(path: Path, content: str | bytes, mode: int = 0o600, durable: bool = False) -> None:
    """Replace the file at ``path``, whose folder exists. Readers see the old content or the new one.

    ``durable``: also after a power failure, which costs a write to the disk. Raises ``OSError``.
    """
    folder, name = os.path.split(os.fspath(path))
    # Not tempfile, whose import is slow; the runtime of containers uses this file.
    aside = os.path.join(folder, f".{name}.{os.getpid()}-{time.monotonic_ns()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
            os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise
