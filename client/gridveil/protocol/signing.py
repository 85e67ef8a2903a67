"""Ed25519 (RFC 8032) signatures over domain-separated layouts, through libsodium.

libsodium refuses non-canonical S and small-order keys and points, so a signature cannot be
altered into another valid one.
"""

from __future__ import annotations

from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey

from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.protocol.layout import KEY_BYTES, SIGNATURE_BYTES

__all__ = ["SigningKey", "is_signed_by", "sign", "verify"]


def sign(key: SigningKey, message: bytes) -> bytes:
    """Detached Ed25519 signature of ``message``, 64 bytes. ``message`` starts with its domain."""
    return key.sign(message).signature


def is_signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (64 bytes) of ``message`` is by ``public_key`` (32 bytes)."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != KEY_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except (BadSignatureError, CryptoError):
        return False
    return True


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raise SIGNATURE_MISSING or SIGNATURE_INVALID unless the signature is right."""
    if not signature:
        raise NotAuthentic(Reason.SIGNATURE_MISSING, "a signature is required")
    if not is_signed_by(public_key, message, signature):
        raise NotAuthentic(Reason.SIGNATURE_INVALID, "the signature is not valid")
