# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `coder_token`: keep a token of a Coder server in a file of the task's host, and rotate it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import coder_action as ansible_coder_action
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import values as settings_values

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin


class ActionModule(ansible_coder_action.CoderAction):
    OWN = {
        **ansible_coder_action.CoderAction.SERVER,
        "name": {"type": "str", "required": True},
        "user": {"type": "str", "default": "me"},
        "dest": {"type": "str", "required": True},
        "lifetime": {"type": "str", "default": "30d"},
        "rotate_before": {"type": "str", "default": "10d"},
    }
    VALUES = ("output",)
    DOING = "manage the token"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin

        wish = self._token_request()
        client = self.anonymous()
        check = bool(self._task.check_mode)
        secret, mode = self.read_secret(self.own["dest"])
        at_hand = coder_tokens.TokenState("it does not exist")
        if secret:
            at_hand = coder_tokens.verify(self._holder(client, secret), wish)
        if at_hand.good:
            return self._kept(at_hand, secret, mode, check)
        if check:
            msg = f"Check mode: token {wish.name}: would be made, as {at_hand.reason}."
            return self._answer(True, msg, {"at hand": at_hand.reason})
        # A working token of the right user creates its successor, so no login is needed.
        own = self._holder(client, secret) if at_hand.key and wish.ours(at_hand.key["token_name"]) else None
        with self._minter(client, own) as minter:
            return self._replaced(minter, CoderAdmin(client.http), wish if own is None else _for_caller(wish), at_hand)

    def _token_request(self) -> coder_tokens.TokenRequest:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens

        lifetime = settings_values.parse_duration(self.own["lifetime"], "lifetime")
        before = settings_values.parse_duration(self.own["rotate_before"], "rotate_before")
        if lifetime < 3600 or before >= lifetime:
            raise InvalidInput(
                f"A token with a lifetime of {self.own['lifetime']} cannot be replaced {self.own['rotate_before']} "
                "before its end.",
                "Use a lifetime of at least 1h that is longer than rotate_before.",
            )
        return coder_tokens.TokenRequest(self.own["name"], self.own["user"], lifetime, before)

    def _holder(self, client: CoderAdmin, secret: str) -> CoderAdmin:
        """Return the user of the token on the host."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin

        return CoderAdmin(client.http.signed(secret, self.own["dest"]))

    def _minter(self, client: CoderAdmin, own: CoderAdmin | None) -> AbstractContextManager[CoderAdmin]:
        return self.operator(client) if own is None else nullcontext(own)

    def _kept(self, at_hand: coder_tokens.TokenState, secret: str, mode: str, check: bool) -> dict[str, Any]:
        """Return the result for a good token; make its file readable only by its owner."""
        name, ends = at_hand.key["token_name"], at_hand.key["expires_at"]
        if mode == "600":
            return self._answer(False, f"Token {name} is good until {ends[:16]}Z (unchanged).", {}, name, ends)
        if not check:
            self.write_secret(self.own["dest"], secret)
        msg = f"Token {name}: its file was readable by other users (mode {mode}); replace it if it may have been read."
        return self._answer(True, f"Check mode: {msg}" if check else msg, {"mode": mode}, name, ends)

    def _replaced(
        self,
        minter: CoderAdmin,
        anonymous: CoderAdmin,
        wish: coder_tokens.TokenRequest,
        at_hand: coder_tokens.TokenState,
    ) -> dict[str, Any]:
        """Create, test and write a token, then delete the old ones. A killed run leaves a working token."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens

        made = coder_tokens.mint(minter, wish)
        fresh = made.token.partition("-")[0]
        try:
            tried = coder_tokens.verify(self._holder(anonymous, made.token), wish)
            if not tried.good:
                raise FlowError(f"The new token {made.name} does not work: {tried.reason}.", "Run the command again.")
            self.write_secret(self.own["dest"], made.token)
        except FlowError:
            minter.delete_token(fresh, wish.user)
            raise
        # The old tokens may include the one in use, which is then deleted last.
        asking = minter.http.config.token.partition("-")[0]
        coder_tokens.forget(minter, wish.user, sorted(made.stale, key=lambda key: key == asking))
        said = coder_tokens.cap_sentence(tried.username, made.capped, wish.lifetime) if made.capped else ""
        ends = tried.key["expires_at"]
        msg = f"Token {made.name} of {tried.username} is in {self.own['dest']}, good until {ends[:16]}Z"
        return self._answer(
            True, f"{msg} (as {at_hand.reason}). {said}".rstrip(), {"at hand": at_hand.reason}, made.name, ends
        )

    def _answer(
        self, changed: bool, msg: str, before: dict[str, Any], name: str = "", expires_at: str = ""
    ) -> dict[str, Any]:
        diff = {"before": before, "after": {"at hand": "good", "mode": "600"} if changed else {}}
        about = {"name": name, "expires_at": expires_at, "dest": self.own["dest"]}
        return self.finish({"changed": changed, "msg": msg, "token": about, "diff": diff}, ["", msg])


def _for_caller(wish: coder_tokens.TokenRequest) -> coder_tokens.TokenRequest:
    """Return the same request for the caller itself, which needs no role."""
    from dataclasses import replace

    return replace(wish, user="me")
