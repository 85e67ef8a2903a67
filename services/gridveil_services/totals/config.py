"""``totals.toml``: read once, checked whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gridveil.config import ConfigFile, TlsFiles, hex_bytes, load
from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES
from gridveil.tracing.settings import TracingSection, TracingSettings
from gridveil_services.metrics.config import Address, MetricsSection, address_of


class TotalsFile(ConfigFile, frozen=True, kw_only=True):
    """``totals.toml``. Paths are relative to its folder."""

    city_id: str
    identity_key: str
    development: bool = False
    listen: str
    published: str
    window_length: int
    tls: TlsFiles
    metrics: MetricsSection | None = None
    tracing: TracingSection | None = None


@dataclass(frozen=True)
class TotalsConfig:
    """A checked configuration."""

    city_id: bytes
    identity_key: bytes
    """Ed25519 public key of the key-holder: what it did not sign is not served."""
    development: bool
    listen: str
    published: Path
    """The key-holder's folder with the release log and the opened entries; only read."""
    window_length: int
    tls: Tls
    metrics: Address | None = None
    """Where metrics are served, if anywhere."""
    tracing: TracingSettings | None = None
    """Where traces are sent, if anywhere."""

    @classmethod
    def load(cls, path: Path) -> TotalsConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, TotalsFile), path.parent
        if not 60 <= file.window_length <= 86_400:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "window_length is 60 to 86400 seconds", field="window_length"
            )
        return cls(
            hex_bytes(file.city_id, ID_BYTES, "city_id"),
            hex_bytes(file.identity_key, KEY_BYTES, "identity_key"),
            file.development,
            file.listen,
            folder / file.published,
            file.window_length,
            Tls.beside(file.tls, folder),
            address_of(file.metrics),
            TracingSettings.of(file.tracing),
        )
