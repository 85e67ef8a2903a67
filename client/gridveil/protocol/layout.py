"""Fixed binary layouts: what is hashed and signed, byte for byte (docs/protocol.md, "Layouts").

Integers are little-endian and unsigned, but for an i64. A text is one length byte and that many
ASCII bytes; a blob is a 32-bit length and that many bytes. Every layout starts with its domain as
a text, so that no bytes signed for one purpose are valid for another.
"""

from __future__ import annotations

import hashlib

from gridveil.protocol.errors import MalformedInput, Reason

ID_BYTES = 16
DIGEST_BYTES = 32
KEY_BYTES = 32
SIGNATURE_BYTES = 64


def sha256(data: bytes | memoryview) -> bytes:
    """SHA-256 (FIPS 180-4), 32 bytes."""
    return hashlib.sha256(data).digest()


def u8(value: int) -> bytes:
    """One byte."""
    return value.to_bytes(1, "little")


def u16(value: int) -> bytes:
    """Two bytes, little-endian."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Four bytes, little-endian."""
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    """Eight bytes, little-endian."""
    return value.to_bytes(8, "little")


def i64(value: int) -> bytes:
    """Eight bytes, little-endian, two's complement."""
    return value.to_bytes(8, "little", signed=True)


def text(value: str) -> bytes:
    """One length byte, then ASCII."""
    raw = value.encode("ascii")
    return u8(len(raw)) + raw


def blob(value: bytes) -> bytes:
    """32-bit length, then the bytes."""
    return u32(len(value)) + value


def fixed(value: bytes, size: int, field: str) -> bytes:
    """``value`` if it has exactly ``size`` bytes.

    Raises:
        MalformedInput: FIELD_REQUIRED if it is empty, FIELD_FORMAT for another length; both name
            the field.
    """
    if not value:
        raise MalformedInput(Reason.FIELD_REQUIRED, f"{field} is required", field=field)
    if len(value) != size:
        raise MalformedInput(Reason.FIELD_FORMAT, f"{field} must be {size} bytes", field=field)
    return value


class Reader:
    """Strict reader of one layout: exact lengths, exact domain, nothing left over."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise self._malformed("is too short")
        part = self._data[self._at : end]
        self._at = end
        return part

    def uint(self, size: int) -> int:
        """Unsigned little-endian integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def int64(self) -> int:
        """Signed little-endian integer of eight bytes."""
        return int.from_bytes(self.take(8), "little", signed=True)

    def text(self) -> str:
        """A text: one length byte, then ASCII."""
        try:
            return self.take(self.uint(1)).decode("ascii")
        except UnicodeDecodeError:
            raise self._malformed("holds text that is not ASCII") from None

    def blob(self, limit: int) -> bytes:
        """A blob of at most ``limit`` bytes."""
        size = self.uint(4)
        if size > limit:
            raise self._malformed("holds a blob beyond its limit")
        return self.take(size)

    def domain(self, expected: str) -> None:
        """The layout's domain, exactly."""
        if self.take(len(expected) + 1) != text(expected):
            raise self._malformed("has another domain")

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise self._malformed("has trailing bytes")

    def _malformed(self, how: str) -> MalformedInput:
        return MalformedInput(Reason.MALFORMED_MESSAGE, f"{self._what} {how}")
