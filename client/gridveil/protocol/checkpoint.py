"""Checkpoints (C2SP tlog-checkpoint): the release log's tree head in a signed note.

The text has three lines: the origin, the number of records in decimal, the root in base64. Its
first letter is ``g``, and no layout of Gridveil has a domain of 103 letters: a checkpoint cannot
be taken for anything else that the identity key signs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from nacl.signing import SigningKey

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason, Unavailable
from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.note import Note, NoteKey, SignatureType, sign_note

_LINES = 3


def log_origin(city_id: bytes) -> str:
    """Names a city's log, and the key that signs it: ``gridveil/`` and the city id in hex."""
    return f"gridveil/{city_id.hex()}"


def log_key(city_id: bytes, identity_key: bytes) -> NoteKey:
    """The identity key as the key of the city's log."""
    return NoteKey(log_origin(city_id), SignatureType.ED25519, identity_key)


@dataclass(frozen=True)
class TreeHead:
    """A log at one size."""

    origin: str
    size: int
    """Records."""
    root: bytes
    """RFC 9162 root over them, 32 bytes."""

    def encode(self) -> bytes:
        """The text of the checkpoint."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @classmethod
    def decode(cls, text: bytes) -> TreeHead:
        """The tree head in a text, or MALFORMED_MESSAGE; extension lines are refused."""
        lines = text.decode(errors="replace").split("\n")
        if len(lines) != _LINES + 1 or not lines[1].isascii() or not lines[1].isdigit():
            raise _malformed()
        # Longer numbers are no sizes, and slow to read.
        size = int(lines[1]) if len(lines[1]) <= len(str(2**63)) else -1
        try:
            head = cls(lines[0], size, base64.b64decode(lines[2]))
        except ValueError:
            raise _malformed() from None
        if not 0 <= size < 2**63 or len(head.root) != DIGEST_BYTES or head.encode() != text:
            raise _malformed()
        return head

    def sign(self, key: SigningKey) -> Note:
        """The checkpoint, signed by the log."""
        text = self.encode()
        return Note(text, (sign_note(text, self.origin, key),))


@dataclass(frozen=True)
class WitnessPolicy:
    """How many of which witnesses must have cosigned a checkpoint."""

    threshold: int = 0
    witnesses: tuple[NoteKey, ...] = ()

    def __post_init__(self) -> None:
        names = {key.name for key in self.witnesses}
        keys = {key.public_key for key in self.witnesses}
        if not 0 <= self.threshold <= len(self.witnesses):
            raise MalformedInput(
                Reason.CONFIG_INVALID, "the threshold is at most the number of witnesses"
            )
        if not len(names) == len(keys) == len(self.witnesses):
            raise MalformedInput(Reason.CONFIG_INVALID, "a witness is named twice")
        if any(key.type is not SignatureType.COSIGNATURE for key in self.witnesses):
            raise MalformedInput(Reason.CONFIG_INVALID, "a witness's key has type 4")

    def is_met(self, note: Note) -> bool:
        """Whether enough witnesses cosigned; SIGNATURE_INVALID if one of them did not really."""
        return sum(note.is_signed_by(key) for key in self.witnesses) >= self.threshold


NO_WITNESSES = WitnessPolicy()


@dataclass(frozen=True)
class Checkpoint:
    """A tree head and the note that proves it."""

    head: TreeHead
    note: bytes


def open_checkpoint(data: bytes, key: NoteKey, policy: WitnessPolicy = NO_WITNESSES) -> Checkpoint:
    """The checkpoint in a note that the log's key signed.

    Raises:
        MalformedInput: MALFORMED_MESSAGE.
        NotAuthentic: KEY_NOT_PINNED if the log's key did not sign it; SIGNATURE_INVALID.
        Unavailable: NOT_WITNESSED if too few witnesses cosigned it.
    """
    note = Note.decode(data)
    if not note.is_signed_by(key):
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the checkpoint is not signed by the key-holder")
    head = TreeHead.decode(note.text)
    if head.origin != key.name:
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the checkpoint is of another log")
    if not policy.is_met(note):
        raise Unavailable(
            Reason.NOT_WITNESSED, "the checkpoint is not cosigned by enough witnesses"
        )
    return Checkpoint(head, data)


def cosignatures(data: bytes, witnesses: Sequence[NoteKey]) -> list[str]:
    """The names of those witnesses whose cosignature a checkpoint has."""
    note = Note.decode(data)
    return [key.name for key in witnesses if note.is_signed_by(key)]


def _malformed() -> MalformedInput:
    return MalformedInput(Reason.MALFORMED_MESSAGE, "the checkpoint is not one")
