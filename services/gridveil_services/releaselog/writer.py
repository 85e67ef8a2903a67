"""Appending to the release log: durable, re-read, acknowledged and signed, or not done.

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
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import Note
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.releaselog.framing import (
    CHECKPOINT,
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
    rolled_back,
)
from gridveil_services.releaselog.signing import LogSigner

_PUBLIC_FILE = 0o644
_PUBLIC_FOLDER = 0o755


def _ignore(_record: LogRecord) -> None:
    pass


class LogWriter:
    """The one writer of a log."""

    def __init__(
        self,
        folder: Path,
        signer: LogSigner,
        replay: Callable[[LogRecord], None] = _ignore,
        *,
        witnessed: bool = False,
    ) -> None:
        """Take the log in ``folder``, or make an empty one, and ``replay`` every record in it.

        Args:
            folder: of the log.
            signer: whose log it is.
            replay: told of every record, in order.
            witnessed: checkpoints are published by :meth:`publish` only, not with each record.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE if another process holds it.
            IntegrityLost: LOG_CORRUPT if acknowledged records are missing or changed;
                LOG_ROLLED_BACK if more of them were signed once.
        """
        make_folder(folder, mode=_PUBLIC_FOLDER)
        self._folder = folder
        self._signer = signer
        self._witnessed = witnessed
        self._tree = Tree()
        self._published = 0
        self._failed = False
        self._appending = threading.Lock()
        self._descriptor = os.open(folder / RECORDS, os.O_RDWR | os.O_CREAT, _PUBLIC_FILE)
        try:
            self._hold()
            self._head = self._acknowledged()
            self._recover(replay)
            self._check_checkpoint()
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

    @property
    def size(self) -> int:
        """Records in the log."""
        return self._tree.size

    @property
    def published(self) -> int:
        """Records under the published checkpoint."""
        return self._published

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
                self._publish_newest()
            except (OSError, IntegrityLost) as error:
                raise _unavailable() from error
            self._failed = False

    def checkpoint(self) -> Note:
        """The log's newest tree head, signed."""
        with self._appending:
            return self._signed()

    def consistency_proof(self, old_size: int, size: int) -> list[bytes]:
        """Proof that the log of ``size`` records begins with its first ``old_size``."""
        return self._tree.consistency_proof(old_size, size)

    def publish(self, note: Note) -> None:
        """Make a checkpoint of this log the one that others may rely on; durable.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE, now and from now on, if that is not possible.
        """
        with self._appending:
            size = self._signer.open(note.encode()).size
            if self._failed or size <= self._published:
                return
            self._failed = True
            try:
                self._publish(note, size)
            except OSError as error:
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
            for logged in read_records(file, EMPTY, self._head):
                self._tree.append(leaf_hash(logged.payload))
                replay(logged.record)
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
            leaves = [leaf_hash(logged.payload) for logged in read_records(file, start, head)]
        write_durably(self._folder / HEAD, head.encode(), mode=_PUBLIC_FILE)
        self._head = head
        for leaf in leaves:
            self._tree.append(leaf)

    def _signed(self) -> Note:
        size = self._tree.size
        return self._signer.sign(size, self._tree.root(size))

    def _publish_newest(self) -> None:
        if not self._witnessed and self._published < self._tree.size:
            self._publish(self._signed(), self._tree.size)

    def _publish(self, note: Note, size: int) -> None:
        write_durably(self._folder / CHECKPOINT, note.encode(), mode=_PUBLIC_FILE)
        self._published = size

    def _check_checkpoint(self) -> None:
        """The published checkpoint is one of this log; the next one replaces it at once."""
        try:
            head = self._signer.open((self._folder / CHECKPOINT).read_bytes())
        except FileNotFoundError:
            if self._tree.size:
                raise corrupt("its checkpoint is gone") from None
            self._publish(self._signed(), 0)
            return
        if head.size > self._tree.size:
            raise rolled_back(head.size, self._tree.size)
        if head.root != self._tree.root(head.size):
            raise corrupt("its records are not those that were signed")
        self._published = head.size
        self._publish_newest()


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
