"""The gateway of one home: readings in, reports into an outbox.

Each reading is followed, and, where it ends a window, makes a report. A window is put into the
state file before it is put into the outbox (see :mod:`gridveil.meters.state`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from gridveil.clock import Clock
from gridveil.meter import ReportStatus
from gridveil.meters.intervals import Finding, Ignored, Interval, Lapse, Quality, Rules, follow
from gridveil.meters.registers import Reading, RegisterMap
from gridveil.meters.state import Kept, StateFile
from gridveil.meters.still import Runs, watch
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason, Unavailable

MOST_SKEW_S = 60
"""By how much a live meter's clock may be wrong: so early, at most, is a report taken."""

AGAIN_S = 10.0
"""Between two tries to reach the source or the city, seconds."""

_ENDS_A_WINDOW = {Reason.READING_INVALID, Reason.EQUIVOCATION}
FAILED_STORE = {Reason.STORE_UNAVAILABLE, Reason.STORE_FULL}


class Fate(StrEnum):
    """What became of a window."""

    RECORDED = "recorded"
    """Its report is in the outbox."""
    LATE = "late"
    """It was closed before it could be recorded."""
    REFUSED = "refused"
    """Above the city's bound; or another reading of it is in the outbox, and stands."""
    ESTIMATED = "estimated"
    """Not measured, hence not sent."""
    MISSING = "missing"
    """Nothing is known of it, hence nothing sent."""


@dataclass(frozen=True)
class News:
    """What became of a window, or of several without a value."""

    start: int
    fate: Fate
    windows: int = 1
    why: str | None = None
    """Cause of a lapse, reason of a refusal."""
    still: frozenset[str] = frozenset()
    """Registers that may be stuck (see :mod:`gridveil.meters.still`); since the start, that is."""


@dataclass
class Tally:
    """What a run has come to. Counts only."""

    telegrams: int = 0
    """Good ones."""
    faults: Counter[str] = field(default_factory=Counter)
    """Telegrams that were dropped, by fault."""
    ignored: Counter[Ignored] = field(default_factory=Counter)
    windows: Counter[Fate] = field(default_factory=Counter)


Tell = Callable[[News | GridveilError], None]


class Recorder(Protocol):
    """Where the reports of one meter go: :class:`gridveil.meter.Meter` does."""

    def record(self, window_start: int, values: Mapping[str, int]) -> None:
        """As :meth:`gridveil.meter.Meter.record`."""

    def status(self, window_start: int) -> Sequence[ReportStatus]:
        """As :meth:`gridveil.meter.Meter.status`."""


