"""Edits of byte strings, and protobuf fields written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Edit = dict[str, Any]


def edit(at: int, delete: int, insert: str, repeat: int = 1) -> Edit:
    """Replace ``delete`` bytes at ``at`` by ``repeat`` times the bytes ``insert`` (hex)."""
    return {"at": at, "delete": delete, "insert": insert, "repeat": repeat}


def edited(data: bytes, edits: Iterable[Edit]) -> bytes:
    """``data`` after all edits, one after the other."""
    for change in edits:
        at, end = change["at"], change["at"] + change["delete"]
        data = data[:at] + bytes.fromhex(change["insert"]) * change["repeat"] + data[end:]
    return data


def varint(value: int) -> bytes:
    """A protobuf varint; negative numbers take ten bytes."""
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number_field(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value
