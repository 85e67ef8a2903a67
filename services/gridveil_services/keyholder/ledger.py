"""The key-holder's memory of what it settled: the release log, and what follows from it.

Every step is checked against what the log says, made durable, and only then true. A window is
claimed by one release, or expires; a claim ends as a total or a refusal; nothing is ever undone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from gridveil.clock import Clock
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import Conflict, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES
from gridveil.protocol.release import Total
from gridveil.protocol.v1.log_pb2 import (
    EpochCreated,
    LogRecord,
    ReleaseIntent,
    WindowExpired,
    WindowRefused,
    WindowReleased,
)
from gridveil.protocol.v1.totals_pb2 import SignedTotal
from gridveil_services.keyholder.policy import FINAL, UNCLAIMED, Status, WindowState
from gridveil_services.releaselog.writer import LogWriter


@dataclass(frozen=True)
class LoggedEpoch:
    """An epoch whose keys were made."""

    epoch_id: bytes
    parameters_digest: bytes
    first_window: int
    end_window: int


class Ledger:
    """Reads the log once, then keeps it and what it means in step. Thread-safe."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Take the log in a folder.

        Raises:
            IntegrityLost: LOG_CORRUPT if it is damaged or contradicts itself.
            Unavailable: KEYHOLDER_UNAVAILABLE if another process holds it.
        """
        self._clock = clock
        self._lock = threading.RLock()
        self._windows: dict[int, WindowState] = {}
        self._epochs: dict[bytes, LoggedEpoch] = {}
        self._log = LogWriter(folder, self._replay)

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

    def epochs(self) -> dict[bytes, LoggedEpoch]:
        """Every epoch ever made, by its id."""
        with self._lock:
            return dict(self._epochs)

    def claim(
        self,
        window_start: int,
        release_digest: bytes,
        parameters_digest: bytes,
        roster_version: int,
    ) -> None:
        """Settle for ever which release the window belongs to; before anything is decrypted."""
        intent = ReleaseIntent(
            window_start=window_start,
            release_digest=release_digest,
            parameters_digest=parameters_digest,
            roster_version=roster_version,
        )
        self._record(LogRecord(intent=intent))

    def released(self, window_start: int, total: bytes, signature: bytes) -> None:
        """The claim's outcome is this total."""
        signed = SignedTotal(total=total, signature=signature)
        self._record(LogRecord(released=WindowReleased(window_start=window_start, total=signed)))

    def refused(self, window_start: int, release_digest: bytes) -> None:
        """The claim did not open."""
        refusal = WindowRefused(window_start=window_start, release_digest=release_digest)
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
        except (Conflict, MalformedInput):
            raise IntegrityLost(
                Reason.LOG_CORRUPT, "the release log is corrupt: it contradicts itself"
            ) from None
        self._apply(record)

    def _check(self, record: LogRecord) -> None:
        """Raise WINDOW_PINNED unless the record may follow what is there."""
        match record.WhichOneof("event"):
            case "intent":
                self._demand(record.intent.window_start, UNCLAIMED)
                if len(record.intent.release_digest) != DIGEST_BYTES:
                    raise _contradiction()
            case "expired":
                self._demand(record.expired.window_start, UNCLAIMED)
            case "refused":
                self._demand_claim(record.refused.window_start, record.refused.release_digest)
            case "released":
                total = Total.decode(record.released.total.total)
                if total.window_start != record.released.window_start:
                    raise _contradiction()
                self._demand_claim(total.window_start, total.release_digest)
            case _:
                if len(record.epoch_created.epoch_id) != ID_BYTES:
                    raise _contradiction()

    def _demand_claim(self, window_start: int, release_digest: bytes) -> None:
        self._demand(window_start, WindowState(Status.PENDING, release_digest))

    def _demand(self, window_start: int, expected: WindowState) -> None:
        if self.state(window_start) != expected:
            raise _contradiction()

    def _apply(self, record: LogRecord) -> None:
        match record.WhichOneof("event"):
            case "intent":
                intent = record.intent
                self._settle(intent.window_start, Status.PENDING, intent.release_digest)
            case "expired":
                self._settle(record.expired.window_start, Status.EXPIRED, b"")
            case "refused":
                self._conclude(record.refused.window_start, Status.REFUSED)
            case "released":
                self._conclude(record.released.window_start, Status.RELEASED)
            case _:
                self._note_epoch(record.epoch_created)

    def _settle(self, window_start: int, status: Status, release_digest: bytes) -> None:
        self._windows[window_start] = WindowState(status, release_digest)

    def _conclude(self, window_start: int, status: Status) -> None:
        self._settle(window_start, status, self.state(window_start).release_digest)

    def _note_epoch(self, created: EpochCreated) -> None:
        self._epochs[created.epoch_id] = LoggedEpoch(
            created.epoch_id, created.parameters_digest, created.first_window, created.end_window
        )


def _contradiction() -> Conflict:
    return Conflict(Reason.WINDOW_PINNED, "the window is settled otherwise")
