"""What is looked for, each for itself: a watcher sees every window, and says what is wrong in it.

Watchers change as they learn; :mod:`gridveil.watchdog.detector` copies them where that matters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from datetime import date, timedelta, tzinfo
from enum import StrEnum
from typing import NamedTuple, Protocol

from gridveil.days import day_of, offset_at, same_time_before, windows_of
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Observation
from gridveil.watchdog.statistics import Drift, Level, Line, Usual

DAY_S = 86_400
LEAST_DEVIATION = 0.001
"""Of shares: what varies less is not told from rounding."""


class Kind(StrEnum):
    """What may be wrong."""

    COVERAGE_DROP = "COVERAGE_DROP"
    """Far fewer meters report than usual: a gateway or a network is away."""
    LANE_DROP = "LANE_DROP"
    """A lane has far fewer reports than the others."""
    LANE_LEFT_OUT = "LANE_LEFT_OUT"
    """A lane did not open; its meters are not in the total."""
    FEEDER_DRIFT = "FEEDER_DRIFT"
    """Losses leave their level for good: theft, or meters that go wrong."""
    DEMAND_STEP = "DEMAND_STEP"
    """Demand jumps as on no day of the last week at that time."""
    REFUSED_WINDOWS = "REFUSED_WINDOWS"
    """Windows get no total."""
    REFUSED_REPORTS = "REFUSED_REPORTS"
    """Far more reports are refused than usual."""
    LATENCY_RISE = "LATENCY_RISE"
    """Calls of meters take far longer than usual."""
    FROZEN_TOTAL = "FROZEN_TOTAL"
    """The very same sums, window after window."""


class Sign(NamedTuple):
    """Something is wrong in a window."""

    kind: Kind
    observed: float
    expected: float
    unit: str
    lane: str | None = None


class Watcher(Protocol):
    """Looks for one kind of trouble."""

    def look(self, seen: Observation) -> Iterator[Sign]:
        """What is wrong in this window; it is of a later one than the last."""
        ...


class Repeats:
    """Whether a total is the very same as the one before it, and so tells nothing of its window."""

    def __init__(self) -> None:
        self._sums: tuple[int, ...] = ()

    def told(self, seen: Observation) -> bool:
        """To be asked of every window; one without a total repeats nothing and is passed over."""
        if seen.counted is None:
            return False
        before, self._sums = self._sums, seen.counted.sums
        return before == self._sums


class Coverage:
    """Meters that report, next to how many usually do."""

    def __init__(self, limits: Limits, day: int) -> None:
        """``day``: windows a day."""
        self._limits = limits
        self._usual = Usual(half_life=2 * day, learns=day, patience=2 * day)
        self._before = False

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A drop that chance does not make: binomial, or as coverage usually varies."""
        if seen.counted is None:
            return
        coverage, usual = seen.counted.coverage, self._usual.mean
        chance = math.sqrt(max(usual * (1 - usual), LEAST_DEVIATION) / seen.counted.enrolled)
        far = -self._usual.score(coverage, chance) >= self._limits.coverage_deviations
        drop, least = usual - coverage, self._limits.coverage_drop_percent / 100
        low, before = far and drop >= least, self._before
        self._usual.see(coverage, unusual=low)
        self._before = low
        if low and (before or drop >= 2 * least):
            yield Sign(Kind.COVERAGE_DROP, 100 * coverage, 100 * usual, "% of meters")


class Lanes:
    """Lanes that did not open, and lanes with too few of the reports."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def look(self, seen: Observation) -> Iterator[Sign]:
        """Meters are in lanes by a hash: each lane's share is binomial."""
        for number in seen.counted.left_out if seen.counted else ():
            yield Sign(Kind.LANE_LEFT_OUT, 0, 1, "lanes opened", str(number))
        reports = seen.told.lane_reports
        for lane, found in sorted(reports.items()):
            others = sum(reports.values()) - found
            share = others / max(1, len(reports) - 1)
            deviation = math.sqrt(max(1.0, share * (1 + 1 / max(1, len(reports) - 1))))
            few = found <= share * (1 - self._limits.lane_drop_percent / 100)
            if few and share - found >= self._limits.lane_deviations * deviation:
                yield Sign(Kind.LANE_DROP, found, share, "reports", lane)


