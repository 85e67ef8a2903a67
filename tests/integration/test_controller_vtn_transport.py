"""How long a server may take, and how much it may say."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx2
import pytest

from gridveil_services.controller.vtn.transport import BoundedTransport

MOST_BYTES = 4_096


class Time:
    """Steady seconds, moved by a server."""

    now = 0.0


@contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that answers one request its own way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65_536)
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def get(url: str, time: Time | None = None) -> httpx2.Response:
    clock = time or Time()
    transport = BoundedTransport(
        ssl.create_default_context(), 30.0, MOST_BYTES, now=lambda: clock.now
    )
    with httpx2.Client(transport=transport, timeout=10.0, trust_env=False) as client:
        return client.get(url)


def said(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"]
)
def test_a_server_that_never_ends_what_it_says_is_given_up(begin: bytes) -> None:
    time = Time()

    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        time.now = 31.0
        connection.sendall(b"x")
        while connection.recv(1):
            pass

    with served(drip) as url, pytest.raises(httpx2.TimeoutException):
        get(url, time)


def test_an_answer_within_the_bound_is_read() -> None:
    with served(said(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as url:
        assert get(url).content == b"ok"


def test_more_than_the_bound_is_not_read() -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {2**32}\r\n\r\n".encode()
    with served(said(head + b"x" * 2 * MOST_BYTES)) as url, pytest.raises(httpx2.ReadError):
        get(url)


def test_what_is_packed_is_not_unpacked() -> None:
    data = gzip.compress(b"x" * 2**20)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n"
    with served(said(head.encode() + data)) as url, pytest.raises(httpx2.DecodingError):
        get(url)
