"""Frames of DLMS/COSEM pushes: bytes of a stream in, APDUs out (IEC 62056-46 and -47).

A frame of HDLC begins with 7E and says its length; a wrapper of TCP has version 1. What is not one
whole frame with right checksums is a fault that names itself and is dropped; the next one is read
as if nothing had been. dlms-cosem computes checksums and reads headers; its own frame classes
refuse addresses that meters have (zero, and of four bytes), so what is around them is cut here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from gridveil.protocol.errors import MalformedInput, Reason

MOST_BYTES = 16_384
"""Of an APDU, whatever it is cut into; a push of all registers has some 600."""

_FLAG = 0x7E
_FORMAT, _SEGMENTED, _LENGTH = 0xA0, 0x08, 0x07FF
_LEAST_FRAME = 7
"""Format, two addresses, control and checksum."""

_UNNUMBERED = 0x03
_FINAL = 0x10
_LLC = b"\xe6\xe7\x00"
_WRAPPER = b"\x00\x01"
_HEADER = 8
_MOST_ADDRESS = 4


class Pushes:
    """Cuts a stream into APDUs. Holds at most one of them, and one frame.

    A stream that begins with a wrapper is one of wrappers; any other is one of frames, which may
    be joined in the midst.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wrapped: bool | None = None
        self._segments = b""

    def feed(self, data: bytes) -> Iterator[bytes | MalformedInput]:
        """APDUs that are complete with ``data``, and a fault for each frame that is none."""
        self._buffer += data
        while self._aligned():
            wrapped = self._buffer[0] != _FLAG
            size = self._wrapper_size() if wrapped else self._frame_size()
            if size is None:
                return
            if isinstance(size, MalformedInput):
                del self._buffer[:1]
                yield size
                continue
            if len(self._buffer) < size:
                return
            yield from self._take_wrapper(size) if wrapped else self._take_frame(size)

    def _aligned(self) -> bool:
        """Drop what begins no frame; whether anything is left."""
        if self._wrapped is None:
            if len(self._buffer) < len(_WRAPPER):
                return False
            self._wrapped = self._buffer.startswith(_WRAPPER)
        wrapper = self._buffer.find(_WRAPPER) if self._wrapped else -1
        starts = [at for at in (self._buffer.find(_FLAG), wrapper) if at >= 0]
        keep = min(starts) if starts else len(self._buffer) - self._buffer.endswith(b"\0")
        del self._buffer[:keep]
        if self._buffer == b"\0":
            return False
        while bytes(self._buffer[:2]) in {b"\x7e\x7e", b"\x7e\x00"}:
            del self._buffer[:1]
        return bool(self._buffer)

    def _frame_size(self) -> int | MalformedInput | None:
        """Of the frame with both flags; None if that is not there yet."""
        if len(self._buffer) < 3:
            return None
        if self._buffer[1] & 0xF0 != _FORMAT:
            return fault("frame", "no frame format of type 3")
        length = int.from_bytes(self._buffer[1:3], "big") & _LENGTH
        return length + 2 if length >= _LEAST_FRAME else fault("frame", "shorter than its header")

    def _wrapper_size(self) -> int | MalformedInput | None:
        from dlms_cosem.protocol.wrappers import WrapperHeader

        if len(self._buffer) < _HEADER:
            return None
        length: int = WrapperHeader.from_bytes(bytes(self._buffer[:_HEADER])).length
        if not 0 < length <= MOST_BYTES:
            return fault("length", f"empty, or longer than {MOST_BYTES:,} bytes")
        return _HEADER + length

    def _take_wrapper(self, size: int) -> Iterator[bytes]:
        apdu = bytes(self._buffer[_HEADER:size])
        del self._buffer[:size]
        yield apdu

    def _take_frame(self, size: int) -> Iterator[bytes | MalformedInput]:
        frame = bytes(self._buffer[:size])
        if frame[-1] != _FLAG:
            del self._buffer[:1]
            yield fault("cut_off", "cut off: its end is not where its length says")
            return
        # Its last flag may be the first one of the next frame.
        del self._buffer[: size - 1]
        content = frame[1:-3]
        if _checksum(content) != frame[-3:-1]:
            yield fault("checksum", "the checksum of a frame is wrong")
            return
        yield from self._take_content(content)

    def _take_content(self, content: bytes) -> Iterator[bytes | MalformedInput]:
        self._wrapped = False
        header = _header_size(content)
        if header is None or len(content) == header:
            return
        if _checksum(content[:header]) != content[header : header + 2]:
            yield fault("checksum", "the checksum of a header is wrong")
            return
        yield from self._take_segment(content[header + 2 :], bool(content[0] & _SEGMENTED))

    def _take_segment(self, information: bytes, more: bool) -> Iterator[bytes | MalformedInput]:
        if self._segments and information.startswith(_LLC):
            self._segments = b""
            yield fault("cut_off", "cut off: another one begins before its last segment")
        whole = self._segments + information
        self._segments = b""
        if not whole.startswith(_LLC):
            yield fault("frame", "no LLC header of a meter")
        elif len(whole) > MOST_BYTES:
            yield fault("length", f"longer than {MOST_BYTES:,} bytes")
        elif more:
            self._segments = whole
        else:
            yield whole[len(_LLC) :]


def _header_size(content: bytes) -> int | None:
    """Bytes before the header's checksum; None for a frame that carries no information."""
    at = 2
    for _ in range(2):
        end = at
        while end < len(content) and not content[end] & 1:
            end += 1
        at = end + 1
        if end - at >= _MOST_ADDRESS:
            return None
    if at >= len(content):
        return None
    control = content[at] & ~_FINAL
    carries = control == _UNNUMBERED or not control & 1
    return at + 1 if carries else None


def _checksum(data: bytes) -> bytes:
    found: bytes = _crc().calculate_for(data)
    return found


@cache
def _crc() -> Any:
    from dlms_cosem.crc import CRCCCITT

    return CRCCCITT()


def fault(name: str, what: str) -> MalformedInput:
    """READING_INVALID, naming what is wrong with a push; never a value or byte of it."""
    return MalformedInput(Reason.READING_INVALID, f"push: {what}", fault=name)
