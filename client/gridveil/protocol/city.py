"""City parameters: what everybody must agree on, signed by the key-holder's identity key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from nacl.signing import SigningKey

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import (
    DIGEST_BYTES,
    ID_BYTES,
    KEY_BYTES,
    Reader,
    blob,
    fixed,
    sha256,
    text,
    u8,
    u32,
    u64,
)
from gridveil.protocol.noise import NoisePolicy, encode_policy, read_policy
from gridveil.protocol.parameter_sets import ParameterSet, parameter_set
from gridveil.protocol.signing import is_signed_by, sign
from gridveil.protocol.slots import REGISTER_MAX, SlotLayout
from gridveil.protocol.windows import EXPIRY_S, WindowRules

MIN_HONEST = 100
"""h: honest meters that every released total hides a household among, at the least."""

MOST_FAILURES = 16
"""Largest failure budget of an epoch: each failure tells its maker a bit or more of the key."""

PPM = 1_000_000
BATCH_BYTES = 3_670_016
"""Longest SubmitReports request: 3.5 MiB."""

REPORT_OVERHEAD = 292
"""Bytes of a report in a batch beside its ciphertext, at the most (counted in tests)."""

_DOMAIN = "gridveil/v1/city-parameters"
_SIGNATURE_DOMAIN = "gridveil/v1/city-parameters-signature"
_PUBLIC_KEY_LIMIT = 200_000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_UNIT = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}")


class EntryAudience(IntEnum):
    """Who may fetch the opened entries of a released window, and so learns who reported.

    A wider audience has the larger number.
    """

    NOBODY = 0
    AUDITORS = 1
    PUBLIC = 2
    """Every role of the city; the key-holder writes them to a folder meant for publishing."""


class FailingLanes(IntEnum):
    """What becomes of a window with a lane that does not open."""

    LEAVE_OUT = 0
    """The others are released, if they still make up the cohort and the coverage."""
    REFUSE_WINDOW = 1


@dataclass(frozen=True)
class Register:
    """One quantity a meter reports: the energy of a window in whole ``unit``."""

    name: str
    unit: str
    bound: int
    """Largest value of one meter in one window; a total is refused beyond meters * bound."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _UNIT.fullmatch(self.unit):
            raise MalformedInput(Reason.CONFIG_INVALID, "a register's name or unit is malformed")
        if not 1 <= self.bound <= REGISTER_MAX:
            raise MalformedInput(Reason.CONFIG_INVALID, f"bound of {self.name} is out of range")


@dataclass(frozen=True)
class CityPolicy:
    """The part of the parameters that a city chooses and that outlives an epoch."""

    city_id: bytes
    parameter_set: str
    registers: tuple[Register, ...]
    window_length: int
    grace: int
    early_leeway: int
    min_cohort: int
    colluding: int
    """t: meters assumed to collude with the aggregator; min_cohort >= t + 100."""
    min_coverage_ppm: int
    batch_limit: int
    entry_audience: EntryAudience
    failing_lanes: FailingLanes
    failure_budget: int
    """b: lanes that may be decrypted and not open before an epoch's keys are destroyed."""
    development: bool
    """A development city may run on a scaled clock, and no other."""
    noise: NoisePolicy | None = None
    """Of released totals; None: they are exact."""

    def __post_init__(self) -> None:
        fixed(self.city_id, ID_BYTES, "city_id")
        parameter_set(self.parameter_set)
        names = [register.name for register in self.registers]
        checks = {
            "registers": len(set(names)) == len(names)
            and self.layout.slots <= self.crypto.degree // 2,
            "window_length": 60 <= self.window_length <= 86_400,
            "grace": 0 < self.grace < EXPIRY_S,
            "early_leeway": 0 <= self.early_leeway < self.window_length,
            "colluding": 0 <= self.colluding < 2**31,
            "min_cohort": self.colluding + MIN_HONEST <= self.min_cohort < 2**32,
            "min_coverage_ppm": PPM // 2 <= self.min_coverage_ppm <= PPM,
            "failure_budget": 1 <= self.failure_budget <= MOST_FAILURES,
            "batch_limit": 1 <= self.batch_limit <= self.most_reports_in_a_batch,
            "noise": self.noise is None or self.noise.window.fits(self.bounds),
        }
        for field, holds in checks.items():
            if not holds:
                raise MalformedInput(Reason.CONFIG_INVALID, f"{field} is out of range", field=field)

    @property
    def crypto(self) -> ParameterSet:
        """The parameter set."""
        return parameter_set(self.parameter_set)

    @cached_property
    def layout(self) -> SlotLayout:
        """How registers and blinding share the slots."""
        return SlotLayout.for_registers(len(self.registers))

    @property
    def rules(self) -> WindowRules:
        """When reports are taken."""
        return WindowRules(self.window_length, self.grace, self.early_leeway)

    @property
    def register_names(self) -> tuple[str, ...]:
        """Names, in slot order."""
        return tuple(register.name for register in self.registers)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Largest value of one meter in one window, of each register in slot order."""
        return tuple(register.bound for register in self.registers)

    @property
    def most_reports_in_a_batch(self) -> int:
        """Reports that fit a SubmitReports request."""
        report = self.crypto.ciphertext_bytes(self.layout.slots) + REPORT_OVERHEAD
        return BATCH_BYTES // report

    def encode(self) -> bytes:
        """Canonical encoding, without domain."""
        registers = (text(r.name) + text(r.unit) + u32(r.bound) for r in self.registers)
        return b"".join(
            (
                self.city_id,
                text(self.parameter_set),
                u8(len(self.registers)),
                *registers,
                u32(self.window_length),
                u32(self.grace),
                u32(self.early_leeway),
                u32(self.min_cohort),
                u32(self.colluding),
                u32(self.min_coverage_ppm),
                u32(self.batch_limit),
                u8(self.entry_audience),
                u8(self.failing_lanes),
                u8(self.failure_budget),
                u8(self.development),
                encode_policy(self.noise),
            )
        )

    @classmethod
    def read(cls, reader: Reader) -> CityPolicy:
        """The policy at the reader's place."""
        city_id, crypto = reader.take(ID_BYTES), reader.text()
        registers = tuple(
            Register(reader.text(), reader.text(), reader.uint(4)) for _ in range(reader.uint(1))
        )
        length, grace, leeway = (reader.uint(4) for _ in range(3))
        cohort, colluding, coverage, batch = (reader.uint(4) for _ in range(4))
        audience, failing, budget, development = (reader.uint(1) for _ in range(4))
        known = audience in tuple(EntryAudience) and failing in tuple(FailingLanes)
        if not known or development > 1:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "city parameters hold an unknown value")
        return cls(
            city_id=city_id,
            parameter_set=crypto,
            registers=registers,
            window_length=length,
            grace=grace,
            early_leeway=leeway,
            min_cohort=cohort,
            colluding=colluding,
            min_coverage_ppm=coverage,
            batch_limit=batch,
            entry_audience=EntryAudience(audience),
            failing_lanes=FailingLanes(failing),
            failure_budget=budget,
            development=bool(development),
            noise=read_policy(reader),
        )


