"""The console process: an ASGI server with the feed beside it in one event loop."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gridveil.clock import Clock
from gridveil.control import AsyncControlClient
from gridveil.log_view import LogView
from gridveil.operator import AsyncOperator
from gridveil.transport import channel_credentials
from gridveil.watchdog.limits import Limits
from gridveil_services.console.app import Console, make_app
from gridveil_services.console.citizens import Citizens
from gridveil_services.console.config import ConsoleConfig
from gridveil_services.console.exports import Exports
from gridveil_services.console.feed import Feed
from gridveil_services.console.headers import SecurityHeaders
from gridveil_services.console.hub import Hub
from gridveil_services.console.login import Login
from gridveil_services.console.model import CityModel
from gridveil_services.console.proofs import Prover
from gridveil_services.console.signals import Controller
from gridveil_services.console.watching import Watching

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MOST_CONNECTIONS = 512
KEEP_ALIVE_S = 30
REQUEST_S = 10.0
"""In which a request must be there with all its headers."""
GRACE_S = 3

_log = structlog.get_logger()


class ConsoleProcess:
    """Wires the parts of a console together."""

    def __init__(self, config: ConsoleConfig, clock: Clock) -> None:
        """Check what it needs; CONFIG_INVALID or OSError if that is not there or not readable."""
        LogView(config.profile)
        channel_credentials(config.profile.tls)
        if config.https is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(config.https.certificate, config.https.key)
        self.config = config
        self._clock = clock
        self.hub = Hub()
        self.login = Login(config)
        self.model = CityModel(config.register, config.window_length, config.zone)
        self.app = make_app(self.login, config.secure, self._lifespan)
        options = uvicorn.Config(
            # Outermost: an answer to a fault of ours has them too.
            SecurityHeaders(self.app, config.secure),
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            http=_Patient,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            # A proxy in front may say who asks, but nothing here goes by it.
            proxy_headers=False,
            ssl_certfile=config.https.certificate if config.https else None,
            ssl_keyfile=config.https.key if config.https else None,
        )
        self._server = _Server(options, self)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self._server.run()

    def stop(self) -> None:
        """Have :meth:`run` end, from another thread."""
        self._server.end()

    @property
    def ready(self) -> bool:
        """Whether what it shows is what there is."""
        console: Console | None = getattr(self.app.state, "console", None)
        return console is not None and console.feed.health.ready

    @property
    def serving(self) -> bool:
        """Whether it listens."""
        return self._server.started

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        scheme = "https" if self.config.https else "http"
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return self.config.url or f"{scheme}://{host}:{port}"

    def say_serving(self) -> None:
        """One line of JSON, with the address that logs the one person in who reads it."""
        line = {"event": "serving", "role": "console", "address": self.url}
        if self.login.token is not None:
            # Behind the hash: a browser sends it to nobody.
            line["login"] = f"{self.url}/login#{self.login.token.token}"
        print(json.dumps(line), flush=True)

    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        config = self.config
        client = AsyncControlClient(config.profile) if _has_controller(config) else None
        async with AsyncOperator.open(config.profile) as operator:
            controller = Controller(client) if client else None
            watching = Watching(Limits(zone=config.time_zone), config.window_length)
            feed = Feed(self.model, self.hub, operator, controller, self._clock, watching)
            app.state.console = Console(
                config,
                self.model,
                feed,
                self.hub,
                self.login,
                Prover(operator),
                Citizens(self.model, config.profile, config.contact, config.time_zone),
                Exports(config),
                self._clock,
            )
            following = asyncio.create_task(feed.run())
            yield
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        if client is not None:
            await client.close()


class _Patient(H11Protocol):
    """The library waits for ever for all of a request; others would find no place."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """From the first byte of a request, or the connection, until all its headers are there."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle and not cycle.response_complete:
            self._forget()
        elif self._limit is None:
            self._limit = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class _Server(uvicorn.Server):
    def __init__(self, options: uvicorn.Config, process: ConsoleProcess) -> None:
        super().__init__(options)
        self._process = process

    async def startup(self, *arguments: object, **named: object) -> None:
        await super().startup(*arguments, **named)  # type: ignore[arg-type]
        if not self.should_exit:
            self._loop = asyncio.get_running_loop()
            self._process.say_serving()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The library raises the signal again at its end; a service that ended well says so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Streams have no end of their own: the server would wait for them."""
        self.end()
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """Begin to end, from any thread."""
        if self.started:
            self._loop.call_soon_threadsafe(self._process.hub.close)
        self.should_exit = True


def _has_controller(config: ConsoleConfig) -> bool:
    return "controller" in config.profile.endpoints
