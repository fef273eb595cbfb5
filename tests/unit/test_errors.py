# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (errors.FlowError, 1, "failed"),
        (errors.InvalidInput, 1, "invalid_input"),
        (errors.Cancelled, 2, "cancelled"),
        (errors.AuthError, 4, "auth"),
        (errors.DeadlineExceeded, 5, "timeout"),
        (errors.NotFound, 6, "not_found"),
        (errors.Conflict, 7, "conflict"),
        (errors.Unhealthy, 8, "unhealthy"),
        (errors.CloneFailed, 9, "clone"),
    ],
)
def test_codes_are_the_documented_ones(error, code, kind):
    data = error("It failed.", "Do this.", {"a": 1}).to_dict()
    assert data == {"code": code, "kind": kind, "message": "It failed.", "hint": "Do this.", "details": {"a": 1}}


@pytest.mark.parametrize(
    "url",
    [
        "https://user:CANARY@host/o/r",
        "https://CANARY@host/o/r",
        "HTTPS://user:CANARY@host/o/r",
        "ssh://git:CANARY@host/o/r",
        "https://user:p@CANARY@host/o/r",
    ],
)
def test_error_contains_no_credential_of_a_url(url):
    error = errors.FlowError(f"Cannot clone {url}.", f"Try {url} again.")
    assert "CANARY" not in str(error) + repr(error) + repr(error.to_dict())
    assert "host/o/r" in error.message


def test_message_and_hint_form_one_text():
    assert str(errors.NotFound("It is not there.")) == "It is not there."
    assert str(errors.NotFound("It is not there.", "Make one.")) == "It is not there. Make one."
