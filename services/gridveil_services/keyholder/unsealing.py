"""How officers' shares reach a key-holder that waits for them.

A key-holder whose key-encrypting key is sealed listens on a Unix socket in its state folder, for
its own user only, until enough shares have come; the shares and the key stay in its memory. One
connection carries one JSON list of shares, and one answer.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from gridveil.protocol.errors import GridveilError, MalformedInput, Reason, Unavailable
from gridveil_services.keyholder.at_rest import wipe
from gridveil_services.keyholder.key_shares import LONGEST_SHARE, MOST, Share, ShareFile
from gridveil_services.keyholder.sealed_key import SealedKey

SOCKET = "unseal.sock"

_PATIENCE_S = 5.0
"""For a caller that sends nothing: others are waiting."""
_ANSWER_S = 60.0
_LONGEST = MOST * LONGEST_SHARE

T = TypeVar("T")

_log = structlog.get_logger()


class Progress(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How far a key-holder is; or why it took nothing."""

    given: int
    needed: int
    refused: str = ""


class Unsealing(Generic[T]):
    """The shares given so far. All of a message are taken, or none."""

    def __init__(self, sealed: SealedKey, opened: Callable[[bytearray], T]) -> None:
        """``opened`` gets the key once enough shares are there, and may refuse it."""
        self._sealed = sealed
        self._opened = opened
        self._shares: dict[int, Share] = {}
        self.result: T | None = None

    def take(self, message: bytes) -> Progress:
        """Judge one message; what is refused changes nothing."""
        try:
            shares = self._taken(message)
            if len(shares) >= self._sealed.split.threshold:
                self.result = self._open(list(shares.values()))
        except GridveilError as error:
            return self._progress(error.message)
        self._shares = shares
        progress = self._progress()
        if self.result is not None:
            self._shares = {}
        return progress

    def _taken(self, message: bytes) -> dict[int, Share]:
        try:
            files = msgspec.json.decode(message, type=list[ShareFile])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise MalformedInput(Reason.CONFIG_INVALID, "this is no list of shares") from None
        shares = dict(self._shares)
        for file in files:
            share = Share.from_file(file, "a share")
            self._sealed.check(share, f"share {share.index}")
            if share.index in shares:
                raise MalformedInput(
                    Reason.CONFIG_INVALID, f"share {share.index} was given already"
                )
            shares[share.index] = share
        return shares

    def _open(self, shares: Sequence[Share]) -> T:
        key = self._sealed.open(shares)
        try:
            return self._opened(key)
        finally:
            wipe(key)

    def _progress(self, refused: str = "") -> Progress:
        return Progress(
            given=len(self._shares), needed=self._sealed.split.threshold, refused=refused
        )


def wait_for_key(sealed: SealedKey, state: Path, opened: Callable[[bytearray], T]) -> T:
    """What ``opened`` makes of the key, once officers have given enough shares.

    Raises:
        Unavailable: KEYHOLDER_UNAVAILABLE if another process waits for the same.
    """
    unsealing = Unsealing(sealed, opened)
    with _listening(state) as listener:
        _log.info("sealed: waiting for officers' shares", needed=sealed.split.threshold)
        while unsealing.result is None:
            connection, _ = listener.accept()
            # A caller that hangs or goes away has given nothing.
            with connection, suppress(OSError):
                connection.settimeout(_PATIENCE_S)
                progress = unsealing.take(_received(connection))
                _log.info("shares given", given=progress.given, refused=progress.refused or None)
                connection.sendall(msgspec.json.encode(progress))
    return unsealing.result


def give_shares(state: Path, shares: Sequence[Share]) -> Progress:
    """Hand shares to the key-holder that waits in a state folder.

    Raises:
        MalformedInput: CONFIG_INVALID as the key-holder says; it took none of them.
        Unavailable: KEYHOLDER_UNAVAILABLE if none waits there, or it does not answer.
    """
    message = msgspec.json.encode([share.to_file() for share in shares])
    try:
        with _folder(state) as folder, _socket() as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(_address(folder))
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            progress = msgspec.json.decode(_received(connection), type=Progress)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unavailable(
            Reason.KEYHOLDER_UNAVAILABLE, "no key-holder waits for shares: start it first"
        ) from None
    except (OSError, msgspec.DecodeError):
        raise Unavailable(
            Reason.KEYHOLDER_UNAVAILABLE, "the key-holder that waits for shares did not answer"
        ) from None
    if progress.refused:
        raise MalformedInput(Reason.CONFIG_INVALID, progress.refused)
    return progress


@contextmanager
def _listening(state: Path) -> Iterator[socket.socket]:
    with _folder(state) as folder, _socket() as listener:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                Reason.KEYHOLDER_UNAVAILABLE, "another process waits for shares of this key"
            ) from None
        path = state / SOCKET
        path.unlink(missing_ok=True)  # of a process that was killed
        listener.bind(_address(folder))
        try:
            path.chmod(0o600)
            listener.listen()
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _address(folder: int) -> str:
    # A socket's address has room for 107 bytes, which the path of a state folder may exceed.
    return f"/proc/self/fd/{folder}/{SOCKET}"


def _received(connection: socket.socket) -> bytes:
    """All that comes, up to one byte more than any message has."""
    received = bytearray()
    while len(received) <= _LONGEST and (part := connection.recv(_LONGEST)):
        received += part
    return bytes(received)
