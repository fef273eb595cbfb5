# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connect to the Coder server that the user means."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from . import config as coder_config
from .http import CoderHttp


def connect(say: Callable[[str], None], url: str = "", token: str = "", anonymous: bool = False) -> CoderHttp:
    """Return the way to a Coder server: the given one, else what the environment and the CLI's configuration say.

    ``anonymous``: without a token, for public information and for logging in.
    """
    given = {"CODER_URL": url, "CODER_SESSION_TOKEN": token}
    config = coder_config.load({**os.environ, **{name: value for name, value in given.items() if value}})
    if anonymous:
        return CoderHttp(replace(config, token="", source=""), say=say)
    return CoderHttp(coder_config.require_token(config), say=say)
