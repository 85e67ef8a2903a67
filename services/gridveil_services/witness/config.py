"""``witness.toml``: read once, checked whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gridveil.config import ConfigFile, load
from gridveil.files import make_folder, write_durably
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import KEY_BYTES
from gridveil.protocol.note import NoteKey, SignatureType
from gridveil.protocol.signing import SigningKey


class WitnessFile(ConfigFile, frozen=True, kw_only=True):
    """``witness.toml``. Paths are relative to its folder."""

    name: str
    listen: str
    key_file: str = "witness.key"
    state: str = "state"
    logs: tuple[str, ...]


@dataclass(frozen=True)
class WitnessConfig:
    """A checked configuration."""

    name: str
    listen: str
    key: SigningKey
    state: Path
    logs: tuple[NoteKey, ...]
    """Whose checkpoints are cosigned; a log's key has its origin as name."""

    @classmethod
    def load(cls, path: Path) -> WitnessConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, WitnessFile), path.parent
        return cls(
            public_key(file.name, bytes(KEY_BYTES)).name,
            file.listen,
            load_key(folder / file.key_file),
            folder / file.state,
            tuple(_log(text) for text in file.logs),
        )


def public_key(name: str, key: bytes) -> NoteKey:
    """A witness's key as logs and operators must know it, or CONFIG_INVALID for the name."""
    try:
        return NoteKey(name, SignatureType.COSIGNATURE, key)
    except MalformedInput as error:
        raise MalformedInput(Reason.CONFIG_INVALID, error.message, field="name") from None


def create_key(path: Path) -> SigningKey:
    """Make a witness's key; CONFIG_INVALID if there is one, it is never replaced."""
    if path.exists():
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} exists already")
    key = SigningKey.generate()
    make_folder(path.parent)
    write_durably(path, bytes(key))
    return key


def load_key(path: Path) -> SigningKey:
    """A witness's key; PARTIAL_CORRUPT if it is missing or none."""
    try:
        seed = path.read_bytes()
    except OSError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, f"{path.name} is not a witness's key")
    return SigningKey(seed)


def _log(text: str) -> NoteKey:
    try:
        key = NoteKey.decode(text)
    except MalformedInput as error:
        raise MalformedInput(Reason.CONFIG_INVALID, error.message, field="logs") from None
    if key.type is not SignatureType.ED25519:
        raise MalformedInput(Reason.CONFIG_INVALID, "a log's key has type 1", field="logs")
    return key
