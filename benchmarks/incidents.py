"""A city with its ordinary troubles, and incidents put into it on purpose; seeded.

Demand is of made-up households (BDEW profiles) or of a file of readings. Everything else is made
up: who does not report, lanes, refusals, latency, and a feeder whose losses grow with the load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from gridveil.days import windows_of
from gridveil.settlements import NotReleasedReason
from gridveil.simulator.csv_source import CsvSource
from gridveil.simulator.readings import ReadingBounds
from gridveil.simulator.standard_load import StandardLoadSource
from gridveil.watchdog.observation import Counted, Observation, Told
from gridveil.watchdog.watchers import Kind

Array = npt.NDArray[np.float64]
Random = np.random.Generator

LENGTH = 900
DAY = 96
LANES = 5
WARM_UP_DAYS = 16
"""Without incidents: the watchdog knows nothing yet."""
BOUNDS = ReadingBounds(LENGTH, -(2**31), 2**31)


class Incident(NamedTuple):
    """Something that was put in; windows by their number, ``end`` left out."""

    kind: Kind
    begin: int
    end: int


@dataclass
class World:
    """A city's windows (rows) and meters (columns) before anybody adds them up."""

    windows: Sequence[int]
    used: Array
    """Wh that each meter should count."""
    counted: Array
    """Wh that each meter counts."""
    reports: npt.NDArray[np.bool_]
    """Who reports."""
    refused_reports: Array
    latency_s: Array
    lane_reports: Array
    """Shape (windows, lanes)."""
    feeder: Array
    refused: set[int] = field(default_factory=set)
    frozen: dict[int, int] = field(default_factory=dict)
    """Windows that show the sums of another one."""

    def observations(self) -> Iterator[Observation]:
        """What operators see of it."""
        for at, window in enumerate(self.windows):
            told = Told(
                float(self.refused_reports[at]),
                float(self.latency_s[at]),
                {str(lane): float(n) for lane, n in enumerate(self.lane_reports[at])},
            )
            refused = NotReleasedReason.REFUSED if at in self.refused else None
            counted = None if refused else self._counted(self.frozen.get(at, at))
            yield Observation(window, LENGTH, counted, refused, int(self.feeder[at]), told)

    def _counted(self, at: int) -> Counted:
        present = self.counted[at][self.reports[at]]
        count, enrolled = present.size, self.counted.shape[1]
        sums = int(present[present > 0].sum()), -int(present[present < 0].sum())
        city = (sums[0] - sums[1]) * enrolled // count
        return Counted(sums, city, count, enrolled, LANES, ())


class Demand(NamedTuple):
    """Households to build a city of."""

    zone: ZoneInfo
    windows: Sequence[int]
    wh: Array
    """Shape (windows, meters)."""


def days_from(first: date, days: int, zone: ZoneInfo) -> list[int]:
    """The windows of some local days."""
    return [
        window for n in range(days) for window in windows_of(first + timedelta(n), zone, LENGTH)
    ]


def made_up(random: Random, meters: int = 1000, days: int = 56) -> Demand:
    """BDEW households, all of them colder on some days than on others."""
    zone = ZoneInfo("Europe/Berlin")
    windows = days_from(date(2026, 2, 23), days, zone)
    source = StandardLoadSource(seed=int(random.integers(2**31)))
    found = source.read([None] * meters, windows, BOUNDS).wh.astype(np.float64)
    slow, fast = (_waves(random, len(windows), hours) for hours in (48, 3))
    return Demand(zone, windows, found * np.exp(0.06 * slow + 0.02 * fast)[:, None])


def recorded(path: Path) -> Demand:
    """The households of a file: 49 days from Monday 2018-10-29 in Zurich."""
    zone = ZoneInfo("Europe/Zurich")
    windows = days_from(date(2018, 10, 29), 49, zone)
    source = CsvSource(path, start=windows[0])
    return Demand(zone, windows, source.read(source.names(), windows, BOUNDS).wh.astype(np.float64))


def resampled(demand: Demand, random: Random) -> Demand:
    """As many households, drawn with replacement: another city of the same kind."""
    meters = demand.wh.shape[1]
    return demand._replace(wh=demand.wh[:, random.integers(meters, size=meters)])


def _waves(random: Random, size: int, hours: float) -> Array:
    """Standard normal values that are correlated over some hours."""
    keep = np.exp(-1 / (4 * hours))
    shocks, values = random.normal(size=size) * np.sqrt(1 - keep**2), np.empty(size)
    last = random.normal()
    for at, shock in enumerate(shocks):
        values[at] = last = keep * last + shock
    return values


