"""Secrets at rest: AES-256-GCM (NIST SP 800-38D) under a key that is kept in a file.

The key-encrypting key is meant to lie elsewhere than the state it protects: a copy of the state
alone, or a backup of it, opens nothing. What must be destroyed some day is sealed under a key of
its own, which is sealed in turn: whoever holds the key-encrypting key and a copy of the one file
without the other opens nothing either.
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
_TAG_BYTES = 16
_OTHERS = 0o007
_GROUP_WRITES = 0o020


def create_key_file(path: Path) -> None:
    """Write a fresh key-encrypting key for its owner only; CONFIG_INVALID if there is one."""
    if path.exists():
        raise MalformedInput(Reason.CONFIG_INVALID, "there is a key-encrypting key already")
    write_durably(path, secrets.token_bytes(KEY_BYTES), mode=0o600)


def read_key_file(path: Path) -> bytearray:
    """The key-encrypting key in a file, 32 bytes; the caller wipes it.

    Raises:
        MalformedInput: CONFIG_INVALID for a file that cannot be read, is not 32 bytes long, or is
            open to everybody on the machine.
    """
    key = bytearray(KEY_BYTES + 1)
    try:
        with path.open("rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            length = file.readinto(key)
    except OSError:
        raise _refused("cannot be read") from None
    if mode & (_OTHERS | _GROUP_WRITES):
        raise _refused("must not be readable by others nor writable by its group")
    if length != KEY_BYTES:
        raise _refused(f"must be {KEY_BYTES} bytes long")
    del key[KEY_BYTES:]
    return key


def destroy_file(path: Path) -> None:
    """Overwrite a file's bytes where they lie, durably, and remove it; nothing if it is gone.

    Best effort: a copy-on-write file system, the spare blocks of a solid-state disk, snapshots
    and backups may keep the old bytes. The caller syncs the folder.
    """
    try:
        # Not truncated: the same blocks are to be written. Random: zeros may become a hole.
        with path.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while (left := size - file.tell()) > 0:
                file.write(secrets.token_bytes(left))
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink()


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in memory: this copy of it, and none that was made on its way."""
    secret[:] = bytes(len(secret))


class AtRest:
    """Seals and opens the secrets of one city."""

    def __init__(self, key: bytes | bytearray, city_id: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise MalformedInput(Reason.FIELD_FORMAT, f"key must be {KEY_BYTES} bytes", field="key")
        self._cipher = AESGCM(key)
        self._city_id = city_id

    @classmethod
    def load(cls, path: Path, city_id: bytes) -> AtRest:
        """With the key in a file; raises what :func:`read_key_file` does."""
        key = read_key_file(path)
        try:
            return cls(key, city_id)
        finally:
            wipe(key)

    def with_new_key(self, purpose: str, epoch_id: bytes) -> tuple[bytes, AtRest]:
        """A fresh key: sealed, and ready to seal with."""
        key = bytearray(secrets.token_bytes(KEY_BYTES))
        try:
            return self.seal(purpose, epoch_id, key), AtRest(key, self._city_id)
        finally:
            wipe(key)

    def with_key(self, purpose: str, epoch_id: bytes, sealed: bytes) -> AtRest:
        """The key that :meth:`with_new_key` sealed; PARTIAL_CORRUPT as :meth:`open`."""
        key = self._opened(purpose, epoch_id, sealed)
        try:
            return AtRest(key, self._city_id)
        finally:
            wipe(key)

    def seal(self, purpose: str, epoch_id: bytes, secret: bytes | bytearray) -> bytes:
        """Nonce, ciphertext and tag; bound to the city, the purpose and the epoch."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, self._associated(purpose, epoch_id))

    def open(self, purpose: str, epoch_id: bytes, sealed: bytes) -> bytes:
        """The secret; PARTIAL_CORRUPT for another key, purpose, epoch or city, or changed bytes."""
        opened = self._opened(purpose, epoch_id, sealed)
        try:
            return bytes(opened)
        finally:
            wipe(opened)

    def _opened(self, purpose: str, epoch_id: bytes, sealed: bytes) -> bytearray:
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        opened = bytearray(max(0, len(body) - _TAG_BYTES))
        try:
            self._cipher.decrypt_into(nonce, body, self._associated(purpose, epoch_id), opened)
        except (InvalidTag, ValueError):
            raise IntegrityLost(
                Reason.PARTIAL_CORRUPT,
                f"the stored {purpose} does not open: another key-encrypting key, or damage",
            ) from None
        return opened

    def _associated(self, purpose: str, epoch_id: bytes) -> bytes:
        return text(_DOMAIN) + text(purpose) + self._city_id + fixed(epoch_id, ID_BYTES, "epoch_id")


def _refused(how: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"key_encrypting_key_file {how}")
