"""The key-holder's memory of what it settled: the release log, and what follows from it.

Every step is checked against what the log says, made durable, and only then true. A window is
claimed by one release, or expires; a claim ends as a total or a refusal; nothing is ever undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gridveil.clock import Clock
from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.errors import (
    Conflict,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES
from gridveil.protocol.log_records import claimed_noise
from gridveil.protocol.noise import NoiseClaim, Spent, day_of
from gridveil.protocol.refusal_lock import RefusalLock
from gridveil.protocol.release import Total
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.v1.log_pb2 import (
    DestructionCause,
    EpochCreated,
    EpochDestroyed,
    KeyHolderUnlocked,
    LogRecord,
    NoiseMechanism,
    PolicyStated,
    ReleaseIntent,
    RosterChanged,
    WindowExpired,
    WindowRefused,
    WindowReleased,
)
from gridveil.protocol.v1.totals_pb2 import SignedTotal
from gridveil_services.keyholder.policy import FINAL, UNCLAIMED, Status, WindowState, locked
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter

_EXACT = NoiseClaim()

CONFIRM_S = 15.0
"""How long witnesses are asked to confirm a claim."""


@dataclass(frozen=True)
class LoggedEpoch:
    """An epoch whose keys were made."""

    epoch_id: bytes
    parameters_digest: bytes
    first_window: int
    end_window: int
    """First window that is not served; moved forward when the epoch is destroyed before it."""
    destroyed: bool = False
    failures: int = 0
    """Lanes that were decrypted with its keys and did not open."""

    def serves(self, window_start: int) -> bool:
        """Whether a window belongs to this epoch."""
        return self.first_window <= window_start < self.end_window

    def failures_left(self, budget: int) -> int:
        """Lanes that may yet be decrypted and not open; nothing may be decrypted for 0."""
        return 0 if self.destroyed else max(0, budget - self.failures)


@dataclass(frozen=True)
class Claim:
    """What a window that is claimed and not settled was claimed with."""

    parameters_digest: bytes
    noise: NoiseClaim


class Ledger:
    """Reads the log once, then keeps it and what it means in step. Thread-safe."""

    def __init__(
        self, folder: Path, clock: Clock, signer: LogSigner, *, witnessed: bool = False
    ) -> None:
        """Take the log in a folder; see :class:`LogWriter`.

        Raises:
            IntegrityLost: LOG_CORRUPT if it is damaged or contradicts itself; LOG_ROLLED_BACK if
                it is an old copy.
            Unavailable: KEYHOLDER_UNAVAILABLE if another process holds it.
        """
        self._clock = clock
        self._lock = threading.RLock()
        self._windows: dict[int, WindowState] = {}
        self._epochs: dict[bytes, LoggedEpoch] = {}
        self._claims: dict[int, Claim] = {}
        self._spent: dict[int, Spent] = {}
        """Privacy loss of all claims of a UTC day, by the day."""
        self._roster_version = 0
        self._stated = PolicyStated()
        self._size = 0
        self._last_released_at_ms = 0
        self._refusals = RefusalLock()
        self._confirm: Callable[[float], None] = _unwitnessed
        self._log = LogWriter(folder, signer, self._replay, witnessed=witnessed)

    @property
    def log(self) -> LogWriter:
        """The log itself, for those who publish its checkpoints."""
        return self._log

    @property
    def failed(self) -> bool:
        """Whether nothing can be settled any more until a restart."""
        return self._log.failed

    def fail(self) -> None:
        """Settle nothing more until a restart: what is on disk is in doubt."""
        self._log.fail()

    def close(self) -> None:
        """Let another process take the log."""
        self._log.close()

    def witness_claims(self, confirm: Callable[[float], None]) -> None:
        """Have the log confirmed before and after each claim, with patience in seconds."""
        self._confirm = confirm

    def state(self, window_start: int) -> WindowState:
        """How far a window is."""
        return self._windows.get(window_start, UNCLAIMED)

    def is_final(self, window_start: int) -> bool:
        """Whether nothing more can happen to a window."""
        return self.state(window_start).status in FINAL

    def pending(self) -> dict[int, bytes]:
        """Claimed windows without a durable outcome, with the digest that claimed them."""
        with self._lock:
            return {
                window: state.release_digest
                for window, state in self._windows.items()
                if state.status is Status.PENDING
            }

    def claimed_noise(self, window_start: int) -> NoiseClaim:
        """What a window that is not settled was claimed with."""
        return self._claims[window_start].noise

    def spent_on_day_of(self, window_start: int) -> Spent:
        """The privacy loss of all claims of windows that start in the same UTC day."""
        return self._spent.get(day_of(window_start), Spent())

    def epochs(self) -> dict[bytes, LoggedEpoch]:
        """Every epoch ever made, by its id."""
        with self._lock:
            return dict(self._epochs)

    def epoch_of(self, parameters_digest: bytes) -> LoggedEpoch | None:
        """The epoch with these parameters."""
        with self._lock:
            found = (e for e in self._epochs.values() if e.parameters_digest == parameters_digest)
            return next(found, None)

    def claim(
        self,
        window_start: int,
        release_digest: bytes,
        parameters_digest: bytes,
        roster_version: int,
        noise: NoiseClaim = _EXACT,
    ) -> None:
        """Settle for ever which release the window belongs to; before anything is decrypted.

        The privacy loss in ``noise`` is spent by it, whatever becomes of the window.

        Raises:
            Unavailable: KEYHOLDER_LOCKED; NOT_WITNESSED if the witnesses, if there are any, do
                not confirm; after the claim is made that stops everything until a restart.
        """
        self._confirm(0.0)
        intent = ReleaseIntent(
            window_start=window_start,
            release_digest=release_digest,
            parameters_digest=parameters_digest,
            roster_version=roster_version,
            mechanism=NoiseMechanism.Name(noise.mechanism),
            loss_ppm=noise.loss_ppm,
        )
        self._record(LogRecord(intent=intent))
        try:
            self._confirm(CONFIRM_S)
        except GridveilError:
            self.fail()
            raise

    def released(
        self, window_start: int, total: bytes, signature: bytes, failures: int = 0
    ) -> None:
        """The claim's outcome is this total; so many lanes were decrypted and did not open."""
        signed = SignedTotal(total=total, signature=signature)
        released = WindowReleased(window_start=window_start, total=signed, failures=failures)
        self._record(LogRecord(released=released))

    def refused(self, window_start: int, release_digest: bytes, failures: int = 0) -> None:
        """The claim did not open; so many lanes were decrypted and did not."""
        claim = self._claims.get(window_start)
        refusal = WindowRefused(
            window_start=window_start,
            release_digest=release_digest,
            failures=failures,
            over_budget=claim is not None and claim.noise.is_over_budget,
        )
        self._record(LogRecord(refused=refusal))

    def expire(self, windows: list[int]) -> None:
        """Windows that nobody has claimed are over; those that were claimed meanwhile are not."""
        with self._lock:
            unclaimed = [window for window in windows if self.state(window) == UNCLAIMED]
            self._record(
                *(LogRecord(expired=WindowExpired(window_start=window)) for window in unclaimed)
            )

    def epoch_created(self, parameters: CityParameters) -> None:
        """Keys of an epoch exist."""
        epoch = parameters.epoch
        created = EpochCreated(
            epoch_id=epoch.epoch_id,
            parameters_digest=parameters.digest,
            first_window=epoch.first_window,
            end_window=epoch.end_window,
        )
        self._record(LogRecord(epoch_created=created))

    def epoch_destroyed(self, epoch_id: bytes, cause: DestructionCause, end_window: int) -> None:
        """The secret keys of an epoch are gone; it serves no window from ``end_window`` on."""
        destroyed = EpochDestroyed(epoch_id=epoch_id, cause=cause, end_window=end_window)
        self._record(LogRecord(epoch_destroyed=destroyed))

    @property
    def roster_version(self) -> int:
        """The newest roster version in the log; 0 if there is none."""
        return self._roster_version

    def roster_changed(self, version: RosterVersion, enrolled: int, withdrawn: int) -> None:
        """The roster has a new version; nothing if the log has it already."""
        with self._lock:
            if version.version > self._roster_version:
                changed = RosterChanged(
                    version=version.version,
                    effective_window=version.effective_window,
                    count=version.count,
                    enrolled=enrolled,
                    withdrawn=withdrawn,
                    roster_digest=version.digest,
                )
                self._record(LogRecord(roster_changed=changed))

    def policy_stated(self, policy: CityPolicy, refusals_per_day: int) -> None:
        """Policy and budget of refusals from now on; nothing if they were stated last."""
        stated = PolicyStated(policy=policy.encode(), refusals_per_day=refusals_per_day)
        with self._lock:
            if stated != self._stated:
                self._record(LogRecord(policy_stated=stated))

    @property
    def size(self) -> int:
        """Records in the log."""
        return self._size

    @property
    def last_released_at_ms(self) -> int:
        """Unix milliseconds at which the newest total was logged; 0 if there is none."""
        return self._last_released_at_ms

    @property
    def refusals(self) -> RefusalLock:
        """The refusals that count, and the budget."""
        return self._refusals

    @property
    def locked_at(self) -> int | None:
        """Index of the refusal that locked the key-holder; None if it is not locked."""
        return self._refusals.locked_at

    def unlock(self, locked_at: int) -> None:
        """Let windows be claimed again; nothing if this very lock was unlocked before.

        Args:
            locked_at: index of the refusal that locked the key-holder.

        Raises:
            Unavailable: KEYHOLDER_LOCKED if another one did.
            MalformedInput: CONFIG_INVALID if it is not locked.
        """
        with self._lock:
            held = self._refusals
            if held.locked_at is None and held.unlocked_at == locked_at:
                return
            if held.locked_at is None:
                raise MalformedInput(Reason.CONFIG_INVALID, "the key-holder is not locked")
            if held.locked_at != locked_at:
                raise Unavailable(
                    Reason.KEYHOLDER_LOCKED,
                    f"record {held.locked_at} of the release log locked it, not {locked_at}",
                )
            unlocked = KeyHolderUnlocked(locked_at_index=locked_at)
            self._record(LogRecord(keyholder_unlocked=unlocked))

    def _record(self, *records: LogRecord) -> None:
        with self._lock:
            for record in records:
                record.recorded_at_ms = int(self._clock.now() * 1000)
                self._check(record)
            if records:
                self._log.append(*records)
            for record in records:
                self._apply(record)

    def _replay(self, record: LogRecord) -> None:
        try:
            self._check(record)
        except (Conflict, MalformedInput, Unavailable):
            raise IntegrityLost(
                Reason.LOG_CORRUPT, "the release log is corrupt: it contradicts itself"
            ) from None
        self._apply(record)

    def _check(self, record: LogRecord) -> None:
        """Raise WINDOW_PINNED or KEYHOLDER_LOCKED unless the record may follow what is there."""
        if not self._refusals.permits(record):
            raise locked() if record.HasField("intent") else _contradiction()
        match record.WhichOneof("event"):
            case "intent":
                self._demand(record.intent.window_start, UNCLAIMED)
                self._demand_keys(record.intent.parameters_digest)
                claimed_noise(record.intent)
                if len(record.intent.release_digest) != DIGEST_BYTES:
                    raise _contradiction()
            case "expired":
                self._demand(record.expired.window_start, UNCLAIMED)
            case "refused":
                refused = record.refused
                self._demand_claim(refused.window_start, refused.release_digest)
                if refused.over_budget != self.claimed_noise(refused.window_start).is_over_budget:
                    raise _contradiction()
            case "released":
                total = Total.decode(record.released.total.total)
                if total.window_start != record.released.window_start:
                    raise _contradiction()
                self._demand_claim(total.window_start, total.release_digest)
                self._demand_noise(total)
            case "epoch_created":
                if len(record.epoch_created.epoch_id) != ID_BYTES:
                    raise _contradiction()
            case "epoch_destroyed":
                self._demand_epoch(record.epoch_destroyed)
            case "roster_changed":
                if record.roster_changed.version <= self._roster_version:
                    raise _contradiction()

    def _demand_claim(self, window_start: int, release_digest: bytes) -> None:
        self._demand(window_start, WindowState(Status.PENDING, release_digest))

    def _demand_noise(self, total: Total) -> None:
        claimed = self.claimed_noise(total.window_start)
        if claimed.is_over_budget or claimed.noise != total.noise:
            raise _contradiction()

    def _demand_epoch(self, destroyed: EpochDestroyed) -> None:
        epoch = self._epochs.get(destroyed.epoch_id)
        within = epoch and epoch.first_window <= destroyed.end_window <= epoch.end_window
        if epoch is None or epoch.destroyed or not within:
            raise _contradiction()

    def _demand_keys(self, parameters_digest: bytes) -> None:
        epoch = self.epoch_of(parameters_digest)
        if epoch is not None and epoch.destroyed:
            raise _contradiction()

    def _demand(self, window_start: int, expected: WindowState) -> None:
        if self.state(window_start) != expected:
            raise _contradiction()

    def _apply(self, record: LogRecord) -> None:
        self._refusals = self._refusals.after(self._size, record)
        self._size += 1
        match record.WhichOneof("event"):
            case "intent":
                self._note_claim(record.intent)
            case "expired":
                self._settle(record.expired.window_start, Status.EXPIRED, b"")
            case "refused":
                over_budget = record.refused.over_budget
                status = Status.OVER_BUDGET if over_budget else Status.REFUSED
                self._conclude(record.refused.window_start, status)
                self._spend(record.refused.window_start, record.refused.failures)
            case "released":
                self._last_released_at_ms = record.recorded_at_ms
                self._conclude(record.released.window_start, Status.RELEASED)
                self._spend(record.released.window_start, record.released.failures)
            case "epoch_created":
                self._note_epoch(record.epoch_created)
            case "epoch_destroyed":
                gone = record.epoch_destroyed
                self._epochs[gone.epoch_id] = replace(
                    self._epochs[gone.epoch_id], destroyed=True, end_window=gone.end_window
                )
            case "roster_changed":
                self._roster_version = record.roster_changed.version
            case "policy_stated":
                self._stated = record.policy_stated

    def _settle(self, window_start: int, status: Status, release_digest: bytes) -> None:
        self._windows[window_start] = WindowState(status, release_digest)

    def _conclude(self, window_start: int, status: Status) -> None:
        self._settle(window_start, status, self.state(window_start).release_digest)

    def _note_claim(self, intent: ReleaseIntent) -> None:
        window, noise = intent.window_start, claimed_noise(intent)
        self._settle(window, Status.PENDING, intent.release_digest)
        self._claims[window] = Claim(intent.parameters_digest, noise)
        self._spent[day_of(window)] = self.spent_on_day_of(window).plus(noise)

    def _spend(self, window_start: int, failures: int) -> None:
        epoch = self.epoch_of(self._claims.pop(window_start).parameters_digest)
        if epoch is not None:
            self._epochs[epoch.epoch_id] = replace(epoch, failures=epoch.failures + failures)

    def _note_epoch(self, created: EpochCreated) -> None:
        self._epochs[created.epoch_id] = LoggedEpoch(
            created.epoch_id, created.parameters_digest, created.first_window, created.end_window
        )


def _unwitnessed(_patience_s: float) -> None:
    pass


def _contradiction() -> Conflict:
    return Conflict(Reason.WINDOW_PINNED, "the window is settled otherwise")
