"""The published log as others may rely on it: the records under a signed checkpoint, and proofs."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gridveil.protocol.checkpoint import Checkpoint, open_checkpoint
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import NoteKey
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.releaselog.framing import (
    CHECKPOINT,
    PREFIX_BYTES,
    RECORDS,
    corrupt,
    rolled_back,
)
from gridveil_services.releaselog.reader import LogReader


@dataclass(frozen=True)
class PublishedRecord:
    """A record under the checkpoint."""

    index: int
    payload: bytes
    """The leaf."""
    record: LogRecord


class PublishedLog:
    """Follows a log's checkpoint. Thread-safe; :meth:`advance` is for one thread."""

    def __init__(self, folder: Path, key: NoteKey) -> None:
        """A log that the key of ``key`` signs; read by :meth:`advance`."""
        self._folder = folder
        self._key = key
        self._reader = LogReader(folder)
        self._lock = threading.Lock()
        self._tree = Tree()
        self._ends = array("Q")
        self._pending: list[PublishedRecord] = []
        """Records that no checkpoint covers yet."""
        self._checkpoint: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint; None while there is no log."""
        return self._checkpoint

    def advance(self) -> list[PublishedRecord]:
        """The records that a newer checkpoint covers, each once.

        Raises:
            IntegrityLost: LOG_CORRUPT if the records are not those that were signed;
                LOG_ROLLED_BACK if there was a larger checkpoint.
        """
        # Before the records: they are written first, so that none is missing under it.
        checkpoint = self._read_checkpoint()
        logged = self._reader.read()
        with self._lock:
            for end, payload, record in logged:
                self._pending.append(PublishedRecord(self._tree.size, payload, record))
                self._tree.append(leaf_hash(payload))
                self._ends.append(end.size)
            if checkpoint is None or checkpoint == self._checkpoint:
                return []
            self._check(checkpoint)
            self._checkpoint = checkpoint
            size = checkpoint.head.size
            covered = [record for record in self._pending if record.index < size]
            self._pending = self._pending[len(covered) :]
            return covered

    def inclusion_proof(self, index: int, checkpoint: Checkpoint) -> Sequence[bytes]:
        """Proof that a record is under a checkpoint."""
        with self._lock:
            return self._tree.inclusion_proof(index, checkpoint.head.size)

    def consistency_proof(self, old_size: int, size: int) -> Sequence[bytes]:
        """Proof that the log of ``size`` records begins with its first ``old_size``."""
        with self._lock:
            return self._tree.consistency_proof(old_size, size)

    def payload(self, index: int) -> bytes:
        """A record as it was written, read anew.

        Raises:
            IntegrityLost: LOG_CORRUPT if it has changed.
        """
        start = self._ends[index - 1] if index else 0
        with (self._folder / RECORDS).open("rb") as file:
            file.seek(start + PREFIX_BYTES)
            payload = file.read(self._ends[index] - start - PREFIX_BYTES)
        if leaf_hash(payload) != self._tree.leaf(index):
            raise corrupt("a record has changed")
        return payload

    def _read_checkpoint(self) -> Checkpoint | None:
        try:
            data = (self._folder / CHECKPOINT).read_bytes()
        except FileNotFoundError:
            if self._checkpoint is not None:
                raise corrupt("its checkpoint is gone") from None
            return None
        known = self._checkpoint
        if known is not None and data == known.note:
            return known
        try:
            return open_checkpoint(data, self._key)
        except GridveilError:
            raise corrupt("its checkpoint is not signed by the city's key-holder") from None

    def _check(self, checkpoint: Checkpoint) -> None:
        size, known = checkpoint.head.size, self._checkpoint
        if known is not None and size < known.head.size:
            raise rolled_back(known.head.size, size)
        if size > self._tree.size:
            raise rolled_back(size, self._tree.size)
        if checkpoint.head.root != self._tree.root(size):
            raise corrupt("its records are not those that were signed")
