"""As much HTTP/2 (RFC 9113) as a hostile client needs that no library lets one be."""

from __future__ import annotations

import socket
import ssl
import struct
from types import TracebackType
from typing import Self

from gridveil.profile import Tls

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


class HostileClient:
    """Sends gRPC calls and never grants room for an answer."""

    def __init__(self, address: str, tls: Tls) -> None:
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
        context.set_alpn_protocols(["h2"])
        host, port = address.rsplit(":", 1)
        plain = socket.create_connection((host, int(port)), timeout=30)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        no_room = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, no_room))
        self._stream = -1

    def call(self, path: str) -> int:
        """Send a call with an empty message; the number of its stream."""
        self._stream += 2
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        block = b"".join(literal(name, value) for name, value in fields)
        self._socket.sendall(frame(HEADERS, END_HEADERS, self._stream, block))
        self._socket.sendall(frame(DATA, END_STREAM, self._stream, bytes(5)))
        return self._stream

    def send(self, frames: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(frames)

    def wait_for_resets(self, streams: set[int]) -> None:
        """Read frames until the server has reset all these streams."""
        while streams:
            size, kind, _flags, number = struct.unpack(">IBBI", b"\0" + self._read(9))
            self._read(size)
            if kind == RST_STREAM:
                streams.discard(number)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the server closed the connection")
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field that HPACK (RFC 7541) neither indexes nor compresses."""
    raw = [part.encode() for part in (name, value)]
    return b"\0" + b"".join(bytes([len(part)]) + part for part in raw)
