"""Who is logged in: sessions in memory, named by a random cookie. A restart logs everybody out."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gridveil.protocol.errors import NotAllowed, Reason
from gridveil_services.console.config import OidcSection

SESSION_S = 12 * 3600.0
"""A shift. After it a person logs in again."""
MOST_SESSIONS = 1_000


class Rights(StrEnum):
    """What a person may."""

    OPERATOR = "operator"
    """See everything, and export."""
    VIEWER = "viewer"
    """See the curve, the signals and the proofs."""


@dataclass(frozen=True)
class User:
    """A person who is logged in."""

    name: str
    rights: Rights
    until: float
    """Real Unix seconds."""


class Sessions:
    """Sessions by the digest of their cookie, so that memory does not hold what opens them."""

    def __init__(self) -> None:
        self._users: dict[bytes, User] = {}

    def open(self, name: str, rights: Rights, now: float) -> str:
        """Begin a session; its cookie."""
        self._users = {key: user for key, user in self._users.items() if user.until > now}
        while len(self._users) >= MOST_SESSIONS:
            del self._users[next(iter(self._users))]
        cookie = secrets.token_urlsafe(32)
        self._users[_key(cookie)] = User(name, rights, now + SESSION_S)
        return cookie

    def user(self, cookie: str, now: float) -> User | None:
        """Whose session it is, if it stands."""
        user = self._users.get(_key(cookie))
        return user if user and user.until > now else None

    def end(self, cookie: str) -> None:
        """Log out."""
        self._users.pop(_key(cookie), None)


class OneTimeToken:
    """A token that logs one person in, once."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._unused = True

    def take(self, token: str) -> bool:
        """Whether it is the token, which is used up then."""
        if not self._unused or not hmac.compare_digest(token.encode(), self.token.encode()):
            return False
        self._unused = False
        return True


def rights_of(claims: Mapping[str, Any], section: OidcSection) -> Rights:
    """What the claims of a verified id token allow.

    Raises:
        NotAllowed: ROLE_NOT_ALLOWED without a second factor (``amr``, RFC 8176) or without a role.
    """
    if not set(_texts(claims.get("amr"))) & set(section.factors):
        raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "the provider states no second factor")
    roles = _texts(claims.get(section.roles_claim))
    if section.operators in roles:
        return Rights.OPERATOR
    if section.viewers in roles:
        return Rights.VIEWER
    raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "the provider states no role of the console")


def _texts(claim: object) -> list[str]:
    if isinstance(claim, str):
        return [claim]
    return [item for item in claim if isinstance(item, str)] if isinstance(claim, list) else []


def _key(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
