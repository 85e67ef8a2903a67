"""Meters that misbehave, for demonstration: they send what no meter of the client package can.

They take turns, one in a window. In its first turn a meter commits to another reading than the
one that it encrypts, which only the decryption of its lane shows; in its second it signs a
commitment whose seal does not open, which proves itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gridveil.clock import Clock
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Outbox
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.errors import GridveilError, NotAuthentic
from gridveil.protocol.report import Report, sign_report
from gridveil.protocol.sealing import seal, shared_key
from gridveil.protocol.windows import lane_count, lane_of
from gridveil.reporting import ReportBuilder, signed_reading
from gridveil.simulator.plan import Tally
from gridveil.simulator.readings import Readings
from gridveil.submission import Prepared, Submitter, encode_report
from gridveil.submission_calls import blocking_caller, run_steps
from gridveil.transport import connect

_ROLE = "aggregator"
_NAP_S = 0.2
"""Longest wait between two looks at what is due, real seconds."""


class Lie(StrEnum):
    """How a meter misbehaves in one window."""

    OTHER_READING = "other_reading"
    """It commits to another reading than it encrypts."""
    BROKEN_SEAL = "broken_seal"
    """Its sealed commitment does not open."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is in a window."""

    liar: int
    """From 0, among those that misbehave."""
    lie: Lie


def turn(liars: int, window: int) -> Turn | None:
    """The turn in the ``window``-th window, from 0: each lies one way, then each the other."""
    round_, liar = divmod(window, liars)
    return Turn(liar, list(Lie)[round_]) if round_ < len(Lie) else None


def choose(
    fleet: Sequence[bytes], liars: int, parameters: CityParameters, windows: Sequence[int]
) -> list[int]:
    """Places in the fleet of the meters that misbehave.

    Whose turn spends the failure budget is in the last lane of that window: no lane is opened
    once it is spent, and the window would be refused for its coverage.

    Args:
        fleet: meter ids.
        liars: how many, 1 or more.
        parameters: in force until the budget is spent.
        windows: that are played.
    """
    policy, epoch_id = parameters.policy, parameters.epoch.epoch_id
    lanes = lane_count(len(fleet), policy.crypto, policy.layout.slots)
    window = windows[liars - 1]
    last = next(
        place
        for place in range(liars - 1, len(fleet))
        if lane_of(epoch_id, window, fleet[place], lanes) == lanes - 1
    )
    return [*range(liars - 1), last]


def lying_report(
    parameters: CityParameters,
    keys: MeterKeys,
    window_start: int,
    values: Mapping[str, int],
    lie: Lie,
) -> Report:
    """A report that every check of the aggregator accepts and that makes its lane fail."""
    honest = ReportBuilder(parameters, keys).build(window_start, values)
    if lie is Lie.BROKEN_SEAL:
        sealed = honest.claim.sealed_commitment
        claim = honest.claim._replace(sealed_commitment=bytes([sealed[0] ^ 1]) + sealed[1:])
        return sign_report(claim, honest.ciphertext, keys.signing_key)
    return _with_other_commitment(honest, parameters, keys, values)


def _with_other_commitment(
    honest: Report, parameters: CityParameters, keys: MeterKeys, values: Mapping[str, int]
) -> Report:
    policy, epoch = parameters.policy, parameters.epoch
    window, meter_id = honest.claim.window_start, keys.meter_id
    others = [values[name] ^ 1 for name in policy.register_names]
    generators = Generators.derive(policy.city_id, epoch.epoch_id, window, policy.register_names)
    commitment = generators.commit(others, policy.layout.draw_blinding())
    hashed = commitment_hash(policy.city_id, epoch.epoch_id, window, meter_id, commitment)
    claim = honest.claim._replace(commitment_hash=hashed)
    key = shared_key(
        keys.sealing_secret, epoch.sealing_key, policy.city_id, epoch.epoch_id, meter_id
    )
    sealed = seal(key, commitment, hashed, claim.seal_data())
    claim = claim._replace(sealed_commitment=sealed)
    return sign_report(claim, honest.ciphertext, keys.signing_key)


class MisbehavingMeters:
    """Plays the misbehaving part of a fleet through a gateway of its own; honest out of turn."""

    def __init__(
        self,
        profile: Profile,
        meters: Sequence[MeterKeys],
        readings: Readings,
        window_length: int,
        outbox: Path,
        clock: Clock,
    ) -> None:
        """``readings``: of these meters, for every window to be played."""
        self._length = window_length
        self._meters = {meter.meter_id: meter for meter in meters}
        self._order = list(self._meters)
        self._readings = readings
        self._clock = clock
        self._outbox = Outbox(outbox, profile.city_id)
        self._channel = connect(profile.endpoint(_ROLE), _ROLE, profile.city_id, profile.tls)
        self._call = blocking_caller(self._channel)
        self._submitter = Submitter(profile, self._outbox, clock, self._build, batches=True)

    def run(self) -> Tally:
        """Play every window, and wait until all is settled."""
        tally = Tally()
        try:
            for window in range(len(self._readings.windows)):
                self._report(window, tally)
                self._submit(tally)
        finally:
            self._channel.close()
            self._outbox.close()
        return tally

    def _report(self, window: int, tally: Tally) -> None:
        """Make and keep the reports of one window once it has ended."""
        start, present = self._readings.windows[window], self._readings.present[window]
        tally.planned += len(present)
        tally.missing += len(present) - int(present.sum())
        parameters = self._parameters(start)
        prepared = []
        for place, meter_id in enumerate(self._order):
            if present[place]:
                values = signed_reading(int(self._readings.wh[window, place]))
                report = self._build(parameters, meter_id, start, values)
                prepared.append(Prepared(meter_id, values, encode_report(report)))
        tally.recorded += self._submitter.keep(
            parameters.policy, parameters.digest, start, prepared
        )

    def _build(
        self, parameters: CityParameters, meter_id: bytes, start: int, values: Mapping[str, int]
    ) -> Report:
        whose = turn(len(self._order), self._readings.windows.index(start))
        if whose is not None and self._order[whose.liar] == meter_id:
            return lying_report(parameters, self._meters[meter_id], start, values, whose.lie)
        return ReportBuilder(parameters, self._meters[meter_id]).build(start, values)

    def _parameters(self, start: int) -> CityParameters:
        """Those of a window once it has ended, as soon as they can be had."""
        self._clock.sleep(max(0.0, start + self._length - self._clock.now()))
        while True:
            try:
                return run_steps(self._submitter.parameters(start), self._call)
            except GridveilError as error:
                if isinstance(error, NotAuthentic) or OUTCOMES[error.reason] is Ending.GIVE_UP:
                    raise
                self._nap()

    def _submit(self, tally: Tally) -> None:
        while self._outbox.next_due() is not None:
            for verdict in run_steps(self._submitter.submit_due(), self._call):
                tally.count(verdict)
            self._nap()

    def _nap(self) -> None:
        self._clock.sleep(_NAP_S / self._clock.real(1.0))
