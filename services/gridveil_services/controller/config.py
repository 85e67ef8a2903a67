"""``controller.toml``: read once, checked whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from gridveil.config import ConfigFile, Section, TlsFiles, hex_bytes, load
from gridveil.days import time_zone
from gridveil.profile import LogTrust, Profile, Tls, witness_policy
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES
from gridveil.tracing.settings import TracingSection, TracingSettings
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.vtn.config import VtnConfig, VtnSection
from gridveil_services.metrics.config import Address, MetricsSection, address_of

CHECKPOINT = "checkpoint"
"""In the state folder: the newest checkpoint of the release log that was seen."""


class TotalsSection(Section, frozen=True, kw_only=True):
    """The totals service that is followed."""

    address: str


class LogSection(Section, frozen=True, kw_only=True):
    """How many of which witnesses must have seen the release log."""

    threshold: int = 0
    witnesses: tuple[str, ...] = ()


class ControllerFile(ConfigFile, frozen=True, kw_only=True):
    """``controller.toml``. Paths are relative to its folder."""

    city_id: str
    identity_key: str
    development: bool = False
    listen: str
    state: str
    rules: str
    time_zone: str = "UTC"
    history: str | None = None
    tls: TlsFiles
    totals: TotalsSection
    log: LogSection = LogSection()
    vtn: VtnSection | None = None
    metrics: MetricsSection | None = None
    tracing: TracingSection | None = None


@dataclass(frozen=True)
class ControllerConfig:
    """A checked configuration."""

    profile: Profile
    """What is known of the city: what its key-holder did not sign is not acted on."""
    listen: str
    state: Path
    """Folder of the journal."""
    rules: ControlRules
    time_zone: str
    zone: tzinfo
    """Where the city's days begin and end."""
    history: Path | None = None
    """What the operator's own meter recorded before the first total, for the forecast only."""
    vtn: VtnConfig | None = None
    """What is made for a VTN, if anything, and where it is sent."""
    metrics: Address | None = None
    """Where metrics are served, if anywhere."""

    @property
    def city_id(self) -> bytes:
        return self.profile.city_id

    @property
    def development(self) -> bool:
        return self.profile.development

    @classmethod
    def load(cls, path: Path) -> ControllerConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, ControllerFile), path.parent
        state = folder / file.state
        trust = LogTrust(state / CHECKPOINT, witness_policy(file.log.threshold, file.log.witnesses))
        profile = Profile(
            hex_bytes(file.city_id, ID_BYTES, "city_id"),
            hex_bytes(file.identity_key, KEY_BYTES, "identity_key"),
            file.development,
            {"totals": file.totals.address},
            Tls.beside(file.tls, folder),
            trust,
            TracingSettings.of(file.tracing),
        )
        return cls(
            profile=profile,
            listen=file.listen,
            state=state,
            rules=_rules(folder / file.rules),
            time_zone=file.time_zone,
            zone=time_zone(file.time_zone),
            history=folder / file.history if file.history else None,
            vtn=_vtn(file, folder),
            metrics=address_of(file.metrics),
        )


def _vtn(file: ControllerFile, folder: Path) -> VtnConfig | None:
    if file.vtn is None:
        return None
    return VtnConfig.beside(file.vtn, folder, development=file.development)


def _rules(path: Path) -> ControlRules:
    if not path.exists():
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"{path.name} does not exist: write the city's rules, with its capacity, as in"
            " docs/control.md",
            field="rules",
        )
    return ControlRules.load(path)
