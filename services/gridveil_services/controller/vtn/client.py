"""One VTN over HTTPS (OpenADR 3.1), with tokens of the client credentials grant (RFC 6749, 4.4).

No redirect is followed and no proxy of the environment used: objects and the secret go where the
configuration says. Answers are read up to a bound, also those with a token.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2
from authlib.integrations.httpx_client import OAuth2Client

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.vtn.config import VtnAccess
from gridveil_services.controller.vtn.failure import Failure, NotDelivered
from gridveil_services.controller.vtn.transport import BoundedTransport

TIMEOUT_S = 10.0
"""Of silence."""
LONGEST_EXCHANGE_S = 30.0
"""Of all of a request with its answer, however slowly it comes."""
MOST_BYTES = 4 * 2**20
"""Of an answer with its head."""
PAGE = 50
"""Objects a page, the most that OpenADR allows."""
MOST_PAGES = 2_000
LONGEST_RETRY_AFTER_S = 3_600.0

_UNAUTHORIZED = 401
_CONFLICT = 409
_LATER = frozenset({408, 425, 429})


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class VtnClient:
    """Blocking; for one thread."""

    def __init__(self, access: VtnAccess) -> None:
        """Read the secret and the authority; nothing is sent yet.

        Raises:
            MalformedInput: CONFIG_INVALID if one of the files is not what it must be.
        """
        self._url = access.url
        self._http = OAuth2Client(
            access.client_id,
            _secret(access),
            token_endpoint=access.token_url,
            token_endpoint_auth_method="client_secret_post",  # noqa: S106 - how, not what
            grant_type="client_credentials",
            scope=access.scope,
            transport=BoundedTransport(_context(access), LONGEST_EXCHANGE_S, MOST_BYTES),
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, body: str) -> None:
        """Create an object; NotDelivered if the VTN has not said that it has."""
        with _failures():
            answer = self._send("POST", path, body)
            if 200 <= answer.status < 300:
                return
            raise _refusal(answer)

    def has(self, path: str, filters: Mapping[str, str], key: str, name: str) -> bool:
        """Whether the VTN has an object whose ``key`` is ``name``; NotDelivered if it is not said.

        Args:
            path: of the objects.
            filters: of the request: only these are looked through.
            key: ``eventName`` or ``reportName``.
            name: which one.
        """
        with _failures():
            last: list[dict[str, Any]] = []
            for page in range(MOST_PAGES):
                found = self._page(path, {**filters, "skip": str(page * PAGE), "limit": str(PAGE)})
                if any(one.get(key) == name for one in found):
                    return True
                # A VTN that knows no pages has said all, or says the same again.
                if len(found) != PAGE or found == last:
                    return False
                last = found
        raise NotDelivered(Failure.MALFORMED)

    def _page(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = self._send("GET", path, query=query)
        if answer.status != 200:
            refusal = _refusal(answer)
            # It is the question that was refused, not the object.
            raise NotDelivered(
                Failure.MALFORMED if refusal.final else refusal.failure,
                retry_after_s=refusal.retry_after_s,
            )
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise NotDelivered(Failure.MALFORMED) from None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise NotDelivered(Failure.MALFORMED)
        return found

    def _send(
        self,
        method: str,
        path: str,
        body: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> _Answer:
        self._authorize()
        answer = self._once(method, path, body, query)
        if answer.status == _UNAUTHORIZED:
            # The token may have been taken back, or the server restarted.
            self._http.token = None
            self._authorize()
            answer = self._once(method, path, body, query)
            if answer.status == _UNAUTHORIZED:
                # We were refused, not the object.
                raise NotDelivered(Failure.NO_TOKEN, untouched=True)
        return answer

    def _once(
        self, method: str, path: str, body: str | None, query: Mapping[str, str] | None
    ) -> _Answer:
        headers = {"Authorization": f"Bearer {self._http.token['access_token']}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        # The library would fetch a token that is short-lived again, outside of _authorize.
        answer = self._http.request(
            method,
            self._url + path,
            withhold_token=True,
            content=body,
            params=query,
            headers=headers,
        )
        return _Answer(answer.status_code, answer.headers, answer.content)

    def _authorize(self) -> None:
        """Have a token that is good for a while."""
        try:
            if self._http.token:
                self._http.ensure_active_token(self._http.token)  # type: ignore[no-untyped-call]
            else:
                self._http.fetch_token()
            if not _is_bearer(self._http.token):
                raise ValueError
        except httpx2.TransportError:
            raise NotDelivered(Failure.UNREACHABLE, untouched=True) from None
        except Exception:  # the library takes an answer for a token before it looks
            self._http.token = None
            raise NotDelivered(Failure.NO_TOKEN, untouched=True) from None


@contextmanager
def _failures() -> Iterator[None]:
    """What the libraries raise, as what it means for the object."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
        raise NotDelivered(Failure.UNREACHABLE, untouched=True) from None
    except httpx2.HTTPError:
        raise NotDelivered(Failure.UNANSWERED) from None


def _refusal(answer: _Answer) -> NotDelivered:
    status, retry_after = answer.status, _retry_after(answer.headers.get("Retry-After"))
    if status in _LATER:
        return NotDelivered(Failure.THROTTLED, untouched=True, retry_after_s=retry_after)
    if status >= 500:
        return NotDelivered(Failure.SERVER_ERROR, retry_after_s=retry_after)
    # A name that is taken may have been taken by an earlier attempt.
    return NotDelivered(Failure.REFUSED, untouched=status != _CONFLICT)


def _is_bearer(token: Any) -> bool:
    """Whether it is a token that can be sent (RFC 6750, 2.1); without a type it is taken for one.

    A token of another alphabet could not be written into a header, or would say more than one.
    """
    access, kind = token.get("access_token"), token.get("token_type", "Bearer")
    visible = isinstance(access, str) and access.isascii() and access.isprintable()
    return visible and bool(access) and " " not in access and kind.lower() == "bearer"


def _retry_after(value: str | None) -> float | None:
    """Seconds in ``Retry-After`` (RFC 9110, 10.2.3), bounded; None if there are none."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    missing = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(missing.total_seconds(), 0.0), LONGEST_RETRY_AFTER_S)


def _secret(access: VtnAccess) -> str:
    try:
        secret = access.client_secret_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if not 0 < len(secret) <= 4096:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "vtn.client_secret_file holds no secret of 1 to 4096 characters",
            field="vtn.client_secret_file",
        )
    return secret


def _context(access: VtnAccess) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(access.ca) if access.ca else None)
    except (OSError, ssl.SSLError):
        raise MalformedInput(
            Reason.CONFIG_INVALID, "vtn.ca holds no certificate", field="vtn.ca"
        ) from None
