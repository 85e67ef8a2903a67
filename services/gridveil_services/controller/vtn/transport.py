"""HTTP with an end: a server can hold an exchange up, or go on with it, for so long only.

The library's timeouts are of silence: a byte now and then would keep them from ever passing.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import httpcore2
import httpx2


class Bound:
    """What is left of an exchange."""

    def __init__(self, seconds: float, most_bytes: int, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._now = now
        self.renew()

    def renew(self) -> None:
        """Another exchange begins."""
        self._until = self._now() + self._seconds
        self._bytes = 0

    def patience(self, timeout: float | None) -> float:
        """Seconds that an operation may take."""
        left = self._until - self._now()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left if timeout is None else min(left, timeout)

    def count(self, received: int) -> None:
        self._bytes += received
        if self._bytes > self._most_bytes:
            raise httpcore2.ReadError


class BoundedTransport(httpx2.HTTPTransport):
    """One exchange at a time; raises what the library does for a server that is silent."""

    def __init__(
        self,
        context: ssl.SSLContext,
        seconds: float,
        most_bytes: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bound exchanges.

        Args:
            context: who is trusted.
            seconds: from the connection to the last byte of the answer.
            most_bytes: of the answer with its head.
            now: seconds of a steady clock.
        """
        super().__init__(verify=context, trust_env=False)
        self._bound = Bound(seconds, most_bytes, now)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=context, network_backend=_Backend(self._bound)
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._bound.renew()
        # What is packed may be as large as it likes once it is not.
        request.headers["Accept-Encoding"] = "identity"
        response = super().handle_request(request)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise httpx2.DecodingError("an encoding that was not asked for")
        return response


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, bound: Bound) -> None:
        self._backend = httpcore2.SyncBackend()
        self._bound = bound

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        patience = self._bound.patience(timeout)
        stream = self._backend.connect_tcp(host, port, patience, local_address, socket_options)
        return _Stream(stream, self._bound)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> NoReturn:
        raise httpcore2.ConnectError


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, bound: Bound) -> None:
        self._stream = stream
        self._bound = bound

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._bound.patience(timeout))
        self._bound.count(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._bound.patience(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        patience = self._bound.patience(timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, patience), self._bound)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
