"""Where messages come from: a serial port, a TCP server or client, or a recorded file."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from gridveil.protocol.errors import MalformedInput, Reason, Unavailable

_CHUNK = 4096
_TURN_S = 1.0
"""How long a live source is waited for at a time."""

_CONNECT_S = 10
_LINE = re.compile(r"([0-9]{2,7})-([78])([NEO])([12])")


@dataclass(frozen=True)
class Line:
    """How a port is read."""

    silence: int
    """Silent for so many seconds, it is given up."""
    baud: int
    idle: int = 60
    """A meter that connected and says nothing for so many seconds makes room for another."""
    bits: int = 8
    parity: str = "N"
    stop_bits: int = 1


P1_LINE = Line(silence=60, baud=115_200)
"""DSMR 4 and later; a telegram comes at least every ten seconds."""

DLMS_LINE = Line(silence=3900, baud=2400)
"""Customers' ports in Norway; a push comes at least every hour."""


def parse_line(text: str, usual: Line) -> Line:
    """A line as in ``2400-8E1``, else as usual; CONFIG_INVALID for none."""
    found = _LINE.fullmatch(text)
    if not found:
        raise MalformedInput(Reason.CONFIG_INVALID, "a serial line is such as 2400-8E1")
    return replace(
        usual,
        baud=int(found[1]),
        bits=int(found[2]),
        parity=found[3],
        stop_bits=int(found[4]),
    )


class Source(Protocol):
    """Bytes of a port."""

    live: bool
    """Whether they come as the meter says them; a file's do not."""
    connection: int
    """Another one for each connection: a message that was begun in one goes on in none."""

    def read(self) -> bytes | None:
        """The next bytes; none at the end of a file; None if there are none at the moment.

        Raises:
            Unavailable: UNREACHABLE if the port is gone, or silent for too long.
        """
        ...


class _File:
    live = False
    connection = 0

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self) -> bytes | None:
        return self._file.read(_CHUNK)


class _Port:
    """What is read in turns, and given up after too many of silence."""

    live = True
    connection = 0

    def __init__(self, silence: int) -> None:
        self._turns = silence
        self._quiet = 0

    def read(self) -> bytes | None:
        data = self._turn()
        if data is not None:
            self._quiet = 0
            return data or _gone()
        self._quiet += 1
        return None if self._quiet < self._turns else _gone()

    def _turn(self) -> bytes | None:
        """Bytes; none if the port is gone; None if it was silent for a turn."""
        raise NotImplementedError


class _Tcp(_Port):
    def __init__(self, connection: socket.socket, silence: int) -> None:
        super().__init__(silence)
        self._connection = connection

    def _turn(self) -> bytes | None:
        try:
            return self._connection.recv(_CHUNK)
        except TimeoutError:
            return None
        except OSError:
            return b""


class _Serial(_Port):
    def __init__(self, port: Any, silence: int) -> None:
        super().__init__(silence)
        self._port = port

    def _turn(self) -> bytes | None:
        try:
            data: bytes = self._port.read(max(1, min(self._port.in_waiting, _CHUNK)))
        except OSError:
            return b""
        return data or None


class _Listener:
    """A meter that connects itself, says something, and goes: one at a time."""

    live = True

    def __init__(self, server: socket.socket, idle: int) -> None:
        self._server = server
        self._idle = idle
        self._meter: socket.socket | None = None
        self._quiet = 0
        self.connection = 0

    def read(self) -> bytes | None:
        if self._meter is None:
            self._meter = self._accepted()
            return None
        try:
            data = self._meter.recv(_CHUNK)
        except TimeoutError:
            self._quiet += 1
            if self._quiet >= self._idle:
                self.hang_up()
            return None
        except OSError:
            data = b""
        self._quiet = 0
        if not data:
            self.hang_up()
        return data or None

    def _accepted(self) -> socket.socket | None:
        try:
            meter, _ = self._server.accept()
        except TimeoutError:
            return None
        except OSError:
            _gone()
        meter.settimeout(_TURN_S)
        self.connection += 1
        return meter

    def hang_up(self) -> None:
        if self._meter is not None:
            self._meter.close()
        self._meter, self._quiet = None, 0


@contextmanager
def open_source(text: str, line: Line = P1_LINE) -> Iterator[Source]:
    """A source by what a user types: a serial port, ``tcp://host:port``, or a file.

    ``tcp-listen://address:port`` waits for the meter to connect.

    Raises:
        MalformedInput: CONFIG_INVALID for none of these.
        Unavailable: UNREACHABLE if it cannot be opened.
    """
    if text.startswith("tcp-listen://"):
        with _listening(text, line.idle) as listener:
            yield listener
        return
    if text.startswith("tcp://"):
        with _connected(text) as connection:
            yield _Tcp(connection, line.silence)
        return
    path = Path(text)
    try:
        serial = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        raise _unreachable("the meter's source does not exist") from None
    with _opened_port(text, line) if serial else _opened_file(path) as source:
        yield source


def is_open(text: str) -> bool:
    """Whether a source is one that others than this machine can connect to."""
    if not text.startswith("tcp-listen://"):
        return False
    host, _ = _address(text)
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True


def _address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(text)
        address = (parts.hostname or "", parts.port or 0)
    except ValueError:
        address = ("", 0)
    if not all(address) or parts.path or parts.query:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "a source by TCP is tcp://host:port or tcp-listen://address:port"
        )
    return address


@contextmanager
def _connected(text: str) -> Iterator[socket.socket]:
    try:
        connection = socket.create_connection(_address(text), _CONNECT_S)
    except OSError:
        raise _unreachable("nothing listens at the meter's source") from None
    with connection:
        connection.settimeout(_TURN_S)
        yield connection


@contextmanager
def _listening(text: str, idle: int) -> Iterator[Source]:
    host, port = _address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family)
    except OSError:
        raise _unreachable("the address cannot be listened at") from None
    with server:
        server.settimeout(_TURN_S)
        listener = _Listener(server, idle)
        try:
            yield listener
        finally:
            listener.hang_up()


@contextmanager
def _opened_port(name: str, line: Line) -> Iterator[Source]:
    import serial

    how = {"bytesize": line.bits, "parity": line.parity, "stopbits": line.stop_bits}
    try:
        port = serial.Serial(name, line.baud, timeout=_TURN_S, exclusive=True, **how)
    except (OSError, ValueError):
        raise _unreachable("the meter's port cannot be opened") from None
    with port:
        yield _Serial(port, line.silence)


@contextmanager
def _opened_file(path: Path) -> Iterator[Source]:
    try:
        file = path.open("rb")
    except OSError:
        raise _unreachable("the meter's file cannot be read") from None
    with file:
        yield _File(file)


def _gone() -> bytes:
    raise _unreachable("the meter's source is gone, or was silent for too long")


def _unreachable(what: str) -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, what)
