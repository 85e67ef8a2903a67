"""A client's profile: which city, which pinned key, which endpoints, which TLS identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gridveil.config import ConfigFile, Section, TlsFiles, hex_bytes, load
from gridveil.protocol.checkpoint import NO_WITNESSES, WitnessPolicy
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES
from gridveil.protocol.note import NoteKey
from gridveil.tracing.settings import TracingSection, TracingSettings


class EndpointSection(Section, frozen=True, kw_only=True):
    """Where a service listens."""

    address: str


class LogSection(Section, frozen=True, kw_only=True):
    """How the release log is followed."""

    checkpoint: str = "checkpoint"
    threshold: int = 0
    witnesses: tuple[str, ...] = ()


class ProfileFile(ConfigFile, frozen=True, kw_only=True):
    """``profile.toml``."""

    city_id: str
    identity_key: str
    development: bool = False
    aggregator: EndpointSection | None = None
    keyholder: EndpointSection | None = None
    totals: EndpointSection | None = None
    controller: EndpointSection | None = None
    log: LogSection = LogSection()
    tracing: TracingSection | None = None
    tls: TlsFiles


@dataclass(frozen=True)
class Tls:
    """Paths of a TLS identity: PEM files."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def beside(cls, files: TlsFiles, folder: Path) -> Tls:
        """The paths of a config section, relative to the config's folder."""
        return cls(folder / files.ca, folder / files.certificate, folder / files.key)


@dataclass(frozen=True)
class LogTrust:
    """What a client demands of the release log."""

    checkpoint: Path | None = None
    """Where the newest checkpoint that was seen is kept; None: only in memory."""
    witnesses: WitnessPolicy = NO_WITNESSES

    @classmethod
    def beside(cls, section: LogSection, folder: Path) -> LogTrust:
        """What a profile's section says, its file relative to the profile's folder."""
        return cls(
            folder / section.checkpoint, witness_policy(section.threshold, section.witnesses)
        )


@dataclass(frozen=True)
class Profile:
    """What a client knows of its city, all of it pinned."""

    city_id: bytes
    identity_key: bytes
    """Ed25519 public key of the key-holder."""
    development: bool
    endpoints: dict[str, str]
    """Address by role: ``aggregator``, ``keyholder``, ``totals``, ``controller``."""
    tls: Tls
    log: LogTrust = LogTrust()
    tracing: TracingSettings | None = None
    """Where the meter's calls are traced, if anywhere."""

    def endpoint(self, role: str) -> str:
        """The address of a service, or CONFIG_INVALID if the profile has none."""
        if role not in self.endpoints:
            raise MalformedInput(Reason.CONFIG_INVALID, f"the profile has no [{role}] address")
        return self.endpoints[role]

    @classmethod
    def of(cls, profile: Path | str | Profile) -> Profile:
        """A profile, or the one in a TOML file."""
        return profile if isinstance(profile, Profile) else cls.load(Path(profile))

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """The profile in a TOML file."""
        path = Path(path)
        file = load(path, ProfileFile)
        sections = {
            "aggregator": file.aggregator,
            "controller": file.controller,
            "keyholder": file.keyholder,
            "totals": file.totals,
        }
        return cls(
            hex_bytes(file.city_id, ID_BYTES, "city_id"),
            hex_bytes(file.identity_key, KEY_BYTES, "identity_key"),
            file.development,
            {role: section.address for role, section in sections.items() if section},
            Tls.beside(file.tls, path.parent),
            LogTrust.beside(file.log, path.parent),
            TracingSettings.of(file.tracing),
        )


def witness_policy(threshold: int, witnesses: Sequence[str]) -> WitnessPolicy:
    """How many of which witnesses a configuration wants, or CONFIG_INVALID."""
    try:
        return WitnessPolicy(threshold, tuple(NoteKey.decode(key) for key in witnesses))
    except MalformedInput as error:
        raise MalformedInput(Reason.CONFIG_INVALID, error.message, field="witnesses") from None
