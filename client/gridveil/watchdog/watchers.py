"""What is looked for, each for itself: a watcher sees every window, and says what is wrong in it.

Watchers change as they learn; :mod:`gridveil.watchdog.detector` copies them where that matters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from gridveil.days import day_of, same_time_before, windows_of
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Observation
from gridveil.watchdog.statistics import Drift, Level, Usual

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
    """Demand jumps as neither yesterday nor last week did at that time."""
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


class Coverage:
    """Meters that report, next to how many usually do."""

    def __init__(self, limits: Limits, day: int) -> None:
        """``day``: windows a day."""
        self._limits = limits
        self._usual = Usual(half_life=2 * day, learns=day, patience=2 * day)

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A drop that chance does not make: binomial, or as coverage usually varies."""
        if seen.counted is None:
            return
        coverage, usual = seen.counted.coverage, self._usual.mean
        chance = math.sqrt(max(usual * (1 - usual), LEAST_DEVIATION) / seen.counted.enrolled)
        far = -self._usual.score(coverage, chance) >= self._limits.coverage_deviations
        dropped = far and usual - coverage >= self._limits.coverage_drop_percent / 100
        self._usual.see(coverage, unusual=dropped)
        if dropped:
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


class Feeder:
    """A day's losses, next to those of the days before."""

    LEAST_SHARE = 0.8
    """Of a day's windows that must be there for it to count."""

    def __init__(self, limits: Limits, zone: ZoneInfo) -> None:
        self._limits, self._zone = limits, zone
        self._drift = self._anew()
        self._day: date | None = None
        self._feeder = self._city = self._windows = 0

    def look(self, seen: Observation) -> Iterator[Sign]:
        """When a day is over: whether losses have drifted."""
        day = day_of(seen.window_start, self._zone)
        if day != self._day:
            yield from self._end(seen.length)
            self._day, self._feeder, self._city, self._windows = day, 0, 0, 0
        if seen.counted is not None and seen.feeder_wh is not None:
            self._feeder += seen.feeder_wh
            self._city += seen.counted.city_wh
            self._windows += 1

    def _end(self, length: int) -> Iterator[Sign]:
        if self._day is None or self._feeder <= 0:
            return
        if self._windows < self.LEAST_SHARE * len(windows_of(self._day, self._zone, length)):
            return
        losses, usual = 1 - self._city / self._feeder, self._drift.usual
        if self._drift.learn(losses, LEAST_DEVIATION):
            self._drift = self._anew()
            yield Sign(Kind.FEEDER_DRIFT, 100 * losses, 100 * usual, "% losses")

    def _anew(self) -> Drift:
        limits = self._limits
        return Drift(limits.drift_days, limits.drift_slack, limits.drift_threshold)


class Demand:
    """Demand next to yesterday's and last week's at the same local time."""

    NEW, OLD = 2, 8
    """Windows after and before a step."""

    def __init__(self, limits: Limits, zone: ZoneInfo, day: int) -> None:
        """``day``: windows a day."""
        self._limits, self._zone = limits, zone
        self._history: dict[int, int] = {}
        self._size = Level(half_life=2 * day, learns=day)
        self._steps = Usual(half_life=7 * day, learns=2 * day, patience=day)
        self._off: deque[float] = deque(maxlen=self.NEW + self.OLD)

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A jump of how far demand is off both forecasts, in parts of usual demand."""
        if seen.counted is None:
            self._off.clear()
            return
        demand, start = seen.counted.city_wh, seen.window_start
        off = self._off_forecasts(start, demand)
        self._size.learn(abs(demand))
        self._history[start] = demand
        self._history.pop(start - 9 * DAY_S, None)
        if off is None:
            self._off.clear()
            return
        self._off.append(off)
        yield from self._step(demand)

    def _off_forecasts(self, start: int, demand: int) -> float | None:
        """By the forecast that is nearer; 0 if demand lies between the two."""
        before = [self._history.get(same_time_before(start, days, self._zone)) for days in (1, 7)]
        if not self._size.ready or self._size.mean <= 0 or None in before:
            return None
        off = [(demand - found) / self._size.mean for found in before if found is not None]
        return 0.0 if min(off) < 0 < max(off) else min(off, key=abs)

    def _step(self, demand: int) -> Iterator[Sign]:
        if len(self._off) < self.NEW + self.OLD:
            return
        values = list(self._off)
        step = sum(values[self.OLD :]) / self.NEW - sum(values[: self.OLD]) / self.OLD
        far = abs(self._steps.score(step, 0.01)) >= self._limits.step_deviations
        jumped = far and abs(step) >= self._limits.step_percent / 100
        self._steps.see(step, unusual=jumped)
        if jumped:
            expected = demand - step * self._size.mean
            yield Sign(Kind.DEMAND_STEP, demand / 1000, expected / 1000, "kWh")


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
        self._sums: tuple[int, ...] = ()
        self._run = 0

    def look(self, seen: Observation) -> Iterator[Sign]:
        """A window without a total does not end a run: it says nothing."""
        if seen.counted is None:
            return
        same = seen.counted.sums == self._sums
        self._run, self._sums = self._run + 1 if same else 1, seen.counted.sums
        if self._run >= self._limits.frozen_windows:
            yield Sign(Kind.FROZEN_TOTAL, self._run, 1, "windows alike")
