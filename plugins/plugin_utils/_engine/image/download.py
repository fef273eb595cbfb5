# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download the image's files from their origin or a mirror, and verify their digests."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import FlowError, redact
from ..common.progress import Progress
from .cache import BLOCK, atomic, cache, room

_TIMEOUT = 60


class Unreachable(FlowError):
    """The server of a download does not answer."""


def fetch(name: str, entry: Mapping[str, Any], options: Mapping[str, Any], progress: Progress) -> Path:
    """Return the file ``entry`` (``url``, ``sha256``) from the cache or its source.

    Raise an error with both digests if they differ.
    """
    target = cache("downloads") / f"{entry['sha256'][:16]}-{entry['url'].rsplit('/', 1)[-1]}"
    if target.exists():
        return target
    url = mirrored(entry["url"], options)
    progress.note(f"image: downloading {name} from {redact(url)}")
    with atomic(target) as path:
        found, missing = _download(name, url, path, str(options.get("ca_bundle") or ""))
        if found != entry["sha256"]:
            what = f"the download was cut off ({missing}), and its SHA-256 is" if missing else "its SHA-256 is"
            raise FlowError(
                f"Cannot use {name} from {url}: {what} {found}, where {entry['sha256']} was expected.",
                "The file was deleted; complete files are not downloaded again. Run it again. If the digest stays "
                "wrong, check the source or the mirror.",
            )
    return target


_ORIGINS = {
    "mirror_apt": ("http://deb.debian.org", "http://archive.ubuntu.com", "http://security.ubuntu.com"),
    "mirror_crates": ("https://static.crates.io",),
    "mirror_go": ("https://proxy.golang.org",),
    "mirror_npm": ("https://registry.npmjs.org",),
    "mirror_pypi": ("https://files.pythonhosted.org",),
}
"""The origin that each mirror replaces; ``mirror_files`` replaces all others."""


def mirrored(url: str, options: Mapping[str, Any]) -> str:
    """Return ``url``, or its address on the mirror that the user's ``mirror_*`` settings name."""
    for option, origins in _ORIGINS.items():
        for origin in origins:
            if url.startswith(f"{origin}/"):
                mirror = str(options.get(option) or "").rstrip("/")
                return mirror + url[len(origin) :] if mirror else url
    mirror = str(options.get("mirror_files") or "").rstrip("/")
    return f"{mirror}/{url.split('://', 1)[1]}" if mirror else url


def _download(name: str, url: str, path: Path, ca_bundle: str) -> tuple[str, str]:
    """Write the answer of ``url`` to ``path``. Return its SHA-256, and where it ended if it is incomplete."""
    import ssl

    digest = hashlib.sha256()
    length = 0
    try:
        context = ssl.create_default_context(cafile=ca_bundle or None)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        with opener.open(url, timeout=_TIMEOUT) as answer, open(path, "wb") as out:
            wanted = answer.headers.get("Content-Length", "")
            try:
                while block := answer.read(BLOCK):
                    digest.update(block)
                    length += len(block)
                    with room(f"keep {name} in", path.parent.parent):
                        out.write(block)
            except http.client.IncompleteRead as error:
                digest.update(error.partial)
                length += len(error.partial)
            except OSError as error:
                return digest.hexdigest(), f"after {length} bytes: {error}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        answered = isinstance(error, urllib.error.HTTPError)
        raise (FlowError if answered else Unreachable)(
            f"Cannot download {name} from {url}: {error}.",
            f"Check the network, or name a mirror ({', '.join([*_ORIGINS, 'mirror_files'])}).",
        ) from None
    cut = f"after {length} of {wanted} bytes" if wanted.isdigit() and length < int(wanted) else ""
    return digest.hexdigest(), cut


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener().open(urllib.request.Request(url, method="HEAD"), timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False
