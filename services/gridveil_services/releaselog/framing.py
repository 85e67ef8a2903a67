"""How records lie in the log: length, chain, payload, and a head that names the last of them.

``records`` is a sequence of frames: the payload's length (32 bits), SHA-256 of the chain before
it and the payload, the payload. ``head`` holds the size and chain that were acknowledged last.
Integers are little-endian. ``checkpoint`` is the signed tree head that others may rely on; the
payloads are the tree's leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from google.protobuf.message import DecodeError

from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, Reader, sha256, text, u64
from gridveil.protocol.v1.log_pb2 import LogRecord

RECORDS = "records"
HEAD = "head"
CHECKPOINT = "checkpoint"
PAYLOAD_LIMIT = 65_536

_HEAD_DOMAIN = "gridveil/v1/log-head"
_FRAME = struct.Struct(f"<I{DIGEST_BYTES}s")
PREFIX_BYTES = _FRAME.size
"""Of a frame before its payload."""


class BrokenFrame(Exception):
    """A frame is cut short or does not continue the chain."""


@dataclass(frozen=True)
class Head:
    """A place in the log: all bytes before it, by their number and their chain."""

    size: int
    chain: bytes

    def encode(self) -> bytes:
        return text(_HEAD_DOMAIN) + u64(self.size) + self.chain

    @classmethod
    def load(cls, path: Path) -> Head:
        """The head in a file; LOG_CORRUPT if it is none."""
        reader = Reader(path.read_bytes(), "log head")
        try:
            reader.domain(_HEAD_DOMAIN)
            head = cls(reader.uint(8), reader.take(DIGEST_BYTES))
            reader.end()
        except MalformedInput:
            raise corrupt("its head is not readable") from None
        return head


EMPTY = Head(0, sha256(text("gridveil/v1/release-log")))
"""Head of the log before its first record."""


class Logged(NamedTuple):
    """A record as it stands in the log."""

    end: Head
    """The place after it."""
    payload: bytes
    """The leaf of the log's tree."""
    record: LogRecord


def encode_frame(before: Head, payload: bytes) -> tuple[bytes, Head]:
    """The frame of a payload, and the head after it."""
    if not 0 < len(payload) <= PAYLOAD_LIMIT:
        raise ValueError("a record is empty or too long")
    chain = sha256(before.chain + payload)
    frame = _FRAME.pack(len(payload), chain) + payload
    return frame, Head(before.size + len(frame), chain)


def read_frames(file: BinaryIO, start: Head) -> Iterator[tuple[Head, bytes]]:
    """Each payload from ``start`` on with the head after it; BrokenFrame ends an unclean log."""
    file.seek(start.size)
    at = start
    while prefix := file.read(_FRAME.size):
        if len(prefix) != _FRAME.size:
            raise BrokenFrame
        size, chain = _FRAME.unpack(prefix)
        payload = file.read(size) if 0 < size <= PAYLOAD_LIMIT else b""
        if len(payload) != size or chain != sha256(at.chain + payload):
            raise BrokenFrame
        at = Head(at.size + len(prefix) + size, chain)
        yield at, payload


def read_records(file: BinaryIO, start: Head, head: Head) -> Iterator[Logged]:
    """The records between two heads, the chain checked; LOG_CORRUPT unless it leads to ``head``."""
    at = start
    try:
        for at, payload in read_frames(file, start) if start.size < head.size else ():
            yield Logged(at, payload, parse_record(payload))
            if at.size >= head.size:
                break
    except BrokenFrame:
        raise corrupt("a record before its head is broken") from None
    if at != head:
        raise corrupt("it does not lead to its head")


def parse_record(payload: bytes) -> LogRecord:
    """The record in a payload; LOG_CORRUPT if it is of no kind that this version knows."""
    try:
        record = LogRecord.FromString(payload)
    except DecodeError:
        raise corrupt("a record is not readable") from None
    if record.WhichOneof("event") is None:
        raise corrupt("a record is of a kind that this version does not know")
    return record


def corrupt(how: str) -> IntegrityLost:
    """LOG_CORRUPT."""
    return IntegrityLost(Reason.LOG_CORRUPT, f"the release log is corrupt: {how}")


def rolled_back(signed: int, found: int) -> IntegrityLost:
    """LOG_ROLLED_BACK: somebody has seen more of the log than there is."""
    return IntegrityLost(
        Reason.LOG_ROLLED_BACK,
        f"the release log has {found} records and {signed} were signed:"
        " an old copy of it was put back",
    )
