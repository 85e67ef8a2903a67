"""What a log sends to a witness (C2SP tlog-witness, ``add-checkpoint``), and its answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.merkle import PROOF_LIMIT
from gridveil.protocol.note import NOTE_BYTES, Note, NoteSignature

PATH = "/add-checkpoint"
SIZE_TYPE = "text/x.tlog.size"
"""Content type of an answer that names the size a witness has seen."""
REQUEST_BYTES = NOTE_BYTES + 64 * (PROOF_LIMIT + 1)


@dataclass(frozen=True)
class AddCheckpoint:
    """A checkpoint, and the proof that it goes on from the one that the witness saw last."""

    old_size: int
    proof: tuple[bytes, ...]
    note: Note

    def encode(self) -> bytes:
        """The request's body."""
        hashes = b"".join(base64.b64encode(value) + b"\n" for value in self.proof)
        return b"old %d\n" % self.old_size + hashes + b"\n" + self.note.encode()

    @classmethod
    def decode(cls, data: bytes) -> AddCheckpoint:
        """The request in a body, or MALFORMED_MESSAGE."""
        head, blank, note = data.partition(b"\n\n")
        old, *hashes = head.split(b"\n")
        if not blank or not old.startswith(b"old ") or len(hashes) > PROOF_LIMIT:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "not a request to add a checkpoint")
        request = cls(parse_size(old[4:]), tuple(map(_hash, hashes)), Note.decode(note))
        if request.encode() != data:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "a request is not canonical")
        return request


def parse_size(text: bytes) -> int:
    """A tree size in decimal without leading zeros, or MALFORMED_MESSAGE."""
    if not text.isdigit() or len(text) > 19 or (text != b"0" and text.startswith(b"0")):
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not the size of a log")
    return int(text)


def parse_cosignatures(data: bytes) -> list[NoteSignature]:
    """The signature lines of a witness's answer, or MALFORMED_MESSAGE."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        lines = []
    if len(lines) < 2 or lines.pop():
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not an answer of a witness")
    return [NoteSignature.decode(line) for line in lines]


def encode_cosignatures(lines: Sequence[NoteSignature]) -> bytes:
    """A witness's answer."""
    return b"".join(line.encode() for line in lines)


def _hash(line: bytes) -> bytes:
    try:
        value = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != DIGEST_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not a hash")
    return value