@dataclass(frozen=True)
class Epoch:
    """One CKKS key pair and one X25519 key, and the windows they serve."""

    epoch_id: bytes
    first_window: int
    end_window: int
    """First window that is not served."""
    sealing_key: bytes
    """X25519 public key."""
    ckks_public_key: bytes
    """SEAL's serialization."""

    def __post_init__(self) -> None:
        fixed(self.epoch_id, ID_BYTES, "epoch_id")
        fixed(self.sealing_key, KEY_BYTES, "sealing_key")
        if not 0 < self.first_window < self.end_window < 2**53:
            raise MalformedInput(Reason.CONFIG_INVALID, "an epoch ends after it starts")

    def serves(self, window_start: int) -> bool:
        """Whether a window belongs to this epoch."""
        return self.first_window <= window_start < self.end_window


@dataclass(frozen=True)
class CityParameters:
    """Policy and epoch: everything a report depends on."""

    policy: CityPolicy
    epoch: Epoch

    def __post_init__(self) -> None:
        length = self.policy.window_length
        if self.epoch.first_window % length or self.epoch.end_window % length:
            raise MalformedInput(Reason.CONFIG_INVALID, "an epoch starts and ends with a window")

    def encode(self) -> bytes:
        """Canonical encoding."""
        epoch = self.epoch
        return b"".join(
            (
                text(_DOMAIN),
                self.policy.encode(),
                epoch.epoch_id,
                u64(epoch.first_window),
                u64(epoch.end_window),
                epoch.sealing_key,
                blob(epoch.ckks_public_key),
            )
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the encoding: what reports and releases name."""
        return sha256(self.encode())

    @classmethod
    def decode(cls, data: bytes) -> CityParameters:
        """The parameters in ``data``, every bound checked."""
        reader = Reader(data, "city parameters")
        reader.domain(_DOMAIN)
        policy = CityPolicy.read(reader)
        epoch = Epoch(
            reader.take(ID_BYTES),
            reader.uint(8),
            reader.uint(8),
            reader.take(KEY_BYTES),
            reader.blob(_PUBLIC_KEY_LIMIT),
        )
        reader.end()
        return cls(policy, epoch)

    def sign(self, identity: SigningKey) -> bytes:
        """The key-holder's signature, 64 bytes."""
        return sign(identity, _signed_bytes(self.digest))


def open_city_parameters(
    data: bytes, signature: bytes, identity_key: bytes, city_id: bytes
) -> CityParameters:
    """Parameters that the pinned identity key signed for this city, or KEY_NOT_PINNED.

    Args:
        data: canonical encoding; not read before its signature is checked.
        signature: 64 bytes.
        identity_key: the pinned Ed25519 public key of the key-holder.
        city_id: the pinned city.
    """
    if not is_signed_by(identity_key, _signed_bytes(sha256(data)), signature):
        raise NotAuthentic(
            Reason.KEY_NOT_PINNED, "the city parameters are not signed by the pinned key-holder"
        )
    parameters = CityParameters.decode(data)
    if parameters.policy.city_id != city_id:
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the city parameters are of another city")
    return parameters


def _signed_bytes(digest: bytes) -> bytes:
    return text(_SIGNATURE_DOMAIN) + fixed(digest, DIGEST_BYTES, "digest")