def ordinary(demand: Demand, random: Random) -> World:
    """A city in which nothing happens but the ordinary."""
    size, meters = demand.wh.shape
    absent = 0.01 * np.exp(0.4 * _waves(random, size, 12))
    blips = random.random(size) < 1 / (5 * DAY)
    absent[blips] += random.uniform(0, 0.015, np.count_nonzero(blips))
    total = demand.wh.sum(axis=1)
    losses = 0.02 + 0.03 * total / total.max()
    reports = random.random((size, meters)) >= absent[:, None]
    world = World(
        windows=demand.windows,
        used=demand.wh,
        counted=demand.wh.copy(),
        reports=reports,
        refused_reports=np.asarray(random.poisson(3 * random.gamma(2, 0.5, size)), np.float64),
        latency_s=0.05 * np.exp(0.2 * random.normal(size=size) + 0.1 * _waves(random, size, 6)),
        lane_reports=np.array(
            [random.multinomial(n, [1 / LANES] * LANES) for n in reports.sum(axis=1)], np.float64
        ),
        feeder=total / (1 - losses) * (1 + 0.003 * random.normal(size=size)),
        refused=set(np.flatnonzero(random.random(size) < 1 / (10 * DAY)).tolist()),
    )
    return world


def coverage_drop(world: World, random: Random, at: int) -> Incident:
    """A gateway is away: 3 to 30 % of the meters, for 1 to 12 hours."""
    end = at + int(random.integers(4, 49))
    share = random.uniform(0.03, 0.3)
    gone = random.random(world.reports.shape[1]) < share
    world.reports[at:end, gone] = False
    world.lane_reports[at:end] *= 1 - share
    return Incident(Kind.COVERAGE_DROP, at, end)


def lane_drop(world: World, random: Random, at: int) -> Incident:
    """A lane takes 30 to 100 % fewer reports, for 1 to 6 hours."""
    end = at + int(random.integers(4, 25))
    lane, share = int(random.integers(LANES)), random.uniform(0.3, 1)
    world.lane_reports[at:end, lane] = np.floor(world.lane_reports[at:end, lane] * (1 - share))
    return Incident(Kind.LANE_DROP, at, end)


def feeder_drift(world: World, random: Random, at: int) -> Incident:
    """Within 5 to 15 days 2 to 8 % of the meters begin to count half of what they should."""
    size, meters = world.counted.shape
    bad = random.permutation(meters)[: int(meters * random.uniform(0.02, 0.08))]
    begins = at + np.sort(random.integers(0, DAY * int(random.integers(5, 16)), bad.size))
    for meter, begin in zip(bad, begins, strict=True):
        world.counted[begin:, meter] = np.floor(world.counted[begin:, meter] / 2)
    return Incident(Kind.FEEDER_DRIFT, at, size)


def demand_step(world: World, random: Random, at: int) -> Incident:
    """Everybody uses 15 to 45 % of usual demand more, or less, for 2 to 12 hours."""
    end = at + int(random.integers(8, 49))
    usual = world.used.sum(axis=1).mean()
    step = random.uniform(0.15, 0.45) * usual * random.choice([-1, 1])
    here = world.used[at:end].sum(axis=1)
    factor = np.maximum(0.2, 1 + step / here)
    world.feeder[at:end] *= factor
    world.counted[at:end] = np.floor(world.counted[at:end] * factor[:, None])
    return Incident(Kind.DEMAND_STEP, at, end)


def refused_windows(world: World, random: Random, at: int) -> Incident:
    """3 to 6 windows within 6 hours get no total."""
    lost = sorted(random.choice(24, int(random.integers(3, 7)), replace=False).tolist())
    world.refused |= {at + n for n in lost}
    return Incident(Kind.REFUSED_WINDOWS, at, at + lost[-1] + 1)


def refused_reports(world: World, random: Random, at: int) -> Incident:
    """30 to 300 reports more are refused in each of 1 to 4 windows."""
    end = at + int(random.integers(1, 5))
    world.refused_reports[at:end] += random.poisson(random.uniform(30, 300), end - at)
    return Incident(Kind.REFUSED_REPORTS, at, end)


def latency_rise(world: World, random: Random, at: int) -> Incident:
    """Calls take 2 to 10 times as long, for 1 to 6 hours."""
    end = at + int(random.integers(4, 25))
    world.latency_s[at:end] *= random.uniform(2, 10)
    return Incident(Kind.LATENCY_RISE, at, end)


def frozen_total(world: World, random: Random, at: int) -> Incident:
    """3 to 12 windows show the same sums."""
    end = at + int(random.integers(3, 13))
    world.frozen |= dict.fromkeys(range(at, end), at)
    return Incident(Kind.FROZEN_TOTAL, at, end)


Injection = Callable[[World, Random, int], Incident]
SHORT: tuple[Injection, ...] = (
    *(coverage_drop, coverage_drop, demand_step, demand_step, demand_step),
    *(lane_drop, refused_windows, refused_reports, latency_rise, frozen_total),
)
"""Each on a day of its own."""


def inject(world: World, random: Random) -> list[Incident]:
    """Put incidents into a city, after the watchdog's first days."""
    days = len(world.windows) // DAY
    chosen = random.choice(np.arange(WARM_UP_DAYS, days - 1), len(SHORT), replace=False)
    starts = [int(day) * DAY + int(random.integers(0, DAY // 2)) for day in chosen]
    found = [feeder_drift(world, random, int(random.integers(WARM_UP_DAYS, days - 17)) * DAY)]
    return found + [make(world, random, at) for make, at in zip(SHORT, starts, strict=True)]
