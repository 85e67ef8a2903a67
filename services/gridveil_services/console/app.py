"""The console's pages over HTTP (ASGI): who may see what, and nothing that needs a secret."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from pathlib import Path

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAllowed, Reason
from gridveil_services.console.config import ConsoleConfig
from gridveil_services.console.feed import Feed
from gridveil_services.console.headers import SecurityHeaders
from gridveil_services.console.hub import Hub, TooManyPages
from gridveil_services.console.login import Login
from gridveil_services.console.model import CityModel, day_view, range_view
from gridveil_services.console.proofs import Prover
from gridveil_services.console.citizens import LANGUAGES, Citizens
from gridveil_services.console.sessions import Rights

FOLDER = Path(__file__).parent
PING_S = 15
MOST_DAYS = 370
"""Of one range."""

_REFUSALS = {
    Reason.NOT_RELEASED: HTTPStatus.NOT_FOUND,
    Reason.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Reason.UNREACHABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.ROLE_NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Reason.SIGNATURE_MISSING: HTTPStatus.UNAUTHORIZED,
    Reason.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A refusal as an HTTP status; malformed input is 400, everything else 500."""


@dataclass
class Console:
    """What the handlers share."""

    config: ConsoleConfig
    model: CityModel
    feed: Feed
    hub: Hub
    login: Login
    prover: Prover
    citizens: Citizens
    clock: Clock


def make_app(
    console: Console, lifespan: Callable[[Starlette], AsyncGenerator[None]] | None = None
) -> Starlette:
    """The application, ready for an ASGI server."""
    pages = _Pages(console)
    login = console.login
    app = Starlette(
        routes=[
            Route("/", pages.index),
            Route("/public", pages.citizens),
            Route("/public/{language}", pages.citizens),
            Route("/login", login.page),
            Route("/login", login.by_token, methods=["POST"]),
            Route("/login/start", login.start),
            Route("/login/callback", login.callback, name="callback"),
            Route("/logout", login.out, methods=["POST"]),
            Route("/api/state", pages.state),
            Route("/api/day/{day}", pages.day),
            Route("/api/range", pages.range),
            Route("/api/proof/{window:int}", pages.proof),
            Route("/api/events", pages.events),
            Route("/export", pages.export),
            Route("/health", pages.health),
            Mount("/static", StaticFiles(directory=FOLDER / "static"), name="static"),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=login.hosts),
            Middleware(SecurityHeaders, secure=console.config.secure),
            Middleware(GZipMiddleware, minimum_size=1_000),
            # Holds nothing but what a login with a provider is in the midst of.
            Middleware(
                SessionMiddleware,
                secret_key=login.session_key,
                session_cookie="gridveil-login",
                max_age=600,
                same_site="lax",
                https_only=console.config.secure,
            ),
        ],
        exception_handlers={GridveilError: _refuse},
        lifespan=asynccontextmanager(lifespan) if lifespan else None,
    )
    return app


class _Pages:
    """Handlers: each asks first who is there."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._templates = Jinja2Templates(directory=FOLDER / "templates")

    async def index(self, request: Request) -> Response:
        user = self._console.login.user(request)
        if user is None:
            return RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        return self._templates.TemplateResponse(
            request,
            "console.html",
            {"user": user, "development": self._console.config.profile.development},
        )

    async def citizens(self, request: Request) -> Response:
        if not self._console.config.public:
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "this city has no public page")
        language = request.path_params.get("language") or _preferred(request)
        if language not in LANGUAGES:
            return RedirectResponse("/public", HTTPStatus.SEE_OTHER)
        shown = await self._console.citizens.shown(language)
        return self._templates.TemplateResponse(request, f"citizens.{language}.html", shown)

    async def state(self, request: Request) -> Response:
        user = self._need(request)
        console = self._console
        newest, now = console.model.newest, console.clock.now()
        return _json(
            {
                "now": now,
                "rate": 1 / console.clock.real(1.0),
                "zone": console.model.zone.key,
                "window_length": console.model.length,
                "register": console.model.register,
                "today": console.model.today(now).isoformat(),
                "city_id": console.config.profile.city_id.hex(),
                "identity_key": console.config.profile.identity_key.hex(),
                "user": {"name": user.name, "rights": user.rights},
                "health": console.feed.health,
                "rules": console.feed.rules,
                "signal": console.model.newest_signal,
                "newest": newest,
            }
        )

    async def day(self, request: Request) -> Response:
        self._need(request)
        day = _day(request.path_params["day"])
        forecast = await self._console.feed.forecast(day)
        return _json(day_view(self._console.model, day, forecast))

    async def range(self, request: Request) -> Response:
        self._need(request)
        length = self._console.model.length
        first, end = (_window(request, name, length) for name in ("from", "until"))
        if not first < end <= first + MOST_DAYS * 86_400:
            raise MalformedInput(Reason.RANGE_INVALID, f"a range has 1 to {MOST_DAYS} days")
        return _json(range_view(self._console.model, range(first, end, length)))

    async def proof(self, request: Request) -> Response:
        self._need(request)
        return _json(await self._console.prover.proof(request.path_params["window"]))

    async def events(self, request: Request) -> Response:
        self._need(request)
        try:
            stream = self._console.hub.open()
        except TooManyPages:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "OVERLOADED", "too many pages are open")

        async def told() -> AsyncIterator[ServerSentEvent]:
            async for event in stream:
                if self._console.login.user(request) is None:
                    return
                yield ServerSentEvent(event.data, event=event.name)

        return EventSourceResponse(told(), ping=PING_S, send_timeout=PING_S)

    async def export(self, request: Request) -> Response:
        self._need(request, Rights.OPERATOR)
        raise NotImplementedError

    async def health(self, _request: Request) -> Response:
        ready = self._console.feed.health.ready
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"ready": ready}, status)

    def _need(self, request: Request, rights: Rights = Rights.VIEWER):  # type: ignore[no-untyped-def]
        user = self._console.login.user(request)
        if user is None:
            raise NotAllowed(Reason.SIGNATURE_MISSING, "log in first")
        if rights is Rights.OPERATOR and user.rights is not Rights.OPERATOR:
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "this is for operators")
        return user