class HomeGateway:
    """Follows one home's meter. :meth:`take` is for one thread."""

    def __init__(
        self, meter: Recorder, state: StateFile, clock: Clock, rules: Rules, tell: Tell
    ) -> None:
        """Load what was kept; ``tell`` hears of every window, and of faults.

        Raises:
            IntegrityLost, MalformedInput, Unavailable: as :meth:`StateFile.load`.
        """
        self.tally = Tally()
        self._meter = meter
        self._state = state
        self._clock = clock
        self._rules = rules
        self.tell = tell
        self._kept = state.load()
        self._again_at = 0.0
        self._runs: Runs = {}
        self._watched: int | None = None

    def take(self, reading: Reading) -> None:
        """Follow a reading; what it concludes is on disk when this returns.

        Raises:
            MalformedInput: READING_INVALID with the fault ``clock`` for a live reading whose time
                is wrong by more than :data:`MOST_SKEW_S`, ``replay`` for one whose message has been
                there; nothing has changed.
            Unavailable: STORE_UNAVAILABLE or STORE_FULL if a disk fails; the gateway must end.
        """
        reading = replace(reading, meter=self._digest(reading.meter))
        counted = self._counted(reading)
        if reading.heard is not None and abs(reading.at - reading.heard) > MOST_SKEW_S:
            raise MalformedInput(
                Reason.READING_INVALID,
                f"telegram: the meter's clock is wrong by more than {MOST_SKEW_S} s",
                fault="clock",
            )
        kept = self._kept = replace(self._kept, counted=counted)
        step = follow(kept.track, reading, self._rules)
        if step.ignored is not None:
            self.tally.ignored[step.ignored] += 1
            return
        before = None if kept.track is None else kept.track.point
        pending = kept.pending + tuple(_sendable(step.findings))
        self._kept = Kept(step.track, pending, kept.counted)
        if step.findings or step.track.point != before:
            self._state.save(self._kept)
        for finding in step.findings:
            self._tell_unsent(finding)

    def _counted(self, reading: Reading) -> tuple[str, int] | None:
        """What the next message's counter must be above."""
        counted = self._kept.counted
        if reading.counter is None:
            return counted
        if counted is not None and counted[0] == reading.meter and reading.counter <= counted[1]:
            raise MalformedInput(
                Reason.READING_INVALID, "push: its invocation counter did not rise", fault="replay"
            )
        return reading.meter, reading.counter

    def drain(self, *, wait: bool) -> None:
        """Put what is pending into the outbox.

        Args:
            wait: for windows that are not open yet and a city out of reach; else they stay.

        Raises:
            Unavailable: STORE_UNAVAILABLE or STORE_FULL if a disk fails.
        """
        while self._kept.pending and (wait or self._clock.now() >= self._again_at):
            (start, values), *others = self._kept.pending
            try:
                news = self._record(start, values)
            except GridveilError as error:
                self._wait_for(error, wait)
                continue
            self._kept = replace(self._kept, pending=tuple(others))
            self._state.save(self._kept)
            self._say(replace(news, still=self._stood_still(start, values)))

    def _record(self, start: int, values: dict[str, int]) -> News:
        """The window's fate; raises what is worth another try, or what ends the gateway."""
        try:
            self._meter.record(start, values)
        except GridveilError as error:
            if error.reason is Reason.WINDOW_CLOSED:
                # It may be there from before a crash.
                known = bool(self._meter.status(start))
                return News(start, Fate.RECORDED if known else Fate.LATE)
            if error.reason in _ENDS_A_WINDOW:
                return News(start, Fate.REFUSED, why=error.reason)
            raise
        return News(start, Fate.RECORDED)

    def _stood_still(self, start: int, values: Mapping[str, int]) -> frozenset[str]:
        if self._watched != start - self._rules.length:
            self._runs = {}
        self._runs, still = watch(self._runs, values, self._rules.length)
        self._watched = start
        return still

    def _wait_for(self, error: GridveilError, wait: bool) -> None:
        early = error.reason is Reason.WINDOW_TOO_EARLY
        if not early and (not isinstance(error, Unavailable) or error.reason in FAILED_STORE):
            raise error
        seconds = (error.retry_after_s or 1.0) if early else AGAIN_S
        self._again_at = self._clock.now() + seconds
        if wait:
            self._clock.sleep(seconds)

    def _tell_unsent(self, finding: Finding) -> None:
        if isinstance(finding, Lapse):
            windows = (finding.end - finding.start) // self._rules.length
            self._say(News(finding.start, Fate.MISSING, windows, finding.cause))
        elif finding.quality is not Quality.VALIDATED:
            self._say(News(finding.start, Fate.ESTIMATED))

    def _say(self, news: News) -> None:
        self.tally.windows[news.fate] += news.windows
        self.tell(news)

    def _digest(self, serial: str) -> str:
        """Tells a meter from its successor, without its serial number."""
        return hashlib.blake2b(
            serial.encode(), key=self._state.meter_id, digest_size=16
        ).hexdigest()


def check_registers(policy: CityPolicy, registers: RegisterMap) -> None:
    """CONFIG_INVALID unless the map names the city's registers, all of them and no others."""
    wanted = set(policy.register_names)
    wrong = sorted(wanted ^ registers.names.keys())
    if wrong:
        what = "the city has no register" if wrong[0] not in wanted else "--register is needed for"
        raise MalformedInput(Reason.CONFIG_INVALID, f"{what} {wrong[0]}")


def _sendable(findings: tuple[Finding, ...]) -> Iterator[tuple[int, dict[str, int]]]:
    for finding in findings:
        if isinstance(finding, Interval) and finding.quality is Quality.VALIDATED:
            yield finding.start, dict(finding.values)
