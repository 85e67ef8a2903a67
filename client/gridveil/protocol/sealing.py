"""Sealing a commitment to the key-holder's epoch key.

X25519 (RFC 7748), HKDF-SHA-256 (RFC 5869), XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) with the
first 24 bytes of h as nonce: a key belongs to one meter and epoch, and h to one window and
commitment, so no nonce meets a key twice with another message.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import bindings
from nacl.exceptions import CryptoError

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import KEY_BYTES, text

SEALED_BYTES = 48
NONCE_BYTES = 24

_KEY_DOMAIN = "gridveil/v1/seal-key"


def x25519_public(secret: bytes) -> bytes:
    """The X25519 public key of a 32-byte secret."""
    public: bytes = bindings.crypto_scalarmult_base(secret)
    return public


def check_x25519_public(public: bytes) -> None:
    """FIELD_FORMAT for a low-order point, with which every exchange fails."""
    _exchange(bytes(KEY_BYTES), public)


def shared_key(
    secret: bytes, public: bytes, city_id: bytes, epoch_id: bytes, meter_id: bytes
) -> bytes:
    """The sealing key of one meter and epoch, 32 bytes; the same from either side.

    Args:
        secret: one side's X25519 secret (the meter's, or the epoch's at the key-holder).
        public: the other side's X25519 public key; a low-order point is refused.
    """
    info = text(_KEY_DOMAIN) + city_id + epoch_id + meter_id
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(_exchange(secret, public))


def seal(key: bytes, commitment: bytes, commitment_hash: bytes, associated: bytes) -> bytes:
    """The sealed commitment, 48 bytes."""
    sealed: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        commitment, associated, commitment_hash[:NONCE_BYTES], key
    )
    return sealed


def open_sealed(key: bytes, sealed: bytes, commitment_hash: bytes, associated: bytes) -> bytes:
    """The commitment inside, or SIGNATURE_INVALID if the seal is not whole."""
    if len(sealed) != SEALED_BYTES:
        raise _does_not_open()
    try:
        commitment: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            sealed, associated, commitment_hash[:NONCE_BYTES], key
        )
    except CryptoError:
        raise _does_not_open() from None
    return commitment


def _exchange(secret: bytes, public: bytes) -> bytes:
    try:
        exchanged: bytes = bindings.crypto_scalarmult(secret, public)
    except CryptoError:
        raise MalformedInput(Reason.FIELD_FORMAT, "not an X25519 key", field="x25519") from None
    return exchanged


def _does_not_open() -> NotAuthentic:
    return NotAuthentic(Reason.SIGNATURE_INVALID, "the seal does not open")
