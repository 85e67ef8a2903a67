"""The key-encrypting key, sealed under a key that is split among officers.

The file says which shares belong to it, by their digests, so that a wrong or foreign share is named
before anything is opened. Nothing in it is secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridveil.config import Section, hex_bytes
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, KEY_BYTES, text
from gridveil_services.keyholder.at_rest import wipe
from gridveil_services.keyholder.key_shares import Share, Split, combine_shares, split_key

_FORMAT = "gridveil/v1/sealed-key"
_NONCE_BYTES = 12
_TAG_BYTES = 16


class _SealedFile(Section, frozen=True, kw_only=True):
    format: str
    city_id: str
    split_id: str
    threshold: int
    digests: list[str]
    sealed: str


@dataclass(frozen=True)
class SealedKey:
    """A sealed key-encrypting key and the shares that open it."""

    split: Split
    digests: tuple[bytes, ...]
    """Of every share, by index."""
    sealed: bytes
    """Nonce, ciphertext and tag (AES-256-GCM), bound to all of the above."""

    @classmethod
    def seal(cls, key: bytearray, split: Split) -> tuple[SealedKey, list[Share]]:
        """A key-encrypting key under a fresh key, and the shares of that."""
        wrapping = bytearray(secrets.token_bytes(KEY_BYTES))
        try:
            shares = split_key(wrapping, split)
            digests = tuple(share.digest for share in shares)
            nonce = secrets.token_bytes(_NONCE_BYTES)
            body = AESGCM(wrapping).encrypt(nonce, key, _associated(split, digests))
        finally:
            wipe(wrapping)
        return cls(split, digests, nonce + body), shares

    def check(self, share: Share, name: str) -> None:
        """CONFIG_INVALID, naming it, for a share that is not one of these."""
        if share.split.city_id != self.split.city_id:
            raise _invalid(f"{name} is a share of another city's key")
        if share.split != self.split:
            raise _invalid(
                f"{name} is a share of another split: the key was split again, or before"
            )
        if share.digest != self.digests[share.index - 1]:
            raise _invalid(f"{name} is not the share that was given out")

    def open(self, shares: Sequence[Share]) -> bytearray:
        """The key-encrypting key, 32 bytes, of checked shares; the caller wipes it.

        Raises:
            MalformedInput: CONFIG_INVALID for a share given twice, or too few.
            IntegrityLost: PARTIAL_CORRUPT if the file does not open with the right shares.
        """
        indexes = [share.index for share in shares]
        for at, index in enumerate(indexes):
            if index in indexes[:at]:
                raise _invalid(f"share {index} was given twice")
        needed = self.split.threshold
        if len(shares) < needed:
            raise _invalid(f"{needed} different shares are needed, {len(shares)} given")
        wrapping = combine_shares(shares[:needed])
        key = bytearray(KEY_BYTES)
        nonce, body = self.sealed[:_NONCE_BYTES], self.sealed[_NONCE_BYTES:]
        try:
            associated = _associated(self.split, self.digests)
            AESGCM(wrapping).decrypt_into(nonce, body, associated, key)
        except (InvalidTag, ValueError):
            raise _damaged() from None
        finally:
            wipe(wrapping)
        return key

    def encode(self) -> bytes:
        """The bytes of the file."""
        file = _SealedFile(
            format=_FORMAT,
            city_id=self.split.city_id.hex(),
            split_id=self.split.split_id.hex(),
            threshold=self.split.threshold,
            digests=[digest.hex() for digest in self.digests],
            sealed=self.sealed.hex(),
        )
        return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"

    @classmethod
    def load(cls, path: Path, city_id: bytes) -> SealedKey:
        """The sealed key in a file.

        Raises:
            MalformedInput: CONFIG_INVALID if it cannot be read or is another city's.
            IntegrityLost: PARTIAL_CORRUPT if it is damaged.
        """
        try:
            data = path.read_bytes()
        except OSError:
            raise _invalid("sealed_key_encrypting_key_file cannot be read") from None
        sealed = cls.decode(data)
        if sealed.split.city_id != city_id:
            raise _invalid("sealed_key_encrypting_key_file is another city's")
        return sealed

    @classmethod
    def decode(cls, data: bytes) -> SealedKey:
        """As :meth:`encode` wrote it; PARTIAL_CORRUPT otherwise."""
        try:
            file = msgspec.json.decode(data, type=_SealedFile)
            city_id = hex_bytes(file.city_id, ID_BYTES, "city_id")
            split_id = hex_bytes(file.split_id, ID_BYTES, "split_id")
            digests = tuple(hex_bytes(each, DIGEST_BYTES, "digests") for each in file.digests)
            size = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
            sealed = hex_bytes(file.sealed, size, "sealed")
        except (msgspec.DecodeError, UnicodeDecodeError, MalformedInput):
            raise _damaged() from None
        split = Split(city_id, split_id, file.threshold, len(digests))
        if file.format != _FORMAT or not split.is_possible:
            raise _damaged()
        return cls(split, digests, sealed)


def _associated(split: Split, digests: Sequence[bytes]) -> bytes:
    return text(_FORMAT) + split.encode() + b"".join(digests)


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)


def _damaged() -> IntegrityLost:
    return IntegrityLost(
        Reason.PARTIAL_CORRUPT, "the sealed key-encrypting key is damaged: nothing opens it"
    )
