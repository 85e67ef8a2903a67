"""The console's pages over HTTP (ASGI): who may see what, and nothing that needs a secret."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from pathlib import Path

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from gridveil.clock import Clock, ScaledClock
from gridveil.days import windows_of
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAllowed, NotFound, Reason
from gridveil_services.console.citizens import LANGUAGES, Citizens
from gridveil_services.console.config import ConsoleConfig
from gridveil_services.console.exports import Exports, Format, chunks
from gridveil_services.console.feed import Feed
from gridveil_services.console.hub import Hub
from gridveil_services.console.login import Login
from gridveil_services.console.model import CityModel, day_view, range_view
from gridveil_services.console.proofs import Prover
from gridveil_services.console.sessions import Rights, User

FOLDER = Path(__file__).parent
PING_S = 15
_TEMPLATES = Jinja2Templates(directory=FOLDER / "templates")
MOST_DAYS = 370
"""Of one range."""
LAST = 7_258_118_400
"""Where ranges end at the latest: the year 2200."""

_STATUSES = {
    Reason.NOT_RELEASED: HTTPStatus.NOT_FOUND,
    Reason.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Reason.UNREACHABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.ROLE_NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Reason.SIGNATURE_MISSING: HTTPStatus.UNAUTHORIZED,
    Reason.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A refusal as an HTTP status; malformed input is 400, everything else 500."""


@dataclass(frozen=True)
class Console:
    """What the handlers share."""

    config: ConsoleConfig
    model: CityModel
    feed: Feed
    hub: Hub
    login: Login
    prover: Prover
    citizens: Citizens
    exports: Exports
    clock: Clock


def make_app(
    login: Login, secure: bool, lifespan: Callable[[Starlette], AsyncGenerator[None]]
) -> Starlette:
    """The application, for an ASGI server.

    Args:
        login: who is let in.
        secure: whether it is reached by https.
        lifespan: puts a :class:`Console` into the application's ``state.console``.
    """
    return Starlette(
        routes=[
            Route("/", _index),
            Route("/public", _citizens),
            Route("/public/{language}", _citizens),
            Route("/login", login.page),
            Route("/login", login.by_token, methods=["POST"]),
            Route("/login/start", login.start),
            Route("/login/callback", login.callback),
            Route("/logout", login.out, methods=["POST"]),
            Route("/api/state", _state),
            Route("/api/day/{day}", _day),
            Route("/api/range", _range),
            Route("/api/proof/{window}", _proof),
            Route("/api/events", _events),
            Route("/export", _export),
            Route("/health", _health),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=login.hosts),
            Middleware(GZipMiddleware, minimum_size=1_000),
            # Holds nothing but what a login with a provider is in the midst of.
            Middleware(
                SessionMiddleware,
                secret_key=login.session_key,
                session_cookie=login.name("gridveil-login"),
                max_age=600,
                same_site="lax",
                https_only=secure,
            ),
        ],
        exception_handlers={GridveilError: _refused},
        lifespan=asynccontextmanager(lifespan),
    )


def _console(request: Request) -> Console:
    console: Console = request.app.state.console
    return console


def _user(request: Request, rights: Rights = Rights.VIEWER) -> User:
    """Who asks; a refusal if they are not logged in, or may not."""
    user = _console(request).login.user(request)
    if user is None:
        raise NotAllowed(Reason.SIGNATURE_MISSING, "log in first")
    if rights is Rights.OPERATOR and user.rights is not Rights.OPERATOR:
        raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "this is for operators")
    return user


async def _index(request: Request) -> Response:
    console = _console(request)
    user = console.login.user(request)
    if user is None:
        return RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    shown = {"user": user, "development": console.config.profile.development}
    return _TEMPLATES.TemplateResponse(request, "console.html", shown)


async def _citizens(request: Request) -> Response:
    console = _console(request)
    if not console.config.public:
        raise NotFound(Reason.NOT_FOUND, "this city has no public page")
    language = request.path_params.get("language") or _preferred(request)
    if language not in LANGUAGES:
        raise NotFound(Reason.NOT_FOUND, "there is no such page")
    shown = await console.citizens.shown(language)
    return _TEMPLATES.TemplateResponse(request, f"citizens.{language}.html", shown)


