"""``keyholder.toml``: read once, checked whole, before anything else happens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gridveil.config import ConfigFile, Section, TlsFiles, hex_bytes, load
from gridveil.profile import Tls
from gridveil.protocol.city import PPM, CityPolicy, EntryAudience, FailingLanes, Register
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy, loss_ppm
from gridveil.protocol.note import NoteKey
from gridveil.protocol.refusal_lock import check_refusals_per_day
from gridveil.tracing.settings import TracingSection, TracingSettings
from gridveil_services.keyholder.witnesses import NO_WITNESSES, WitnessEndpoint, WitnessSettings
from gridveil_services.metrics.config import Address, MetricsSection, address_of

_LONGEST_EPOCH_S = 31 * 86_400
_AUDIENCES = {audience.name.lower(): audience for audience in EntryAudience}
_FAILING_LANES = {
    "leave-out": FailingLanes.LEAVE_OUT,
    "refuse-window": FailingLanes.REFUSE_WINDOW,
}


class RegisterSection(Section, frozen=True, kw_only=True):
    """A register that every meter of the city reports."""

    name: str
    unit: str
    bound: int


class NoiseSection(Section, frozen=True, kw_only=True):
    """Noise in released totals. The losses are those of the mechanism, and of no other."""

    mechanism: str
    epsilon_per_window: float | None = None
    epsilon_per_day: float | None = None
    rho_per_window: float | None = None
    rho_per_day: float | None = None


class PolicySection(Section, frozen=True, kw_only=True):
    """What the city chooses. Everything that protects somebody must be written down."""

    parameter_set: str
    window_length: int
    grace: int
    early_leeway: int
    min_cohort: int
    colluding: int
    min_coverage: float
    batch_limit: int
    entry_audience: str
    failing_lanes: str
    failure_budget: int
    development: bool = False
    epoch_length: int = 86_400
    noise: NoiseSection | None = None
    registers: list[RegisterSection]


class WitnessSection(Section, frozen=True, kw_only=True):
    """A witness of the release log (C2SP tlog-witness)."""

    url: str
    key: str


class WitnessesSection(Section, frozen=True, kw_only=True):
    """Who must have cosigned the release log before anything is opened or shown."""

    threshold: int
    witness: list[WitnessSection]


class KeyHolderFile(ConfigFile, frozen=True, kw_only=True):
    """``keyholder.toml``. Paths are relative to its folder."""

    city_id: str
    listen: str
    state: str
    published: str
    key_encrypting_key_file: str
    refusals_per_day: int
    sealed_key_encrypting_key_file: str = "kek.sealed"
    tls: TlsFiles
    policy: PolicySection
    witnesses: WitnessesSection | None = None
    metrics: MetricsSection | None = None
    tracing: TracingSection | None = None


@dataclass(frozen=True)
class KeyHolderConfig:
    """A checked configuration."""

    policy: CityPolicy
    epoch_length: int
    """Seconds that one epoch's keys serve."""
    refusals_per_day: int
    """Windows refused within 24 hours that lock the key-holder."""
    listen: str
    state: Path
    published: Path
    key_encrypting_key_file: Path
    tls: Tls
    sealed_key_encrypting_key_file: Path | None = None
    """Where ``gridveil keyholder split-kek`` puts the key, and ``serve`` looks for it."""
    witnesses: WitnessSettings = NO_WITNESSES
    metrics: Address | None = None
    """Where metrics are served, if anywhere."""
    tracing: TracingSettings | None = None
    """Where traces are sent, if anywhere."""

    @property
    def city_id(self) -> bytes:
        return self.policy.city_id

    @classmethod
    def load(cls, path: Path) -> KeyHolderConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, KeyHolderFile), path.parent
        policy = _policy(hex_bytes(file.city_id, ID_BYTES, "city_id"), file.policy)
        length = file.policy.epoch_length
        if not policy.window_length <= length <= _LONGEST_EPOCH_S or length % policy.window_length:
            raise _invalid("epoch_length", "is a multiple of window_length, at most 31 days")
        check_refusals_per_day(file.refusals_per_day)
        return cls(
            policy,
            length,
            file.refusals_per_day,
            file.listen,
            folder / file.state,
            folder / file.published,
            folder / file.key_encrypting_key_file,
            Tls.beside(file.tls, folder),
            folder / file.sealed_key_encrypting_key_file,
            _witnesses(file.witnesses),
            address_of(file.metrics),
            TracingSettings.of(file.tracing),
        )


def _witnesses(section: WitnessesSection | None) -> WitnessSettings:
    if section is None:
        return NO_WITNESSES
    if not section.witness:
        raise _invalid("witnesses", "name at least one witness")
    try:
        found = tuple(WitnessEndpoint(w.url, NoteKey.decode(w.key)) for w in section.witness)
        return WitnessSettings(section.threshold, found)
    except MalformedInput as error:
        raise MalformedInput(Reason.CONFIG_INVALID, error.message, field="witnesses") from None


def _policy(city_id: bytes, section: PolicySection) -> CityPolicy:
    if section.entry_audience not in _AUDIENCES:
        raise _invalid("entry_audience", f"is one of {', '.join(_AUDIENCES)}")
    if section.failing_lanes not in _FAILING_LANES:
        raise _invalid("failing_lanes", f"is one of {', '.join(_FAILING_LANES)}")
    if not math.isfinite(section.min_coverage):
        raise _invalid("min_coverage", "is a number from 0.5 to 1")
    return CityPolicy(
        city_id=city_id,
        parameter_set=section.parameter_set,
        registers=tuple(Register(r.name, r.unit, r.bound) for r in section.registers),
        window_length=section.window_length,
        grace=section.grace,
        early_leeway=section.early_leeway,
        min_cohort=section.min_cohort,
        colluding=section.colluding,
        min_coverage_ppm=math.ceil(round(section.min_coverage * PPM, 3)),
        batch_limit=section.batch_limit,
        entry_audience=_AUDIENCES[section.entry_audience],
        failing_lanes=_FAILING_LANES[section.failing_lanes],
        failure_budget=section.failure_budget,
        development=section.development,
        noise=_noise(section.noise) if section.noise else None,
    )


def _noise(section: NoiseSection) -> NoisePolicy:
    losses = {
        Mechanism.LAPLACE: (section.epsilon_per_window, section.epsilon_per_day),
        Mechanism.GAUSSIAN: (section.rho_per_window, section.rho_per_day),
    }
    found = next((m for m in losses if m.name.lower() == section.mechanism), None)
    if found is None:
        raise _invalid("noise.mechanism", "is laplace or gaussian")
    window, day = losses.pop(found)
    if window is None or day is None or any(other != (None, None) for other in losses.values()):
        raise _invalid(
            "noise", "takes epsilon_per_* with laplace, rho_per_* with gaussian, and no other"
        )
    return NoisePolicy(Noise(found, loss_ppm(window)), loss_ppm(day))


def _invalid(key: str, rule: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"{key} {rule}", field=key)
