"""Where telegrams come from: a serial port, a TCP server such as ser2net, or a recorded file."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from gridveil.protocol.errors import MalformedInput, Reason, Unavailable

_CHUNK = 4096
_SILENCE_S = 60
"""A port says something at least every ten seconds; silent for so long, it is given up."""

_CONNECT_S = 10
_BAUD = 115_200
"""DSMR 4 and later: 8 data bits, no parity."""


class Source(Protocol):
    """Bytes of a port."""

    live: bool
    """Whether they come as the meter says them; a file's do not."""

    def read(self) -> bytes:
        """The next bytes; none at the end of a file.

        Raises:
            Unavailable: UNREACHABLE if the port is gone, or silent for a minute.
        """
        ...


class _File:
    live = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self) -> bytes:
        return self._file.read(_CHUNK)


class _Tcp:
    live = True

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self) -> bytes:
        try:
            data = self._connection.recv(_CHUNK)
        except OSError:
            data = b""
        return data or _gone()


class _Serial:
    live = True

    def __init__(self, port: Any) -> None:
        self._port = port

    def read(self) -> bytes:
        try:
            data: bytes = self._port.read(max(1, min(self._port.in_waiting, _CHUNK)))
        except OSError:
            data = b""
        return data or _gone()


@contextmanager
def open_source(text: str) -> Iterator[Source]:
    """A source by what a user types: ``/dev/ttyUSB0``, ``tcp://host:port`` or a file.

    Raises:
        MalformedInput: CONFIG_INVALID for none of these.
        Unavailable: UNREACHABLE if it cannot be opened.
    """
    if text.startswith("tcp://"):
        with _connected(text) as connection:
            yield _Tcp(connection)
        return
    path = Path(text)
    try:
        serial = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        raise _unreachable("the P1 source does not exist") from None
    with _opened_port(text) if serial else _opened_file(path) as source:
        yield source


@contextmanager
def _connected(text: str) -> Iterator[socket.socket]:
    try:
        parts = urlsplit(text)
        address = (parts.hostname or "", parts.port or 0)
    except ValueError:
        address = ("", 0)
    if not all(address) or parts.path or parts.query:
        raise MalformedInput(Reason.CONFIG_INVALID, "a P1 source by TCP is tcp://host:port")
    try:
        connection = socket.create_connection(address, _CONNECT_S)
    except OSError:
        raise _unreachable("nothing listens at the P1 source") from None
    with connection:
        connection.settimeout(_SILENCE_S)
        yield connection


@contextmanager
def _opened_port(name: str) -> Iterator[Source]:
    import serial

    try:
        port = serial.Serial(name, _BAUD, timeout=_SILENCE_S, exclusive=True)
    except (OSError, ValueError):
        raise _unreachable("the P1 port cannot be opened") from None
    with port:
        yield _Serial(port)


@contextmanager
def _opened_file(path: Path) -> Iterator[Source]:
    try:
        file = path.open("rb")
    except OSError:
        raise _unreachable("the P1 file cannot be read") from None
    with file:
        yield _File(file)


def _gone() -> bytes:
    raise _unreachable("the P1 source is gone, or was silent for a minute")


def _unreachable(what: str) -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, what)