class Losses(NamedTuple):
    """What a feeder and the meters counted over some windows, Wh."""

    feeder: float = 0.0
    squares: float = 0.0
    """Of the feeder's windows: losses grow with the square of a current."""
    city: float = 0.0
    windows: int = 0

    def plus(self, feeder: int, city: int) -> Losses:
        """With another window."""
        squares = self.squares + float(feeder) ** 2
        return Losses(self.feeder + feeder, squares, self.city + city, self.windows + 1)

    @property
    def share(self) -> float:
        """What no meter counted, of what the feeder delivered."""
        return 1 - self.city / self.feeder

    @property
    def load(self) -> float:
        """Of a window that has the same share of losses, if the share grows with the load."""
        return self.squares / self.feeder


class Feeder:
    """A day's losses, next to those that days of its load usually had."""

    LEAST_SHARE = 0.8
    """Of a day's windows that must be there for it to count."""

    def __init__(self, limits: Limits, zone: tzinfo) -> None:
        self._limits, self._zone = limits, zone
        self._day: date | None = None
        self._today = Losses()
        self._repeats = Repeats()
        self._learn_anew()

    def look(self, seen: Observation) -> Iterator[Sign]:
        """When a day is over: whether losses have drifted."""
        day = day_of(seen.window_start, self._zone)
        if day != self._day:
            yield from self._end(seen.length)
            self._day, self._today = day, Losses()
        if self._repeats.told(seen) or seen.counted is None or seen.feeder_wh is None:
            return
        self._today = self._today.plus(seen.feeder_wh, seen.counted.city_wh)
        if self._learning and seen.feeder_wh > 0:
            self._usual.learn(seen.feeder_wh, 1 - seen.counted.city_wh / seen.feeder_wh)

    @property
    def _learning(self) -> bool:
        return len(self._days) < self._limits.drift_days

    def _end(self, length: int) -> Iterator[Sign]:
        over = self._today
        if self._day is None or over.feeder <= 0:
            return
        if over.windows < self.LEAST_SHARE * len(windows_of(self._day, self._zone, length)):
            return
        if self._learning:
            self._days.append(over)
            if len(self._days) == self._limits.drift_days:
                for day in self._days:
                    self._drift.learn(day.share - self._usual.at(day.load), LEAST_DEVIATION)
            return
        expected = self._usual.at(over.load)
        if self._drift.learn(over.share - expected, LEAST_DEVIATION):
            self._learn_anew()
            yield Sign(Kind.FEEDER_DRIFT, 100 * over.share, 100 * expected, "% losses")

    def _learn_anew(self) -> None:
        limits = self._limits
        self._usual, self._days = Line(), list[Losses]()
        self._drift = Drift(limits.drift_days, limits.drift_slack, limits.drift_threshold)


