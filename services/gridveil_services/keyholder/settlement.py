"""Settling a claimed window: opened, its outcome made durable, then what follows from it.

    claimed -> noise pinned -> opened -> entries published -> total durable -.
                                     `-> refusal durable --------------------+-> what follows

What follows: spent keys are retired, suspicions recorded, cohorts compared. Noise, if there is any,
is added to sums that were opened and checked as if there were none. The failures that an outcome
counts are durable with it, before anybody is told anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Never, Protocol

import structlog

from gridveil.clock import Clock
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.commitment import Generators
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.noise import SUM_LIMIT, satisfies
from gridveil.protocol.release import RegisterTotal, Total
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.keyholder.cohort import NOTHING_KNOWN, Known
from gridveil_services.keyholder.differencing import Cohorts
from gridveil_services.keyholder.epoch_keys import EpochKeys, EpochRing, OpeningFailed
from gridveil_services.keyholder.ledger import Ledger, LoggedEpoch
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.noise import DrawnNoise
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.observer import ReleaseObserver, Unobserved
from gridveil_services.keyholder.opening import (
    MACHINE_FAILURES,
    Allowance,
    Opening,
    Outcome,
    meters_of,
    open_release,
)
from gridveil_services.keyholder.own_rows import OwnRows
from gridveil_services.keyholder.policy import (
    failure_budget,
    is_all_or_nothing,
    is_cohort,
    noise_policy,
)
from gridveil_services.keyholder.publication import Publication
from gridveil_services.keyholder.spool import SpooledRelease

_log = structlog.get_logger()


class SuspicionLog(Protocol):
    """Keeps hints at meters that misbehave."""

    def record(
        self,
        window_start: int,
        failed: Sequence[Sequence[bytes]],
        proven: Sequence[bytes],
        passed: Sequence[Sequence[bytes]],
    ) -> None:
        """What a window showed.

        Args:
            window_start: the window; its outcome is durable.
            failed: meters of each lane that was decrypted and did not open.
            proven: meters whose own seal did not open.
            passed: meters of each lane that opened.
        """


class Settlement:
    """Settles claimed windows. One at a time: the failures of one limit the next."""

    def __init__(
        self,
        *,
        policy: CityPolicy,
        identity: SigningKey,
        ledger: Ledger,
        ring: EpochRing,
        members: Membership,
        publication: Publication,
        pins: NoisePins,
        suspicions: SuspicionLog | None,
        clock: Clock,
        pool: Executor,
        observer: ReleaseObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self._cohorts = Cohorts()
        self._tracer = tracer or Untraced()
        self._policy = policy
        self._pins = pins
        self._identity = identity
        self._ledger = ledger
        self._ring = ring
        self._members = members
        self._publication = publication
        self._suspicions = suspicions
        self._clock = clock
        self._pool = pool

    def settle(
        self,
        release: SpooledRelease,
        keys: EpochKeys,
        version: RosterVersion,
        known: Known = NOTHING_KNOWN,
    ) -> bool:
        """Open a claimed release and make its outcome durable; whether a total was released.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE if the machine failed: a restart makes it good.
        """
        window_start = release.header.window_start
        with self._tracer.step("open"):
            outcome, noise = self._open(release, keys, version, known)
        self._observer.lanes_decrypted(len(outcome.passed), len(outcome.failed))
        failures, opening = len(outcome.failed), _noisy(outcome.opening, noise)
        with self._tracer.step("settle"):
            if opening is None:
                self.refuse(window_start, release.digest, failures)
            else:
                own = OwnRows(keys, self._members, window_start, known.precheck)
                self._publish(release, keys, version, opening, noise, failures, own)
        epoch = self._ledger.epoch_of(keys.parameters.digest)
        if epoch is not None:
            self._retire_if_spent(epoch)
        self._hint(release, outcome, released=opening is not None)
        return opening is not None

    def refuse(self, window_start: int, digest: bytes, failures: int = 0) -> None:
        """Make the refusal of a claimed window durable."""
        try:
            self._publication.discard(window_start)
        except OSError:
            self._stop()
        before = self._ledger.locked_at
        self._ledger.refused(window_start, digest, failures)
        _log.warning("refused", window=window_start, failures=failures)
        if self._ledger.locked_at != before:
            alarm_if_locked(self._ledger)

    def failures_left(self, epoch: LoggedEpoch, keys: EpochKeys | None) -> int:
        """Lanes that may yet be decrypted with an epoch's keys, if they exist, and not open."""
        signed = keys.parameters.policy if keys else self._policy
        return epoch.failures_left(failure_budget(signed, self._policy))

    def _open(
        self, release: SpooledRelease, keys: EpochKeys, version: RosterVersion, known: Known
    ) -> tuple[Outcome, DrawnNoise | None]:
        allowance = self._allowance(keys, version)
        try:
            noise = self._pin_noise(release, keys)
            opened = open_release(release, keys, self._members, allowance, self._pool, known)
            return opened, noise
        except MACHINE_FAILURES:
            self._stop()
        except Exception as error:  # before anything was decrypted
            if not isinstance(error, OpeningFailed | GridveilError):
                _log.error("opening failed", exc_info=error)
            return Outcome(None), None

    def _pin_noise(self, release: SpooledRelease, keys: EpochKeys) -> DrawnNoise | None:
        """The noise that the window was claimed with; OpeningFailed if nothing may be opened.

        Less noise than is demanded by now, or noise that cannot be had, refuses the window.
        """
        window_start, parameters = release.header.window_start, keys.parameters
        claimed = self._ledger.claimed_noise(window_start)
        demanded = noise_policy(parameters.policy, self._policy)
        enough = satisfies(claimed.noise, demanded.window if demanded else None)
        if claimed.is_over_budget or not enough:
            raise OpeningFailed
        if claimed.noise is None:
            return None
        epoch_id, bounds = parameters.epoch.epoch_id, parameters.policy.bounds
        try:
            return self._pins.take(release, claimed.noise, epoch_id, bounds)
        except GridveilError as error:
            _log.error("there is no noise", window=window_start, cause=str(error))
            raise OpeningFailed from None

    def _allowance(self, keys: EpochKeys, version: RosterVersion) -> Allowance:
        signed, own = keys.parameters.policy, self._policy
        epoch = self._ledger.epoch_of(keys.parameters.digest)
        return Allowance(
            failures=self.failures_left(epoch, keys) if epoch else 0,
            all_or_nothing=is_all_or_nothing(signed, own),
            is_cohort=lambda count: is_cohort(count, version.count, signed, own),
        )

    def _publish(
        self,
        release: SpooledRelease,
        keys: EpochKeys,
        version: RosterVersion,
        opening: Opening,
        noise: DrawnNoise | None,
        failures: int,
        own: OwnRows,
    ) -> None:
        window_start = release.header.window_start
        audience = min(keys.parameters.policy.entry_audience, self._policy.entry_audience)
        try:
            entries_root = self._publication.write(
                release,
                opening.commitments,
                opening.left_out,
                keys.signed,
                audience,
                own.row,
            )
        except OSError:
            self._stop()
        total = _total(release, keys, version, opening, entries_root, noise)
        signature = total.sign(self._identity)
        self._ledger.released(window_start, total.encode(), signature, failures)
        log = _log.warning if opening.left_out else _log.info
        log(
            "released",
            window=window_start,
            meters=opening.count,
            lanes_left_out=len(opening.left_out),
            failures=failures,
        )

    def _retire_if_spent(self, epoch: LoggedEpoch) -> None:
        """Destroy keys that must not decrypt any more; if that fails, upkeep does it later."""
        keys = self._ring.by_digest(epoch.parameters_digest)
        if epoch.destroyed or self.failures_left(epoch, keys):
            return
        cause = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
        try:
            self._ring.retire(epoch.epoch_id, cause, self._clock.now())
        except (GridveilError, OSError) as error:
            _log.error("spent keys cannot be destroyed yet", cause=str(error))

    def _hint(self, release: SpooledRelease, outcome: Outcome, *, released: bool) -> None:
        """What follows from who was in which lane: suspicions, totals that can be subtracted."""
        window_start = release.header.window_start
        try:
            passed = meters_of(release, outcome.passed)
            if self._suspicions is not None:
                failed = meters_of(release, outcome.failed)
                self._suspicions.record(window_start, failed, outcome.proven, passed)
            difference = self._cohorts.compare(passed) if released else None
        except Exception as error:  # no hint is worth the answer to a release
            _log.error("hints cannot be recorded", window=window_start, exc_info=error)
            return
        if difference is not None:
            self._observer.cohort_compared(difference)

    def _stop(self) -> Never:
        """The machine failed between a claim and its outcome: a restart makes it good."""
        self._ledger.fail()
        raise Unavailable(
            Reason.KEYHOLDER_UNAVAILABLE, "the key-holder has stopped releasing"
        ) from None


