"""Signed notes (C2SP signed-note) and cosignatures (C2SP tlog-cosignature), with Ed25519.

A note is a text, an empty line, and signature lines::

    — <key name> base64(key id || signature)

A key id is the first four bytes of SHA-256(name || newline || type || public key). Keys are written
as ``name+hex(key id)+base64(type || public key)``, as other implementations of notes do.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nacl.signing import SigningKey

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import KEY_BYTES, SIGNATURE_BYTES, sha256
from gridveil.protocol.signing import is_signed_by, sign

MOST_SIGNATURES = 16
"""Signature lines that are read of one note."""
NOTE_BYTES = 16_384
"""Longest note that is read."""

_KEY_ID_BYTES = 4
_TIMESTAMP_BYTES = 8
_DASH = "— "


class SignatureType(IntEnum):
    """What a key signs, the assigned identifier bytes."""

    ED25519 = 0x01
    """The note's text."""
    COSIGNATURE = 0x04
    """A time and the note's text, by a witness."""


@dataclass(frozen=True)
class NoteKey:
    """A public key by its name, as others must know it."""

    name: str
    type: SignatureType
    public_key: bytes

    def __post_init__(self) -> None:
        spaced = any(letter.isspace() or not letter.isprintable() for letter in self.name)
        if not self.name or "+" in self.name or spaced:
            raise _malformed("a note key's name is empty or has a space or plus sign")
        if len(self.public_key) != KEY_BYTES:
            raise _malformed("a note key is not an Ed25519 key")

    @property
    def key_id(self) -> bytes:
        """4 bytes."""
        data = self.name.encode() + b"\n" + bytes([self.type]) + self.public_key
        return sha256(data)[:_KEY_ID_BYTES]

    def encode(self) -> str:
        """``name+hex(key id)+base64(type || public key)``."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(bytes([self.type]) + self.public_key)}"

    @classmethod
    def decode(cls, text: str) -> NoteKey:
        """The key in its written form, or FIELD_FORMAT."""
        name, _, rest = text.partition("+")
        hex_id, _, encoded = rest.partition("+")
        raw = _from_base64(encoded)
        if raw[:1] not in (b"\x01", b"\x04"):
            raise _malformed("a note key has an unknown type")
        key = cls(name, SignatureType(raw[0]), raw[1:])
        if key.encode() != text or key.key_id.hex() != hex_id:
            raise _malformed("a note key does not have its key id")
        return key


@dataclass(frozen=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_id: bytes
    signature: bytes
    """64 bytes; a cosignature has its time before them, 8 bytes big-endian."""

    def encode(self) -> bytes:
        """The line, with its newline."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.signature)}\n".encode()

    @classmethod
    def decode(cls, line: str) -> NoteSignature:
        """The signature in a line without its newline, or MALFORMED_MESSAGE."""
        name, space, encoded = line.removeprefix(_DASH).partition(" ")
        raw = _from_base64(encoded)
        if not line.startswith(_DASH) or not name or not space or len(raw) <= _KEY_ID_BYTES:
            raise _malformed("a signature line of a note is not one")
        if "+" in name or any(letter.isspace() for letter in name):
            raise _malformed("a name in a note has a space or plus sign")
        return cls(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


@dataclass(frozen=True)
class Note:
    """A text with signatures, none of them checked yet."""

    text: bytes
    """UTF-8, with its last newline."""
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The whole note."""
        return self.text + b"\n" + b"".join(line.encode() for line in self.signatures)

    @classmethod
    def decode(cls, data: bytes) -> Note:
        """The note in ``data``, or MALFORMED_MESSAGE. Only one encoding is accepted."""
        text, blank, lines = data.rpartition(b"\n\n")
        if len(data) > NOTE_BYTES or not blank or not lines.endswith(b"\n"):
            raise _malformed("a note has no text, no signatures, or is too long")
        try:
            shown = data.decode()
        except UnicodeDecodeError:
            raise _malformed("a note is not UTF-8") from None
        if any(letter < " " and letter != "\n" for letter in shown):
            raise _malformed("a note has control characters")
        found = lines.decode()[:-1].split("\n")
        if len(found) > MOST_SIGNATURES:
            raise _malformed("a note has too many signatures")
        return cls(text + b"\n", tuple(NoteSignature.decode(line) for line in found))

    def is_signed_by(self, key: NoteKey) -> bool:
        """Whether there is a signature of this key; SIGNATURE_INVALID if it is a wrong one."""
        mine = [
            line.signature
            for line in self.signatures
            if (line.name, line.key_id) == (key.name, key.key_id)
        ]
        if not all(_holds(key, self.text, signature) for signature in mine):
            raise NotAuthentic(Reason.SIGNATURE_INVALID, "a note has a wrong signature")
        return bool(mine)

    def with_signatures(self, lines: Sequence[NoteSignature]) -> Note:
        """The same text with further signatures."""
        return Note(self.text, (*self.signatures, *lines))


def sign_note(text: bytes, name: str, key: SigningKey) -> NoteSignature:
    """An Ed25519 signature of a note's text."""
    public = NoteKey(name, SignatureType.ED25519, bytes(key.verify_key))
    return NoteSignature(name, public.key_id, sign(key, text))


def cosign(text: bytes, name: str, key: SigningKey, time: int) -> NoteSignature:
    """A witness's cosignature of a checkpoint's text, at ``time`` (Unix seconds)."""
    public = NoteKey(name, SignatureType.COSIGNATURE, bytes(key.verify_key))
    signature = sign(key, _cosigned(text, time))
    return NoteSignature(name, public.key_id, time.to_bytes(_TIMESTAMP_BYTES, "big") + signature)


def _holds(key: NoteKey, text: bytes, signature: bytes) -> bool:
    if key.type is SignatureType.ED25519:
        return is_signed_by(key.public_key, text, signature)
    if len(signature) != _TIMESTAMP_BYTES + SIGNATURE_BYTES:
        return False
    time = int.from_bytes(signature[:_TIMESTAMP_BYTES], "big")
    message = _cosigned(text, time)
    return time < 2**63 and is_signed_by(key.public_key, message, signature[_TIMESTAMP_BYTES:])


def _cosigned(text: bytes, time: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % time + text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Unused bits of the last letter must be zero: one encoding for each value.
    if not raw or _base64(raw) != text:
        raise _malformed("base64 in a note is not canonical")
    return raw


def _malformed(how: str) -> MalformedInput:
    return MalformedInput(Reason.MALFORMED_MESSAGE, how)
