"""``aggregator.toml``: read once, checked whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gridveil.config import ConfigFile, Section, TlsFiles, hex_bytes, load
from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES

DEFAULT_RETENTION_S = 86_400
_LEAST_STORE_BYTES = 64 * 1024 * 1024


class KeyHolderSection(Section, frozen=True, kw_only=True):
    """Where the key-holder listens."""

    address: str


class AggregatorFile(ConfigFile, frozen=True, kw_only=True):
    """``aggregator.toml``. Paths are relative to its folder."""

    city_id: str
    identity_key: str
    development: bool = False
    listen: str
    state: str
    retention_s: int = DEFAULT_RETENTION_S
    max_store_bytes: int | None = None
    tls: TlsFiles
    keyholder: KeyHolderSection


@dataclass(frozen=True)
class AggregatorConfig:
    """A checked configuration."""

    city_id: bytes
    identity_key: bytes
    """Ed25519 public key of the key-holder, pinned."""
    development: bool
    listen: str
    state: Path
    retention_s: int
    """Metering seconds after a window's end that its receipts and sums are kept, if settled."""
    max_store_bytes: int | None
    """Longest database file; reports beyond it are refused as STORE_FULL."""
    tls: Tls
    keyholder: str
    """Address."""

    @classmethod
    def load(cls, path: Path) -> AggregatorConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, AggregatorFile), path.parent
        if not DEFAULT_RETENTION_S <= file.retention_s <= 366 * 86_400:
            raise _invalid("retention_s", "is a day to a year: no window opens again after it")
        if file.max_store_bytes is not None and file.max_store_bytes < _LEAST_STORE_BYTES:
            raise _invalid("max_store_bytes", f"is at least {_LEAST_STORE_BYTES}")
        return cls(
            hex_bytes(file.city_id, ID_BYTES, "city_id"),
            hex_bytes(file.identity_key, KEY_BYTES, "identity_key"),
            file.development,
            file.listen,
            folder / file.state,
            file.retention_s,
            file.max_store_bytes,
            Tls.beside(file.tls, folder),
            file.keyholder.address,
        )


def _invalid(key: str, rule: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"{key} {rule}", field=key)
