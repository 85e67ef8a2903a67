"""A meter's own opened entry, for that meter alone: how it is found and how it is sealed.

    HMAC-SHA-512(sealing key of meter and epoch, domain || u64(window start)) = tag || key || unused

The key-holder publishes each opened entry under its tag, encrypted with XChaCha20-Poly1305 under
that key. Only the meter and the key-holder can compute either, so whoever holds or serves the file
learns how many meters reported and not which ones, and whoever asks for a tag is that meter.

A key is used for one message: a window is settled once. Its nonce is taken from the message all
the same.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from nacl import bindings
from nacl.exceptions import CryptoError

from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.protocol.layout import text, u64
from gridveil.protocol.release import OPENED_ENTRY_BYTES
from gridveil.protocol.sealing import NONCE_BYTES

TAG_BYTES = 16
SEALED_ENTRY_BYTES = OPENED_ENTRY_BYTES + 16

_KEY_END = TAG_BYTES + 32
_DOMAIN = text("gridveil/v1/own-entry")


class OwnEntryKey(NamedTuple):
    """What finds and opens one meter's entry of one window. A tuple: a release makes many."""

    tag: bytes
    key: bytes
    associated: bytes

    @classmethod
    def derive(cls, sealing_key: bytes, window_start: int) -> OwnEntryKey:
        """From the key that the meter seals its commitments of this epoch with (32 bytes)."""
        label = _DOMAIN + u64(window_start)
        derived = hmac.digest(sealing_key, label, "sha512")
        return cls(derived[:TAG_BYTES], derived[TAG_BYTES:_KEY_END], label)

    def seal(self, opened_entry: bytes, leaf: bytes) -> bytes:
        """The sealed entry, 244 bytes; ``leaf`` is its leaf hash."""
        sealed: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            opened_entry, self.associated, leaf[:NONCE_BYTES], self.key
        )
        return sealed

    def open(self, sealed: bytes, leaf: bytes) -> bytes:
        """The opened entry, 228 bytes, or SIGNATURE_INVALID if it is not this meter's."""
        try:
            if len(sealed) != SEALED_ENTRY_BYTES:
                raise CryptoError
            opened: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                sealed, self.associated, leaf[:NONCE_BYTES], self.key
            )
        except (CryptoError, ValueError):
            raise NotAuthentic(
                Reason.SIGNATURE_INVALID, "the entry was not sealed for this meter"
            ) from None
        return opened
