"""The key-holder's identity: the Ed25519 key that every meter pins."""

from __future__ import annotations

from pathlib import Path

from gridveil.files import make_folder, write_durably
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import KEY_BYTES
from gridveil.protocol.signing import SigningKey
from gridveil_services.keyholder.at_rest import NO_EPOCH, AtRest

IDENTITY_FILE = "identity.key"

_PURPOSE = "identity key"


def create(state: Path, at_rest: AtRest) -> bytes:
    """Make the identity key in the state folder; its public key, 32 bytes.

    Raises:
        MalformedInput: CONFIG_INVALID if there is one: it is never replaced.
    """
    path = state / IDENTITY_FILE
    if path.exists():
        raise MalformedInput(Reason.CONFIG_INVALID, "there is an identity key already")
    make_folder(state)
    key = SigningKey.generate()
    write_durably(path, at_rest.seal(_PURPOSE, NO_EPOCH, bytes(key)))
    return bytes(key.verify_key)


def load(state: Path, at_rest: AtRest) -> SigningKey:
    """The identity key; PARTIAL_CORRUPT if it is missing or does not open."""
    try:
        sealed = (state / IDENTITY_FILE).read_bytes()
    except OSError:
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "there is no identity key to read") from None
    seed = at_rest.open(_PURPOSE, NO_EPOCH, sealed)
    if len(seed) != KEY_BYTES:
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the identity key is damaged")
    return SigningKey(seed)