async def _state(request: Request) -> Response:
    user, console = _user(request), _console(request)
    model, now = console.model, console.clock.now()
    return _json(
        {
            "now": now,
            "rate": console.clock.rate if isinstance(console.clock, ScaledClock) else 1.0,
            "zone": console.config.time_zone,
            "window_length": model.length,
            "register": model.register,
            "city_id": console.config.profile.city_id.hex(),
            "identity_key": console.config.profile.identity_key.hex(),
            "user": {"name": user.name, "rights": user.rights},
            "health": console.feed.health,
            "rules": console.feed.rules,
            "signal": model.newest_signal,
            "signals": model.recent_signals,
            "level_since": model.level_since,
            "newest": model.newest,
            "findings": console.feed.watching.findings,
        }
    )


async def _day(request: Request) -> Response:
    _user(request)
    console, day = _console(request), _date(request.path_params["day"])
    return _json(day_view(console.model, day, await console.feed.forecast(day)))


async def _range(request: Request) -> Response:
    _user(request)
    model = _console(request).model
    windows = _windows(request, model.length)
    # A year takes a quarter of a second: others are served meanwhile.
    return await run_in_threadpool(lambda: _json(range_view(model, windows)))


async def _proof(request: Request) -> Response:
    _user(request)
    console = _console(request)
    window = _window(request.path_params["window"], "window", console.model.length)
    return _json(await console.prover.proof(window))


async def _events(request: Request) -> Response:
    _user(request)
    console = _console(request)
    heard = console.hub.listen()

    async def told() -> AsyncGenerator[ServerSentEvent]:
        async for event in heard:
            if console.login.user(request) is None:
                return
            yield ServerSentEvent(event.data, event=event.name)

    return EventSourceResponse(told(), ping=PING_S, send_timeout=PING_S)


async def _export(request: Request) -> Response:
    _user(request, Rights.OPERATOR)
    model, asked = _console(request).model, request.query_params
    if (format := asked.get("format", "")) not in list(Format):
        raise MalformedInput(Reason.FIELD_FORMAT, "format is csv or parquet")
    if "day" in asked:
        day = _date(asked["day"])
        windows, name = windows_of(day, model.zone, model.length), day.isoformat()
    else:
        windows = _windows(request, model.length)
        name = f"{windows.start}-{windows.stop}"
    file = await _console(request).exports.write(windows, Format(format))
    disposition = f'attachment; filename="totals-{name}.{format}"'
    return StreamingResponse(
        chunks(file),
        media_type=Format(format).media_type,
        headers={"content-disposition": disposition},
    )


async def _health(request: Request) -> Response:
    ready = _console(request).feed.health.ready
    return _json({"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


def _json(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GridveilError)
    status = _STATUSES.get(error.reason, HTTPStatus.INTERNAL_SERVER_ERROR)
    if error.reason not in _STATUSES and isinstance(error, MalformedInput):
        status = HTTPStatus.BAD_REQUEST
    return _json({"reason": error.reason, "message": error.message}, status)


def _preferred(request: Request) -> str:
    """The first of our languages that a browser names (RFC 9110); else English."""
    for wanted in request.headers.get("accept-language", "").lower().split(","):
        if (language := wanted.strip()[:2]) in LANGUAGES:
            return language
    return LANGUAGES[0]


def _date(text: str) -> date:
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = date.min
    if not date(1970, 1, 2) <= found <= date(2199, 12, 31):
        raise MalformedInput(Reason.FIELD_FORMAT, "a day is such as 2026-11-28")
    return found


def _windows(request: Request, length: int) -> range:
    asked = request.query_params
    first, end = (_window(asked.get(name, ""), name, length) for name in ("from", "until"))
    if not first < end <= first + MOST_DAYS * 86_400 or end > LAST:
        raise MalformedInput(Reason.RANGE_INVALID, f"a range has 1 to {MOST_DAYS} days")
    return range(first, end, length)


def _window(text: str, name: str, length: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12) or int(text) % length:
        raise MalformedInput(
            Reason.WINDOW_MISALIGNED, f"{name} is the start of a window in Unix seconds"
        )
    return int(text)
