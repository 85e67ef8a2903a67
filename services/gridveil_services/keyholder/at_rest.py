"""Secrets at rest: AES-256-GCM (NIST SP 800-38D) under a key that is kept in a file.

The key-encrypting key is meant to lie elsewhere than the state it protects: a copy of the state
alone, or a backup of it, opens nothing.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridveil.files import write_durably
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES, fixed, text

NO_EPOCH = bytes(ID_BYTES)
"""In the place of an epoch id, for what outlives epochs."""

_DOMAIN = "gridveil/v1/at-rest"
_NONCE_BYTES = 12
_OTHERS = 0o007
_GROUP_WRITES = 0o020


def create_key_file(path: Path) -> None:
    """Write a fresh key-encrypting key for its owner only; CONFIG_INVALID if there is one."""
    if path.exists():
        raise MalformedInput(Reason.CONFIG_INVALID, "there is a key-encrypting key already")
    write_durably(path, secrets.token_bytes(KEY_BYTES), mode=0o600)


class AtRest:
    """Seals and opens the secrets of one city."""

    def __init__(self, key: bytes, city_id: bytes) -> None:
        self._cipher = AESGCM(fixed(key, KEY_BYTES, "key"))
        self._city_id = city_id

    @classmethod
    def load(cls, path: Path, city_id: bytes) -> AtRest:
        """With the key in a file.

        Raises:
            MalformedInput: CONFIG_INVALID for a file that cannot be read, is not 32 bytes long,
                or is open to everybody on the machine.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                key = file.read(KEY_BYTES + 1)
        except OSError:
            raise _refused("cannot be read") from None
        if mode & (_OTHERS | _GROUP_WRITES):
            raise _refused("must not be readable by others nor writable by its group")
        if len(key) != KEY_BYTES:
            raise _refused(f"must be {KEY_BYTES} bytes long")
        return cls(key, city_id)

    def seal(self, purpose: str, epoch_id: bytes, secret: bytes) -> bytes:
        """Nonce, ciphertext and tag; bound to the city, the purpose and the epoch."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, self._associated(purpose, epoch_id))

    def open(self, purpose: str, epoch_id: bytes, sealed: bytes) -> bytes:
        """The secret; PARTIAL_CORRUPT for another key, purpose, epoch or city, or changed bytes."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, self._associated(purpose, epoch_id))
        except (InvalidTag, ValueError):
            raise IntegrityLost(
                Reason.PARTIAL_CORRUPT,
                f"the stored {purpose} does not open: another key-encrypting key, or damage",
            ) from None

    def _associated(self, purpose: str, epoch_id: bytes) -> bytes:
        return text(_DOMAIN) + text(purpose) + self._city_id + fixed(epoch_id, ID_BYTES, "epoch_id")


def _refused(how: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"key_encrypting_key_file {how}")