def alarm_if_locked(ledger: Ledger) -> None:
    """Tell the operator that the key-holder releases nothing until it is unlocked, and by what."""
    if ledger.locked_at is not None:
        _log.error("locked: too many windows were refused", record=ledger.locked_at)


def _noisy(opening: Opening | None, noise: DrawnNoise | None) -> Opening | None:
    """What opened with its noise in it; None if a sum is larger than a total has room for."""
    if opening is not None and noise is not None:
        totals = map(sum, zip(opening.totals, noise.values, strict=True))
        blinding = (opening.blinding + noise.blinding) % GROUP_ORDER
        opening = replace(opening, totals=tuple(totals), blinding=blinding)
    if opening is None or any(abs(total) >= SUM_LIMIT for total in opening.totals):
        return None
    return opening


def _total(
    release: SpooledRelease,
    keys: EpochKeys,
    version: RosterVersion,
    opening: Opening,
    entries_root: bytes,
    noise: DrawnNoise | None,
) -> Total:
    parameters, header = keys.parameters, release.header
    policy, epoch_id = parameters.policy, parameters.epoch.epoch_id
    generators = Generators.derive(
        policy.city_id, epoch_id, header.window_start, policy.register_names
    )
    return Total(
        city_id=policy.city_id,
        epoch_id=epoch_id,
        parameters_digest=parameters.digest,
        window_start=header.window_start,
        window_length=policy.window_length,
        roster_version=version.version,
        enrolled=version.count,
        count=opening.count,
        lanes=header.lanes,
        left_out=opening.left_out,
        release_digest=release.digest,
        entries_root=entries_root,
        registers=tuple(
            RegisterTotal(register.name, register.unit, total)
            for register, total in zip(policy.registers, opening.totals, strict=True)
        ),
        blinding=opening.blinding.to_bytes(32, "little"),
        added=noise.added(generators) if noise else None,
    )
