"""Appending to the release log: durable, re-read and acknowledged, or not done.

One process holds the log. Whatever fails while a record is written, nothing more is appended
until a restart has read the log again: the failed record may be there or not.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from gridveil.files import make_folder, write_durably
from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.releaselog.framing import (
    EMPTY,
    HEAD,
    RECORDS,
    BrokenFrame,
    Head,
    corrupt,
    encode_frame,
    parse_record,
    read_frames,
    read_records,
)

_PUBLIC_FILE = 0o644
_PUBLIC_FOLDER = 0o755


def _ignore(_record: LogRecord) -> None:
    pass


class LogWriter:
    """The one writer of a log."""

    def __init__(self, folder: Path, replay: Callable[[LogRecord], None] = _ignore) -> None:
        """Take the log in ``folder``, or make an empty one, and ``replay`` every record in it.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE if another process holds it.
            IntegrityLost: LOG_CORRUPT if acknowledged records are missing or changed.
        """
        make_folder(folder, mode=_PUBLIC_FOLDER)
        self._folder = folder
        self._failed = False
        self._appending = threading.Lock()
        self._descriptor = os.open(folder / RECORDS, os.O_RDWR | os.O_CREAT, _PUBLIC_FILE)
        try:
            self._hold()
            self._head = self._acknowledged()
            self._recover(replay)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def failed(self) -> bool:
        """Whether a write failed: nothing is appended any more."""
        return self._failed

    def fail(self) -> None:
        """Append nothing more until a restart."""
        self._failed = True

    def append(self, *records: LogRecord) -> None:
        """Append records; they are durable and read back when this returns.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE, now and from now on, if any step fails.
        """
        with self._appending:
            if self._failed:
                raise _unavailable()
            self._failed = True
            try:
                self._write(record.SerializeToString(deterministic=True) for record in records)
            except (OSError, IntegrityLost) as error:
                raise _unavailable() from error
            self._failed = False

    def close(self) -> None:
        """Let another writer take the log."""
        with self._appending:
            self._failed = True
            os.close(self._descriptor)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                Reason.KEYHOLDER_UNAVAILABLE, "another process holds the release log"
            ) from None

    def _acknowledged(self) -> Head:
        try:
            return Head.load(self._folder / HEAD)
        except FileNotFoundError:
            if os.fstat(self._descriptor).st_size:
                raise corrupt("its head is gone") from None
        write_durably(self._folder / HEAD, EMPTY.encode(), mode=_PUBLIC_FILE)
        return EMPTY

    def _recover(self, replay: Callable[[LogRecord], None]) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            for _, record in read_records(file, EMPTY, self._head):
                replay(record)
            tail = _whole_frames(file, self._head)
        for payload in tail:
            replay(parse_record(payload))
        if os.fstat(self._descriptor).st_size > self._head.size:
            # Written anew: after a failed fsync the kernel may hold what the disk does not.
            os.ftruncate(self._descriptor, self._head.size)
            self._write(tail)

    def _write(self, payloads: Iterable[bytes]) -> None:
        start, data = self._head, b""
        head = start
        for payload in payloads:
            frame, head = encode_frame(head, payload)
            data += frame
        _write_at(self._descriptor, data, start.size)
        os.fsync(self._descriptor)
        with (self._folder / RECORDS).open("rb") as file:
            for _ in read_records(file, start, head):
                pass
        write_durably(self._folder / HEAD, head.encode(), mode=_PUBLIC_FILE)
        self._head = head


def _whole_frames(file: BinaryIO, start: Head) -> list[bytes]:
    payloads = []
    try:
        for _, payload in read_frames(file, start):
            payloads.append(payload)
    except BrokenFrame:
        pass
    return payloads


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _unavailable() -> Unavailable:
    return Unavailable(
        Reason.KEYHOLDER_UNAVAILABLE, "the release log cannot be written; nothing is released"
    )
