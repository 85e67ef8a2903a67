"""Page tokens: where a listing goes on, for the caller and range it began with, and no other."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import text, u64
from gridveil_services.rpc import Identity

_DOMAIN = "gridveil/v1/page-token"
_POSITION_BYTES = 8
_TAG_BYTES = 32


@dataclass(frozen=True)
class Listing:
    """Who lists what."""

    caller: Identity
    from_window: int
    until_window: int


class PageTokens:
    """Issues and opens tokens (HMAC-SHA-256, RFC 2104), valid as long as the process lives."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def issue(self, listing: Listing, position: int) -> bytes:
        """A token to go on with the window ``position``."""
        return u64(position) + self._tag(listing, position)

    def open(self, listing: Listing, token: bytes) -> int:
        """Where to go on, or PAGE_TOKEN_INVALID unless issued for this listing."""
        position = int.from_bytes(token[:_POSITION_BYTES], "little")
        whole = len(token) == _POSITION_BYTES + _TAG_BYTES
        tag = token[_POSITION_BYTES:]
        if not whole or not hmac.compare_digest(tag, self._tag(listing, position)):
            raise MalformedInput(
                Reason.PAGE_TOKEN_INVALID, "not a page token of this listing; list from its start"
            )
        return position

    def _tag(self, listing: Listing, position: int) -> bytes:
        caller = text(listing.caller.role) + text(listing.caller.name)
        listed = u64(listing.from_window) + u64(listing.until_window)
        message = text(_DOMAIN) + caller + listed + u64(position)
        return hmac.digest(self._key, message, "sha256")
