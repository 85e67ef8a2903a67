"""A 32-byte key split among officers: any ``threshold`` of the shares give it, fewer say nothing.

Shamir, "How to share a secret" (CACM 22, 1979), over GF(2^128) as PyCryptodome has it. It takes
secrets of 16 bytes, so each half of the key is split by itself, with coefficients of its own; why
both halves, and how a wrong share is found out: docs/adr/0007.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from Crypto.Protocol.SecretSharing import Shamir

from gridveil.config import Section, hex_bytes
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, KEY_BYTES, sha256, text, u8

FEWEST = 2
"""With a threshold of one, each officer alone could start the key-holder."""
MOST = 16
"""Shares of one key: officers, not machines."""
LONGEST_SHARE = 2048
"""Bytes of one share's file; a whole one has about 500."""

_FORMAT = "gridveil/v1/key-share"
_HALF = 16


@dataclass(frozen=True)
class Split:
    """One splitting of one key."""

    city_id: bytes
    split_id: bytes
    """Random, 16 bytes: a key that is split again gets shares that do not fit the old ones."""
    threshold: int
    count: int

    @classmethod
    def new(cls, city_id: bytes, threshold: int, count: int) -> Split:
        """A fresh one; CONFIG_INVALID unless 2 <= threshold <= count <= 16."""
        split = cls(city_id, secrets.token_bytes(ID_BYTES), threshold, count)
        if not split.is_possible:
            raise _invalid(f"a key is split for {FEWEST} <= threshold <= shares <= {MOST}")
        return split

    @property
    def is_possible(self) -> bool:
        return FEWEST <= self.threshold <= self.count <= MOST

    def encode(self) -> bytes:
        ids = text(_FORMAT) + self.city_id + self.split_id
        return ids + u8(self.threshold) + u8(self.count)


class ShareFile(Section, frozen=True, kw_only=True):
    """A share as JSON."""

    format: str
    city_id: str
    split_id: str
    threshold: int
    shares: int
    index: int
    share: str
    checksum: str


@dataclass(frozen=True)
class Share:
    """What one officer keeps."""

    split: Split
    index: int
    """From 1 to the count of shares."""
    value: bytes
    """32 bytes: the share of either half."""

    @property
    def digest(self) -> bytes:
        """Names the share and reveals nothing: its value is as hard to guess as the key."""
        return sha256(self.split.encode() + u8(self.index) + self.value)

    def to_file(self) -> ShareFile:
        return ShareFile(
            format=_FORMAT,
            city_id=self.split.city_id.hex(),
            split_id=self.split.split_id.hex(),
            threshold=self.split.threshold,
            shares=self.split.count,
            index=self.index,
            share=self.value.hex(),
            checksum=self.digest.hex(),
        )

    def encode(self) -> bytes:
        """The bytes of the share's file."""
        return msgspec.json.format(msgspec.json.encode(self.to_file()), indent=2) + b"\n"

    @classmethod
    def decode(cls, data: bytes, name: str) -> Share:
        """The share in a file; CONFIG_INVALID names the file and what is wrong with it."""
        if len(data) > LONGEST_SHARE:
            raise _invalid(f"{name} is not a share of a key")
        try:
            file = msgspec.json.decode(data, type=ShareFile)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _invalid(f"{name} is not a share of a key") from None
        return cls.from_file(file, name)

    @classmethod
    def from_file(cls, file: ShareFile, name: str) -> Share:
        """As :meth:`decode`, from a parsed file."""
        if file.format != _FORMAT:
            raise _invalid(f"{name} is not a share of a key")
        try:
            split = Split(
                hex_bytes(file.city_id, ID_BYTES, "city_id"),
                hex_bytes(file.split_id, ID_BYTES, "split_id"),
                file.threshold,
                file.shares,
            )
            value = hex_bytes(file.share, KEY_BYTES, "share")
            checksum = hex_bytes(file.checksum, DIGEST_BYTES, "checksum")
        except MalformedInput as error:
            raise _invalid(f"{name} is damaged: {error.message}") from None
        if not split.is_possible or not 1 <= file.index <= split.count:
            raise _invalid(f"{name} is damaged: its numbers do not fit each other")
        share = cls(split, file.index, value)
        if share.digest != checksum:
            raise _invalid(f"{name} is damaged: its checksum is another")
        return share

    def __repr__(self) -> str:
        return f"Share({self.index} of {self.split.count})"


def split_key(key: bytearray, split: Split) -> list[Share]:
    """The shares of a 32-byte key, the first with index 1."""
    low, high = (
        Shamir.split(split.threshold, split.count, bytes(half), ssss=False)
        for half in (key[:_HALF], key[_HALF:])
    )
    return [
        Share(split, index, first + second)
        for (index, first), (_, second) in zip(low, high, strict=True)
    ]


def combine_shares(shares: Sequence[Share]) -> bytearray:
    """The key of exactly ``threshold`` distinct shares; of wrong ones, some other 32 bytes."""
    return bytearray().join(
        Shamir.combine([(s.index, s.value[at : at + _HALF]) for s in shares], ssss=False)
        for at in (0, _HALF)
    )


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
