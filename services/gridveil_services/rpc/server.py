"""A gRPC server of one role of a city: mutual TLS, bounded in everything, strict.

Some answers are the library's own and carry no ErrorInfo: a failed handshake or a connection too
many (UNAVAILABLE at the client), an unknown method or a compressed message (UNIMPLEMENTED), a
message or metadata above the limit (RESOURCE_EXHAUSTED), and more new calls than it can hand over
(RESOURCE_EXHAUSTED or UNAVAILABLE). Everything else is answered by ``behaviour`` and ``dispatch``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
import structlog

from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.rpc.admission import WorkerPool
from gridveil_services.rpc.behaviour import Patience, Runtime
from gridveil_services.rpc.binding import Binding, Method
from gridveil_services.rpc.credentials import TlsIdentity
from gridveil_services.rpc.dispatch import Dispatcher
from gridveil_services.rpc.health import Health, health_binding
from gridveil_services.rpc.logging import configure_structlog
from gridveil_services.rpc.observer import CallObserver, Unobserved
from gridveil_services.rpc.readiness import PERIOD_S, Readiness
from gridveil_services.rpc.roles import Role
from gridveil_services.rpc.supervision import Supervisor

HOUR_MS = 3_600_000
GOODBYE_S = 0.5
"""For connections to close."""
CUT_OFF_S = 1.0
"""For handlers to notice that their call was cut off."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens, and its bounds."""

    listen: str
    """``host:port``; port 0 takes a free one."""
    tls: Tls
    city_id: bytes
    role: Role
    max_message_bytes: int
    """Longest request."""
    workers: int = 4
    """Unary calls that are worked on at a time."""
    backlog: int = 8
    """Unary calls that send their message or wait for a worker; more are refused as OVERLOADED."""
    max_streams: int = 16
    """Streams at a time, each with a thread of its own; more are refused as OVERLOADED."""
    max_connections: int = 1024
    """Connections at a time; more are closed."""
    share_port: bool = False
    """Whether other processes of the same service listen on the port too."""
    health: bool = True
    patience: Patience = field(default_factory=Patience)


class Server:
    """Serves some bindings. Use as a context manager: leaving it stops at once."""

    def __init__(
        self,
        bindings: Iterable[Binding],
        options: ServerOptions,
        observer: CallObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        bindings = list(bindings)
        if not structlog.is_configured():
            configure_structlog(options.role)
        self.options = options
        self.address: str | None = None
        self._supervisor = Supervisor()
        self._runtime = Runtime(
            options.city_id,
            options.patience,
            self._supervisor,
            observer or Unobserved(),
            tracer or Untraced(),
        )
        self._unary = WorkerPool("unary", options.workers, options.workers + options.backlog)
        self._streams = WorkerPool("stream", options.max_streams, options.max_streams)
        self._health_pools = WorkerPool("health", 2, 16), WorkerPool("health-watch", 4, 4)
        self._told_ready = True
        self._tls: TlsIdentity | None = None
        self.readiness = Readiness()
        """Why the server is ready, or not; what serves adds conditions of its own."""
        self.readiness.require("serving", lambda: self._told_ready and not self._runtime.draining)
        self.readiness.require("certificate", self._is_certified)
        self._health = Health(
            (binding.descriptor.full_name for binding in bindings),
            lambda: not self._runtime.draining and self.readiness.ready,
        )
        self._stopped = threading.Event()
        self.bindings = bindings
        """What it serves."""
        dispatcher = Dispatcher(self._runtime)
        for binding in bindings:
            _add(dispatcher, binding.methods(), self._unary, self._streams)
        if options.health:
            health = health_binding(self._health)
            _add(dispatcher, health.methods(), *self._health_pools)
            self.bindings = [*bindings, health]
        self._grpc = grpc.server(
            ThreadPoolExecutor(1), [dispatcher], options=_channel_options(options)
        )

    def start(self) -> str:
        """Listen; the address with the actual port. CONFIG_INVALID if that is not possible."""
        self._tls = TlsIdentity(self.options.tls, self.options.role, self.options.city_id)
        credentials = self._tls.credentials()
        host, _, _ = self.options.listen.rpartition(":")
        try:
            port = self._grpc.add_secure_port(self.options.listen, credentials)
        except RuntimeError:
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"listen: cannot listen on {self.options.listen}"
            ) from None
        self._supervisor.start()
        self._grpc.start()
        threading.Thread(target=self._watch, name="readiness", daemon=True).start()
        self.address = f"{host}:{port}"
        return self.address

    def set_ready(self, ready: bool) -> None:
        """Say through the health service whether the services answer, if nothing else says no."""
        self._told_ready = ready
        self._health.look()

    @property
    def certificate_expires(self) -> float:
        """Unix seconds until when the own certificate is valid; 0 before the server listens."""
        return 0.0 if self._tls is None else self._tls.expires()

    def conditions(self) -> dict[str, bool]:
        """What must hold for it to be ready, by name, and whether it does now."""
        return self.readiness.look()

    def methods(self) -> list[str]:
        """The paths of what it serves."""
        return [method.path for binding in self.bindings for method in binding.methods()]

    def look(self) -> None:
        """Find out whether it is ready now; watchers are told."""
        self._health.look()

    def _is_certified(self) -> bool:
        return self._tls is None or time.time() <= self._tls.expires()

    def _watch(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self._health.look()

    def drain(self, grace_s: float) -> bool:
        """Refuse new calls, let those in progress end, cut off what has not, then stop.

        Returns:
            False if a handler is still running, although its call was cut off.
        """
        deadline = time.monotonic() + grace_s
        pools = self._unary, self._streams
        self._runtime.draining = frozenset(pools)
        self._stopped.set()
        self._health.look()
        self._end_streams(self._streams)
        for pool in pools:
            pool.wait_until_empty(deadline - time.monotonic())
        self._end_streams(*self._health_pools)
        self._grpc.stop(GOODBYE_S).wait()
        self._supervisor.stop()
        ended = [pool.wait_until_empty(CUT_OFF_S) for pool in pools]
        for pool in (*pools, *self._health_pools):
            pool.close()
        return all(ended)

    def _end_streams(self, *pools: WorkerPool) -> None:
        for call in self._supervisor.calls():
            if call.method.server_streaming and call.pool in pools:
                call.drain()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped; False if it has not in time."""
        return not self._grpc.wait_for_termination(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.drain(0.0)


def _add(
    dispatcher: Dispatcher, methods: Iterable[Method], unary: WorkerPool, streams: WorkerPool
) -> None:
    for method in methods:
        dispatcher.add(method, streams if method.streaming else unary)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        # A second server on the same port must fail, not share its calls, unless it is to.
        ("grpc.so_reuseport", int(options.share_port)),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        # None but identity: ciphertexts do not get shorter, and nothing unpacks to more than it is.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", 8192),
        ("grpc.absolute_max_metadata_size", 16384),
        ("grpc.max_concurrent_streams", 128),
        # Calls that wait to be admitted or refused; each may fill a flow-control window.
        ("grpc.server.max_pending_requests", 256),
        ("grpc.server.max_pending_requests_hard_limit", 512),
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A meter calls once a window: its connection should not keep others out meanwhile.
        ("grpc.max_connection_idle_ms", 60_000),
        # Reconnecting checks certificates anew, and spreads load.
        ("grpc.max_connection_age_ms", HOUR_MS),
        ("grpc.max_connection_age_grace_ms", HOUR_MS // 60),
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 60_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]
