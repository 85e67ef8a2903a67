"""Releases: one attempt a window, claimed before it is opened, answered after it is durable.

    taken in -> claim durable -> opened -> entries published -> total durable -> answered
                               `-> refusal durable -> REFUSED

A crash after the claim is made good at the next start with the same release and no other. What
fails by the machine's fault after the claim stops everything until that restart.
"""

from __future__ import annotations

import threading
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
from gridveil.protocol.release import RegisterTotal, ReleaseHeader, Total, entries_root
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1.keyholder_pb2 import ReleaseMessage
from gridveil_services.keyholder.cohort import THREADS, Cohort
from gridveil_services.keyholder.epoch_keys import EpochKeys, EpochRing, OpeningFailed
from gridveil_services.keyholder.intake import Intake, read_header
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.opening import Opening, open_release
from gridveil_services.keyholder.policy import (
    FINAL,
    Facts,
    Status,
    busy,
    check_release,
    is_settled_by,
    refused,
)
from gridveil_services.keyholder.publication import Publication, opened_entries
from gridveil_services.keyholder.roster_store import RosterStore
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
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._identity = identity
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
        raised before the window is claimed; afterwards it is REFUSED, whatever the cause.
        """
        header, digest = read_header(messages, self._policy.city_id)
        if is_settled_by(self._ledger.state(header.window_start), digest):
            return Settled(digest, replayed=True)
        with self._work_on(header.window_start):
            if is_settled_by(self._ledger.state(header.window_start), digest):
                return Settled(digest, replayed=True)
            intake, keys, version = self._begin(header, digest)
            release = self._take(intake, messages)
            self._ledger.claim(
                header.window_start, digest, header.parameters_digest, header.roster_version
            )
            self._settle(release, keys, version)
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
                self._record_refusal(window_start, digest)
                continue
            keys = self._ring.by_digest(release.header.parameters_digest)
            version = self._roster.version(release.header.roster_version)
            if keys is None or version is None:
                raise IntegrityLost(
                    Reason.PARTIAL_CORRUPT, "the keys or the roster of a claimed release are gone"
                )
            try:
                self._settle(release, keys, version)
            except GridveilError as error:
                if error.reason is not Reason.REFUSED:
                    raise

    def sweep(self) -> None:
        """Forget what came in for windows that are settled, or can never be."""
        now = self._clock.now()
        self._publication.prune(now)
        for window_start in self._spools.windows():
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
        )
        check_release(header, facts)
        assert keys is not None
        assert version is not None
        if self._ledger.failed:
            raise busy()
        intake = self._resume(header.window_start, digest)
        if intake is None or intake.spool.header != header:
            intake = self._new_intake(header, digest, keys)
        return intake, keys, version

    def _new_intake(self, header: ReleaseHeader, digest: bytes, keys: EpochKeys) -> Intake:
        try:
            spool = self._spools.create(header, digest)
        except OSError:
            raise busy() from None
        cohort = Cohort(header, keys.parameters, self._roster.members, self._pool)
        intake = Intake(spool, cohort, keys.parameters.policy)
        self._intakes[header.window_start] = intake
        return intake

    def _resume(self, window_start: int, digest: bytes) -> Intake | None:
        """What is held of this very release; after a restart, what of it is still right."""
        intake = self._intakes.get(window_start)
        if intake is not None:
            return intake if intake.spool.digest == digest else None
        spool = self._spools.find(window_start, digest)
        keys = self._ring.by_digest(spool.header.parameters_digest) if spool else None
        if spool is None or keys is None:
            return None
        cohort = Cohort(spool.header, keys.parameters, self._roster.members, self._pool)
        intake = Intake(spool, cohort, keys.parameters.policy)
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

    def _settle(self, release: SpooledRelease, keys: EpochKeys, version: RosterVersion) -> None:
        """Open a claimed release and make its outcome durable, or raise REFUSED."""
        window_start = release.header.window_start
        with self._opening:
            if self._closed:
                raise busy()
            try:
                opening = open_release(release, keys, self._roster.members, self._pool)
            except (OSError, MemoryError, RuntimeError):  # as of a thread that cannot be started
                self._stop()
            except Exception as error:
                if not isinstance(error, OpeningFailed | GridveilError):
                    _log.error("opening failed", exc_info=error)
                self._refuse(window_start, release.digest)
            self._publish(release, keys, version, opening)
        _log.info("released", window=window_start, meters=release.header.count)
        self._forget(window_start)

    def _publish(
        self,
        release: SpooledRelease,
        keys: EpochKeys,
        version: RosterVersion,
        opening: Opening,
    ) -> None:
        audience = min(keys.parameters.policy.entry_audience, self._policy.entry_audience)
        try:
            total = _total(release, keys, version, opening)
            self._publication.write(
                release, opening.commitments, total.left_out, keys, self._roster.members, audience
            )
        except OSError:
            self._stop()
        signature = total.sign(self._identity)
        self._ledger.released(release.header.window_start, total.encode(), signature)

    def _refuse(self, window_start: int, digest: bytes) -> Never:
        self._record_refusal(window_start, digest)
        raise refused()

    def _record_refusal(self, window_start: int, digest: bytes) -> None:
        try:
            self._publication.discard(window_start)
        except OSError:
            self._stop()
        self._ledger.refused(window_start, digest)
        _log.warning("refused", window=window_start)
        self._forget(window_start)

    def _stop(self) -> Never:
        """The machine failed between a claim and its outcome: a restart makes it good."""
        self._ledger.fail()
        raise Unavailable(
            Reason.KEYHOLDER_UNAVAILABLE, "the key-holder has stopped releasing"
        ) from None

    def _forget(self, window_start: int) -> None:
        self._intakes.pop(window_start, None)
        try:
            self._spools.delete(window_start)
        except OSError:
            _log.warning("a spool cannot be deleted", window=window_start)


def _total(
    release: SpooledRelease, keys: EpochKeys, version: RosterVersion, opening: Opening
) -> Total:
    parameters, header = keys.parameters, release.header
    policy = parameters.policy
    return Total(
        city_id=policy.city_id,
        epoch_id=parameters.epoch.epoch_id,
        parameters_digest=parameters.digest,
        window_start=header.window_start,
        window_length=policy.window_length,
        roster_version=version.version,
        enrolled=version.count,
        count=header.count,
        lanes=header.lanes,
        left_out=(),
        release_digest=release.digest,
        entries_root=entries_root(opened_entries(release, opening.commitments)),
        registers=tuple(
            RegisterTotal(register.name, register.unit, total)
            for register, total in zip(policy.registers, opening.totals, strict=True)
        ),
        blinding=opening.blinding.to_bytes(32, "little"),
    )
