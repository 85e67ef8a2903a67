"""Releases: one attempt a window, claimed before it is opened, answered after it is durable.

    taken in -> claim durable -> settled: a total is durable -> answered
                                      `-> a refusal is durable -> REFUSED, BUDGET_EXHAUSTED

A crash after the claim is made good at the next start with the same release and no other. What
fails by the machine's fault after the claim stops everything until that restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Never

import structlog

from gridveil.clock import Clock
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)
from gridveil.protocol.noise import NoiseClaim
from gridveil.protocol.release import ReleaseHeader
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1.keyholder_pb2 import ReleaseMessage
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.keyholder.cohort import THREADS, Cohort, Known
from gridveil_services.keyholder.epoch_keys import EpochKeys, EpochRing
from gridveil_services.keyholder.intake import Intake, read_header
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.observer import ReleaseObserver, Unobserved
from gridveil_services.keyholder.policy import (
    FINAL,
    Facts,
    Status,
    busy,
    check_release,
    expired,
    is_settled_by,
    noise_policy,
    refusal,
)
from gridveil_services.keyholder.precheck import Prechecks
from gridveil_services.keyholder.publication import Publication
from gridveil_services.keyholder.roster_store import RosterStore
from gridveil_services.keyholder.settlement import Settlement, SuspicionLog
from gridveil_services.keyholder.spool import SpooledRelease, SpoolFolder

_log = structlog.get_logger()


@dataclass(frozen=True)
class Settled:
    """The answer to a release."""

    digest: bytes
    replayed: bool


class Releases:
    """Takes releases in and settles them. Thread-safe; one release a window at a time."""

    def __init__(
        self,
        *,
        policy: CityPolicy,
        identity: SigningKey,
        ledger: Ledger,
        ring: EpochRing,
        roster: RosterStore,
        spools: SpoolFolder,
        publication: Publication,
        pins: NoisePins,
        clock: Clock,
        suspicions: SuspicionLog | None = None,
        observer: ReleaseObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self._tracer = tracer or Untraced()
        self._policy = policy
        self._ledger = ledger
        self._ring = ring
        self._roster = roster
        self._spools = spools
        self._publication = publication
        self._clock = clock
        self._intakes: dict[int, Intake] = {}
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="release")
        self.prechecks = Prechecks(
            policy=policy, ledger=ledger, ring=ring, roster=roster, clock=clock
        )
        self._settlement = Settlement(
            policy=policy,
            identity=identity,
            ledger=ledger,
            ring=ring,
            members=roster.members,
            publication=publication,
            pins=pins,
            suspicions=suspicions,
            clock=clock,
            pool=self._pool,
            observer=self._observer,
            tracer=self._tracer,
        )

    def close(self) -> None:
        """Settle nothing more, but let a release that is being opened come to its end."""
        with self._opening:
            self._closed = True
        self._pool.shutdown()

    def progress(self, window_start: int, digest: bytes) -> int | None:
        """Bytes of entries held for this very release; None if the window is settled."""
        self._policy.rules.check_aligned(window_start)
        if self._ledger.is_final(window_start):
            return None
        with self._work_on(window_start):
            intake = self._resume(window_start, digest)
            return intake.spool.size if intake else 0

    def release(self, messages: Iterator[ReleaseMessage]) -> Settled:
        """Settle a window with the release in a stream, or raise why not.

        The header alone is enough for a window that is settled. See
        :func:`gridveil_services.keyholder.policy.check_release` and :class:`Intake` for what is
        raised before the window is claimed; afterwards it is REFUSED, whatever the cause, but for
        BUDGET_EXHAUSTED if the privacy budget of its day has no room for it.
        """
        begun = time.monotonic()
        try:
            settled = self._release(messages)
        except GridveilError as error:
            self._observer.release_ended("refused", error.reason, time.monotonic() - begun)
            raise
        outcome = "replayed" if settled.replayed else "released"
        self._observer.release_ended(outcome, None, time.monotonic() - begun)
        return settled

    def failures_left(self, window_start: int) -> int | None:
        """Lanes that may yet fail in the epoch that serves a window; None if none does."""
        serving = (e for e in self._ledger.epochs().values() if e.serves(window_start))
        epoch = next((e for e in serving if not e.destroyed), None)
        if epoch is None:
            return None
        return self._settlement.failures_left(epoch, self._ring.by_digest(epoch.parameters_digest))

    def _release(self, messages: Iterator[ReleaseMessage]) -> Settled:
        header, digest = read_header(messages, self._policy.city_id)
        if is_settled_by(self._ledger.state(header.window_start), digest):
            return Settled(digest, replayed=True)
        with self._work_on(header.window_start):
            if is_settled_by(self._ledger.state(header.window_start), digest):
                return Settled(digest, replayed=True)
            intake, keys, version = self._begin(header, digest)
            with self._tracer.step("take_in"):
                release = self._take(intake, messages)
            self._settle(release, keys, version, intake.known())
            return Settled(digest, replayed=False)

    def settle_pending(self) -> None:
        """Settle what was claimed before a crash; a release that is not whole is refused.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if the state does not belong to the log.
        """
        for window_start, digest in self._ledger.pending().items():
            release = self._spools.find_whole(window_start, digest)
            if release is None:
                _log.error("a claimed release is lost", window=window_start)
                self._settlement.refuse(window_start, digest)
            else:
                self._settle_claimed(release)
            self._forget(window_start)

    def sweep(self) -> None:
        """Forget what came in for windows that are settled, or can never be."""
        now = self._clock.now()
        self._publication.prune(now)
        for window_start in {*self._spools.windows(), *self.prechecks.windows()}:
            try:
                with self._work_on(window_start):
                    status = self._ledger.state(window_start).status
                    over = self._policy.rules.expires(window_start) <= now
                    if status in FINAL or (over and status is Status.OPEN):
                        self._forget(window_start)
            except Unavailable:
                continue

    @contextmanager
    def _work_on(self, window_start: int) -> Iterator[None]:
        with self._lock:
            if window_start in self._busy:
                raise busy()
            self._busy.add(window_start)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(window_start)

    def _settle_claimed(self, release: SpooledRelease) -> None:
        header = release.header
        keys = self._ring.by_digest(header.parameters_digest)
        version = self._roster.version(header.roster_version)
        if self._is_spent(header.parameters_digest, keys):
            self._settlement.refuse(header.window_start, release.digest)
        elif keys is None or version is None:
            raise IntegrityLost(
                Reason.PARTIAL_CORRUPT, "the keys or the roster of a claimed release are gone"
            )
        else:
            self._settlement.settle(release, keys, version)

    def _is_spent(self, parameters_digest: bytes, keys: EpochKeys | None) -> bool:
        """Whether nothing may be decrypted any more in an epoch."""
        epoch = self._ledger.epoch_of(parameters_digest)
        return epoch is not None and not self._settlement.failures_left(epoch, keys)

    def _is_lost(self, header: ReleaseHeader, keys: EpochKeys | None) -> bool:
        """Whether the keys that alone open a window must not decrypt any more, or are gone."""
        epoch = self._ledger.epoch_of(header.parameters_digest)
        serves = epoch is not None and epoch.serves(header.window_start)
        return serves and self._is_spent(header.parameters_digest, keys)

    def _begin(
        self, header: ReleaseHeader, digest: bytes
    ) -> tuple[Intake, EpochKeys, RosterVersion]:
        keys = self._ring.by_digest(header.parameters_digest)
        version = self._roster.in_force(header.window_start)
        facts = Facts(
            now=self._clock.now(),
            state=self._ledger.state(header.window_start),
            parameters=keys.parameters if keys else None,
            roster=version,
            policy=self._policy,
            spent=self._is_lost(header, keys),
            locked=self._ledger.locked_at is not None,
        )
        check_release(header, facts)
        if self._ledger.failed:
            raise busy()
        if facts.spent:
            with self._opening:
                self._expire(header)
        assert keys is not None
        assert version is not None
        if self._noise(header, keys).is_over_budget:
            self._refuse_unopened(header, digest, keys)
        intake = self._resume(header.window_start, digest)
        if intake is None or intake.spool.header != header:
            intake = self._new_intake(header, digest, keys)
        return intake, keys, version

    def _new_intake(self, header: ReleaseHeader, digest: bytes, keys: EpochKeys) -> Intake:
        try:
            spool = self._spools.create(header, digest)
        except OSError:
            raise busy() from None
        intake = Intake(spool, self._cohort(header, keys), keys.parameters.policy)
        self._intakes[header.window_start] = intake
        return intake

    def _cohort(self, header: ReleaseHeader, keys: EpochKeys) -> Cohort:
        precheck = self.prechecks.of(header)
        return Cohort(header, keys.parameters, self._roster.members, self._pool, precheck)

    def _resume(self, window_start: int, digest: bytes) -> Intake | None:
        """What is held of this very release; after a restart, what of it is still right."""
        intake = self._intakes.get(window_start)
        if intake is not None:
            return intake if intake.spool.digest == digest else None
        spool = self._spools.find(window_start, digest)
        keys = self._ring.by_digest(spool.header.parameters_digest) if spool else None
        if spool is None or keys is None:
            return None
        intake = Intake(spool, self._cohort(spool.header, keys), keys.parameters.policy)
        intake.recheck()
        self._intakes[window_start] = intake
        return intake

    def _take(self, intake: Intake, messages: Iterator[ReleaseMessage]) -> SpooledRelease:
        try:
            return intake.take(messages)
        except MalformedInput as error:
            if error.reason in {Reason.DIGEST_MISMATCH, Reason.COHORT_INVALID}:
                # Something that is held may not be what was meant: begin anew.
                self._forget(intake.spool.header.window_start)
            raise
        except Unavailable:
            if intake.is_lost:
                self._forget(intake.spool.header.window_start)
            raise

    def _settle(
        self, release: SpooledRelease, keys: EpochKeys, version: RosterVersion, known: Known
    ) -> None:
        """Claim a window and settle it, or raise the refusal.

        One window at a time is claimed and not settled: the failures of each limit the next, in
        the same way if a crash makes it begin anew.
        """
        header = release.header
        with self._opening:
            with self._tracer.step("claim"):
                self._claim(header, release.digest, keys)
            released = self._settlement.settle(release, keys, version, known)
        self._forget(header.window_start)
        if not released:
            raise refusal(self._ledger.state(header.window_start))

    def _refuse_unopened(self, header: ReleaseHeader, digest: bytes, keys: EpochKeys) -> Never:
        """Claim a window whose day's privacy budget is spent, and raise the refusal."""
        with self._opening:
            self._claim(header, digest, keys)
            self._settlement.refuse(header.window_start, digest)
        self._forget(header.window_start)
        raise refusal(self._ledger.state(header.window_start))

    def _expire(self, header: ReleaseHeader) -> Never:
        """Settle a window that nobody can open any more: its epoch's keys are spent."""
        if self._closed:
            raise busy()
        self._ledger.expire([header.window_start])
        self._forget(header.window_start)
        raise expired()

    def _noise(self, header: ReleaseHeader, keys: EpochKeys) -> NoiseClaim:
        """What a window has to claim, after all windows of its day that were claimed before."""
        demanded = noise_policy(keys.parameters.policy, self._policy)
        return self._ledger.spent_on_day_of(header.window_start).claim(demanded)

    def _claim(self, header: ReleaseHeader, digest: bytes, keys: EpochKeys) -> None:
        """Claim a window as things are now: others may have been settled since it was looked at."""
        if self._is_lost(header, keys):
            self._expire(header)
        if self._closed:
            raise busy()
        self._ledger.claim(
            header.window_start,
            digest,
            header.parameters_digest,
            header.roster_version,
            self._noise(header, keys),
        )

    def _forget(self, window_start: int) -> None:
        """What came in for a window; what was prechecked stays good until it is settled."""
        self._intakes.pop(window_start, None)
        if self._ledger.is_final(window_start):
            self.prechecks.forget(window_start)
        try:
            self._spools.delete(window_start)
        except OSError:
            _log.warning("a spool cannot be deleted", window=window_start)
