"""Logging in: with an OpenID Connect provider, or once with a token in a city on this machine."""

from __future__ import annotations

import secrets
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.starlette_client import OAuth
from httpx2 import HTTPError
from joserfc.errors import JoseError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.templating import Jinja2Templates

from gridveil.protocol.errors import NotAllowed, NotFound, Reason, Unavailable
from gridveil_services.console.config import ConsoleConfig, Oidc
from gridveil_services.console.sessions import OneTimeToken, Rights, Sessions, User, rights_of

_TEMPLATES = Jinja2Templates(directory=Path(__file__).parent / "templates")
_DISCOVERY = "/.well-known/openid-configuration"
_MOST_FORM_BYTES = 4_096

_log = structlog.get_logger()


class Login:
    """Who is there, and how they came in."""

    def __init__(self, config: ConsoleConfig) -> None:
        self.session_key = secrets.token_urlsafe(32)
        self.token = None if config.oidc else OneTimeToken()
        self.sessions = Sessions()
        self._config = config
        self._oidc = config.oidc
        self._provider = _provider(config.oidc) if config.oidc else None
        self.cookie = self.name("gridveil")

    def name(self, cookie: str) -> str:
        """Of a cookie: over https with the prefix that binds it to this very host (RFC 6265bis)."""
        return f"__Host-{cookie}" if self._config.secure else cookie

    @property
    def hosts(self) -> list[str]:
        """What a request may name as its host: other names for this machine are not ours."""
        named = urlsplit(self._config.url).hostname
        return sorted({self._config.host, "localhost", "127.0.0.1", *([named] if named else [])})

    def user(self, request: Request) -> User | None:
        """Who sent a request, if they are logged in."""
        return self.sessions.user(request.cookies.get(self.cookie, ""), time.time())

    async def page(self, request: Request) -> Response:
        """Where people log in."""
        if self.user(request) is not None:
            return RedirectResponse("/", HTTPStatus.SEE_OTHER)
        shown = {"oidc": self._oidc is not None, "public": self._config.public}
        return _TEMPLATES.TemplateResponse(request, "login.html", shown)

    async def by_token(self, request: Request) -> Response:
        """Take the token, which is in the body so that no log has it."""
        _check_origin(request)
        if self.token is None:
            raise NotFound(Reason.NOT_FOUND, "people log in with a provider here")
        if not self.token.take(await _text(request)):
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "the token is wrong, or was used")
        return self._let_in("demo", Rights.OPERATOR, Response(status_code=HTTPStatus.NO_CONTENT))

    async def start(self, request: Request) -> Response:
        """Send somebody to the provider (authorization code with PKCE, RFC 7636)."""
        if self._provider is None:
            raise NotFound(Reason.NOT_FOUND, "no provider is configured")
        # Of logins that were begun and left the newest counts: all would not fit into a cookie.
        request.session.clear()
        try:
            sent: Response = await self._provider.authorize_redirect(
                request, f"{self._config.url}/login/callback"
            )
        except (HTTPError, OAuthError, ValueError):
            raise Unavailable(Reason.UNREACHABLE, "the provider cannot be reached") from None
        return sent

    async def callback(self, request: Request) -> Response:
        """Let somebody in whom the provider sent back with an id token that it signed."""
        if self._provider is None or self._oidc is None:
            raise NotFound(Reason.NOT_FOUND, "no provider is configured")
        try:
            token = await self._provider.authorize_access_token(request)
            claims = token["userinfo"]
            name = str(claims.get("name") or claims["sub"])[:80]
        except HTTPError:
            raise Unavailable(Reason.UNREACHABLE, "the provider cannot be reached") from None
        except (OAuthError, JoseError, KeyError, ValueError):
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "the provider did not vouch") from None
        rights = rights_of(claims, self._oidc.section)
        request.session.clear()
        return self._let_in(name, rights, RedirectResponse("/", HTTPStatus.SEE_OTHER))

    async def out(self, request: Request) -> Response:
        """Log out here; the provider's own session is the provider's."""
        _check_origin(request)
        self.sessions.end(request.cookies.get(self.cookie, ""))
        answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        answer.delete_cookie(self.cookie, secure=self._config.secure)
        return answer

    def _let_in(self, name: str, rights: Rights, answer: Response) -> Response:
        cookie = self.sessions.open(name, rights, time.time())
        _log.info("logged in", rights=rights)
        # Lax: somebody who comes back from the provider is to arrive with it.
        answer.set_cookie(
            self.cookie, cookie, httponly=True, samesite="lax", secure=self._config.secure
        )
        return answer


def _provider(oidc: Oidc):  # type: ignore[no-untyped-def]
    oauth = OAuth()
    return oauth.register(
        "oidc",
        client_id=oidc.section.client_id,
        client_secret=oidc.client_secret,
        server_metadata_url=oidc.section.issuer.rstrip("/") + _DISCOVERY,
        client_kwargs={"scope": "openid profile", "code_challenge_method": "S256"},
    )


def _check_origin(request: Request) -> None:
    """A form of another site is not obeyed (Fetch Metadata; Origin where it is not sent)."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site == "same-origin" or (site is None and origin in (None, _own(request))):
        return
    raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "this came from another site")


def _own(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}"


async def _text(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "the token is wrong, or was used")
    return body.decode("ascii", "replace")
