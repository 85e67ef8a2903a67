"""The gateway of one home: telegrams in, reports out.

Each telegram is read, followed, and, where it ends a window, makes a report in the meter's outbox,
which is sent while the next telegrams come. A window is put into the state file before it is put
into the outbox (see :mod:`gridveil.meters.state`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gridveil.clock import Clock
from gridveil.meter import Meter, ReportStatus
from gridveil.meters.intervals import Finding, Ignored, Interval, Lapse, Quality, Rules, follow
from gridveil.meters.p1 import TelegramReader, Telegrams
from gridveil.meters.registers import Reading, RegisterMap
from gridveil.meters.sources import Source
from gridveil.meters.state import Kept, StateFile
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason, Unavailable

MOST_SKEW_S = 60
"""By how much a live meter's clock may be wrong: so early, at most, is a report taken."""

_AGAIN_S = 10.0
"""Between two tries to reach the source or the city, seconds."""

_ENDS_A_WINDOW = {Reason.READING_INVALID, Reason.EQUIVOCATION}
_FAILED_STORE = {Reason.STORE_UNAVAILABLE, Reason.STORE_FULL}


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


class HomeGateway:
    """Follows one home's meter. :meth:`take` is for one thread."""

    def __init__(
        self, meter: Meter, state: StateFile, clock: Clock, rules: Rules, tell: Tell
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

    def take(self, reading: Reading) -> None:
        """Follow a reading; what it concludes is on disk when this returns.

        Raises:
            MalformedInput: READING_INVALID with the fault ``clock`` for a live reading whose time
                is wrong by more than :data:`MOST_SKEW_S`; nothing has changed.
            Unavailable: STORE_UNAVAILABLE or STORE_FULL if a disk fails; the gateway must end.
        """
        if reading.heard is not None and abs(reading.at - reading.heard) > MOST_SKEW_S:
            raise MalformedInput(
                Reason.READING_INVALID,
                f"telegram: the meter's clock is wrong by more than {MOST_SKEW_S} s",
                fault="clock",
            )
        kept = self._kept
        step = follow(kept.track, replace(reading, meter=self._digest(reading.meter)), self._rules)
        if step.ignored is not None:
            self.tally.ignored[step.ignored] += 1
            return
        before = None if kept.track is None else kept.track.point
        self._kept = Kept(step.track, kept.pending + tuple(_sendable(step.findings)))
        if step.findings or step.track.point != before:
            self._state.save(self._kept)
        for finding in step.findings:
            self._tell_unsent(finding)

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
            self._kept = Kept(self._kept.track, tuple(others))
            self._state.save(self._kept)
            self._say(news)

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

    def _wait_for(self, error: GridveilError, wait: bool) -> None:
        early = error.reason is Reason.WINDOW_TOO_EARLY
        if not early and (not isinstance(error, Unavailable) or error.reason in _FAILED_STORE):
            raise error
        seconds = (error.retry_after_s or 1.0) if early else _AGAIN_S
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


def run_p1(
    gateway: HomeGateway,
    reader: TelegramReader,
    meter: Meter,
    clock: Clock,
    opened: Callable[[], AbstractContextManager[Source]],
    stop: threading.Event,
) -> list[ReportStatus]:
    """Follow a source until ``stop``; a file to its end, and until its reports are settled.

    A live source that was there once is opened again for as long as it takes.

    Raises:
        Unavailable: UNREACHABLE if the source cannot be opened at first; STORE_UNAVAILABLE or
            STORE_FULL if a disk fails.
        GridveilError: what the meter's parameters are refused for.
    """
    live = True
    with _sending(meter) as sending:
        follower = _Follower(gateway, reader, clock, stop, sending)
        while live and not stop.is_set():
            try:
                with opened() as source:
                    live = source.live
                    follower.begun = True
                    follower.follow(source)
            except Unavailable as error:
                if error.reason in _FAILED_STORE or not follower.begun:
                    raise
                gateway.tell(error)
                sending.check()
                clock.sleep(_AGAIN_S)
        if not live:
            gateway.drain(wait=True)
    sending.check()
    return meter.status() if live else meter.flush()


class _Sending:
    """The thread that sends, and what it died of."""

    def __init__(self) -> None:
        self.failed: Exception | None = None

    def check(self) -> None:
        if self.failed is not None:
            raise self.failed


@contextmanager
def _sending(meter: Meter) -> Iterator[_Sending]:
    sending, stop = _Sending(), threading.Event()

    def send() -> None:
        try:
            while not stop.is_set():
                meter.submit_due()
                stop.wait(0.25)
        except Exception as error:  # told by whoever reads on: nothing would be sent any more
            sending.failed = error

    thread = threading.Thread(target=send, name="sending", daemon=True)
    thread.start()
    try:
        yield sending
    finally:
        stop.set()
        thread.join()


@dataclass
class _Follower:
    """Reads one source after the other into a gateway."""

    gateway: HomeGateway
    reader: TelegramReader
    clock: Clock
    stop: threading.Event
    sending: _Sending
    begun: bool = False

    def follow(self, source: Source) -> None:
        telegrams = Telegrams()
        self.gateway.drain(wait=not source.live)
        while not self.stop.is_set() and (data := source.read()):
            for telegram in telegrams.feed(data):
                self._take(telegram, source.live)
                self.gateway.drain(wait=not source.live)
            self.sending.check()

    def _take(self, telegram: str | MalformedInput, live: bool) -> None:
        try:
            if isinstance(telegram, MalformedInput):
                raise telegram
            heard = self.clock.now() if live else None
            self.gateway.take(self.reader.read(telegram, heard))
            self.gateway.tally.telegrams += 1
        except MalformedInput as fault:
            if fault.reason is not Reason.READING_INVALID:
                raise
            self.gateway.tally.faults[fault.metadata["fault"]] += 1
            self.gateway.tell(fault)


def _sendable(findings: tuple[Finding, ...]) -> Iterator[tuple[int, dict[str, int]]]:
    for finding in findings:
        if isinstance(finding, Interval) and finding.quality is Quality.VALIDATED:
            yield finding.start, dict(finding.values)