class Demand:
    """How demand changes, next to how it changed on each day of the week before at that time."""

    NEW, OLD = 2, 4
    """Windows after and before a step."""
    DAYS, LEAST_DAYS = 7, 6
    LEAST_DEMAND = 0.2
    """Of usual demand: below it a change in parts says nothing."""

    def __init__(self, limits: Limits, zone: tzinfo, day: int) -> None:
        """``day``: windows a day."""
        self._limits, self._zone = limits, zone
        self._size = Level(half_life=2 * day, learns=day)
        self._beyond = Usual(half_life=7 * day, learns=2 * day, patience=day)
        self._recent: deque[int] = deque(maxlen=self.NEW + self.OLD)
        self._steps: dict[int, float] = {}
        """The logarithm of each change, for as long as it is compared with."""
        self._repeats = Repeats()
        self._offset: timedelta | None = None

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A change beyond all of those; none is taken over windows without a total, or frozen ones.

        Nor over the hour in which clocks are set: that demand jumps then, and should.
        """
        self._steps.pop(seen.window_start - (self.DAYS + 1) * DAY_S, None)
        before, self._offset = self._offset, offset_at(seen.window_start, self._zone)
        silent = self._repeats.told(seen) or seen.counted is None
        if silent or self._offset != before:
            self._recent.clear()
        if silent or seen.counted is None:
            return
        self._size.learn(abs(seen.counted.city_wh))
        self._recent.append(seen.counted.city_wh)
        step = self._step()
        if step is None:
            return
        self._steps[seen.window_start] = step
        yield from self._compared(seen.window_start, step)

    def _step(self) -> float | None:
        values = list(self._recent)
        least = self.LEAST_DEMAND * self._size.mean
        if len(values) < self.NEW + self.OLD or not self._size.ready or min(values) <= least:
            return None
        logs = [math.log(value) for value in values]
        return sum(logs[self.OLD :]) / self.NEW - sum(logs[: self.OLD]) / self.OLD

    def _compared(self, start: int, step: float) -> Iterator[Sign]:
        times = (same_time_before(start, n + 1, self._zone) for n in range(self.DAYS))
        before = [self._steps[time] for time in times if time in self._steps]
        if len(before) < self.LEAST_DAYS:
            return
        nearest = min(max(step, min(before)), max(before))
        beyond = step - nearest
        far = abs(self._beyond.score(beyond, 0.01)) >= self._limits.step_deviations
        jumped = far and abs(beyond) >= self._limits.step_percent / 100
        self._beyond.see(beyond, unusual=jumped)
        if jumped:
            observed, expected = (100 * math.expm1(change) for change in (step, nearest))
            yield Sign(Kind.DEMAND_STEP, observed, expected, "% change")


class Refusals:
    """Windows without a total, and reports that were refused."""

    def __init__(self, limits: Limits, day: int) -> None:
        """``day``: windows a day."""
        self._limits = limits
        self._windows: deque[int] = deque(maxlen=limits.refused_windows)
        self._reports = Usual(half_life=2 * day, learns=day, patience=day)

    def look(self, seen: Observation) -> Iterator[Sign]:
        """Counts; those of reports as Anscombe makes them normal (Biometrika 35, 1948)."""
        if seen.refused is not None:
            self._windows.append(seen.window_start)
        many = len(self._windows) == self._windows.maxlen
        if many and seen.window_start - self._windows[0] < DAY_S:
            yield Sign(Kind.REFUSED_WINDOWS, len(self._windows), 0, "windows a day")
        if (refused := seen.told.refused_reports) is not None:
            level, usual = 2 * math.sqrt(refused + 3 / 8), self._reports.mean
            far = self._reports.score(level, 1.0) >= self._limits.refused_deviations
            burst = far and refused >= self._limits.refused_reports
            self._reports.see(level, unusual=burst)
            if burst:
                yield Sign(Kind.REFUSED_REPORTS, refused, max(0, usual**2 / 4 - 3 / 8), "reports")


class Latency:
    """How long calls take, next to how long they usually do."""

    def __init__(self, limits: Limits, day: int) -> None:
        """``day``: windows a day."""
        self._limits = limits
        self._usual = Usual(half_life=2 * day, learns=day, patience=day)
        self._slow = 0

    def look(self, seen: Observation) -> Iterator[Sign]:
        """Two windows in a row that were slow."""
        if not (found := seen.told.latency_s):
            return
        usual = self._usual.mean
        far = self._usual.score(math.log(found), 0.1) >= self._limits.latency_deviations
        slow = far and math.log(found) - usual >= math.log(self._limits.latency_factor)
        self._usual.see(math.log(found), unusual=slow)
        self._slow = self._slow + 1 if slow else 0
        if self._slow >= 2:
            yield Sign(Kind.LATENCY_RISE, found, math.exp(usual), "s")


class Frozen:
    """Sums that stay the same to the last watt-hour."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._repeats = Repeats()
        self._run = 0

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A window without a total does not end a run: it says nothing."""
        if seen.counted is None:
            return
        self._run = self._run + 1 if self._repeats.told(seen) else 1
        if self._run >= self._limits.frozen_windows:
            yield Sign(Kind.FROZEN_TOTAL, self._run, 1, "windows alike")
