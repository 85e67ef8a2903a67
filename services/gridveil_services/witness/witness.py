"""What a witness answers (C2SP tlog-witness): decisions and durable memory, without HTTP."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from gridveil.files import make_folder, write_durably
from gridveil.protocol.checkpoint import TreeHead, open_checkpoint
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.layout import sha256
from gridveil.protocol.merkle import EMPTY_ROOT, verify_consistency
from gridveil.protocol.note import NoteKey, cosign
from gridveil.protocol.witnessing import SIZE_TYPE, AddCheckpoint, encode_cosignatures
from gridveil_services.witness.config import WitnessConfig

_LOCK = "lock"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


class Witness:
    """Cosigns a checkpoint only if it goes on from the one it cosigned last. Thread-safe."""

    def __init__(self, config: WitnessConfig, now: Callable[[], float]) -> None:
        """Read what was seen before.

        Args:
            config: name, key, state folder and the logs.
            now: Unix seconds, for cosignatures.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if the memory of a log is damaged.
            Unavailable: STORE_UNAVAILABLE if another process has this memory.
        """
        make_folder(config.state)
        self._held = _hold(config.state)
        self._config = config
        self._now = now
        self._lock = threading.Lock()
        self._logs = {key.name: key for key in config.logs}
        try:
            self._seen = {key.name: self._load(key) for key in config.logs}
        except GridveilError:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the memory."""
        os.close(self._held)

    def add_checkpoint(self, body: bytes) -> Answer:
        """The answer to a request's body."""
        try:
            request = AddCheckpoint.decode(body)
            origin = TreeHead.decode(request.note.text).origin
        except MalformedInput:
            return Answer(HTTPStatus.BAD_REQUEST)
        if origin not in self._logs:
            return Answer(HTTPStatus.NOT_FOUND)
        try:
            head = open_checkpoint(request.note.encode(), self._logs[origin]).head
        except GridveilError:
            return Answer(HTTPStatus.FORBIDDEN)
        if request.old_size > head.size:
            return Answer(HTTPStatus.BAD_REQUEST)
        with self._lock:
            return self._cosign(request, head)

    def _cosign(self, request: AddCheckpoint, head: TreeHead) -> Answer:
        seen = self._seen[head.origin]
        same_size_other_root = head.size == seen.size and head.root != seen.root
        if request.old_size != seen.size or same_size_other_root:
            return Answer(HTTPStatus.CONFLICT, b"%d\n" % seen.size, SIZE_TYPE)
        try:
            verify_consistency(seen.size, seen.root, head.size, head.root, request.proof)
        except NotAuthentic:
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY)
        if head != seen:
            write_durably(self._path(head.origin), request.note.encode())
            self._seen[head.origin] = head
        config = self._config
        line = cosign(request.note.text, config.name, config.key, int(self._now()))
        return Answer(HTTPStatus.OK, encode_cosignatures([line]))

    def _load(self, key: NoteKey) -> TreeHead:
        try:
            return open_checkpoint(self._path(key.name).read_bytes(), key).head
        except FileNotFoundError:
            return TreeHead(key.name, 0, EMPTY_ROOT)
        except GridveilError:
            raise IntegrityLost(
                Reason.PARTIAL_CORRUPT, "what was seen of a log is damaged"
            ) from None

    def _path(self, origin: str) -> Path:
        return self._config.state / sha256(origin.encode()).hex()


def _hold(folder: Path) -> int:
    """Two processes with one memory could cosign two logs."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Unavailable(Reason.STORE_UNAVAILABLE, "another process is this witness") from None
    return descriptor
