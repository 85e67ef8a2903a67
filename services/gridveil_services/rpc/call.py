"""A call in progress, as its handler and the supervision see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import grpc
import structlog

from gridveil_services.rpc.admission import WorkerPool
from gridveil_services.rpc.binding import Method
from gridveil_services.rpc.roles import Identity, PeerCertificate

_NO_DEADLINE = 10 * 365 * 86_400.0
"""gRPC gives a call without a deadline centuries."""

_log = structlog.get_logger()
LEEWAY_S = 1.0
"""What is in motion notices by itself that its time is up, and says so better than a cut does."""


class Call:
    """What a handler may know of its call. Times are real seconds."""

    def __init__(
        self,
        context: grpc.ServicerContext,
        method: Method,
        pool: WorkerPool,
        cap_s: float | None = None,
    ) -> None:
        self.method = method
        self.pool = pool
        self.began = time.monotonic()
        self._context: grpc.ServicerContext | None = context
        self._certificate: PeerCertificate | None = None
        self._limit = _limit(context, cap_s)
        self._receive_until = self._send_until = inf
        self._quiet_since = -inf
        self._drained_at = inf
        self.given_up = False
        """Whether it was cut off; set before its messages end as if the caller had ended them."""
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []

    @property
    def identity(self) -> Identity:
        """The proven caller."""
        return self.certificate.identity

    def time_remaining(self) -> float | None:
        """Seconds until the caller, or the server's cap on unary calls, gives up; None: never."""
        return None if self._limit is None else max(0.0, self._limit - time.monotonic())

    def is_active(self) -> bool:
        """Whether anybody still waits for this call.

        False once the caller is gone or its deadline has passed; for answer streams also once the
        server drains: the handler then ends, and the runtime tells the caller to come back.
        """
        context = self._context
        if self._callbacks is None or context is None or not context.is_active():
            return False
        return self._limit is None or time.monotonic() < self._limit

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once, when the caller is gone, is answered, or an answer stream drains.

        Runs at once if that has happened. It must neither block nor raise.
        """
        with self._lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback()

    # What follows is for the runtime.

    @property
    def certificate(self) -> PeerCertificate:
        assert self._certificate is not None, "set before any handler runs"
        return self._certificate

    @certificate.setter
    def certificate(self, certificate: PeerCertificate) -> None:
        self._certificate = certificate

    @property
    def peer(self) -> str:
        """Where the caller is, for logs; empty once the call is over."""
        context = self._context
        return "" if context is None else context.peer()

    @property
    def drained(self) -> bool:
        """The server ended it."""
        return self._drained_at < inf

    def drain(self) -> None:
        """Make a stream end."""
        self._drained_at = time.monotonic()
        self.end()

    def over(self) -> None:
        """Nothing more will cross the wire."""
        self.end()
        # A handler that keeps the call must not keep the connection's stream with it.
        self._context = None

    def end(self) -> None:
        """Make the call inactive; idempotent."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for callback in callbacks:
            try:
                callback()
            except Exception as error:
                _log.error("a callback failed", method=self.method.path, exc_info=error)

    @contextmanager
    def receiving(self, patience_s: float) -> Iterator[None]:
        """Around waiting for the caller's next message."""
        self._quiet_since = time.monotonic()
        self._receive_until = self._quiet_since + patience_s
        try:
            yield
        finally:
            self._receive_until = inf

    @contextmanager
    def sending(self, patience_s: float) -> Iterator[None]:
        """Around waiting for the caller to take an answer; possibly in another thread."""
        self._send_until = time.monotonic() + patience_s
        try:
            yield
        finally:
            self._send_until = inf
            self._quiet_since = time.monotonic()

    def expect_end(self, patience_s: float) -> None:
        """The answer is given; the caller has that long to take it."""
        self._send_until = time.monotonic() + patience_s

    def is_hopeless(self, monotonic: float, now: float) -> bool:
        """Whether to cut it off: the caller stalls, or time or certificate have run out."""
        until = min(self._receive_until, self._send_until)
        if self._limit is not None:
            until = min(until, self._limit + LEEWAY_S)
        if until < monotonic or self._is_quiet(monotonic):
            return True
        certificate = self._certificate
        if certificate is None or not self.method.streaming:
            return False
        return certificate.not_after + LEEWAY_S < now

    def _is_quiet(self, monotonic: float) -> bool:
        """A draining stream waits for a message, and has answered what there was to answer."""
        quiet_since = max(self._quiet_since, self._drained_at)
        return self._receive_until < inf and quiet_since + LEEWAY_S < monotonic

    def give_up(self) -> None:
        """Cut it off: the caller sees CANCELLED."""
        self.given_up = True
        context = self._context
        if context is not None:
            context.cancel()


def _limit(context: grpc.ServicerContext, cap_s: float | None) -> float | None:
    remaining = context.time_remaining()
    limits = [] if cap_s is None else [cap_s]
    if remaining < _NO_DEADLINE:
        limits.append(remaining)
    return time.monotonic() + min(limits) if limits else None
