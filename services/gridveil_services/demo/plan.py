"""What a demonstration plays, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from gridveil.days import day_of, windows_of
from gridveil.protocol.city import MIN_HONEST, MOST_FAILURES
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.register_names import EXPORT_REGISTER, IMPORT_REGISTER
from gridveil.simulator.csv_source import CsvSource
from gridveil.simulator.readings import ReadingBounds, Readings, ReadingSource
from gridveil.simulator.standard_load import StandardLoadSource
from gridveil_services.bootstrap.city import DEFAULT_CONSOLE, DEFAULT_REGISTERS, CityOptions
from gridveil_services.bootstrap.layout import CONTROLLER, SERVICES, aggregator_names
from gridveil_services.demo.processes import free_addresses

WINDOW_S = 900
GRACE_S = 600
"""Twice the usual: on the fast clock it is what the households have for building their reports."""
_ROTATING_GRACE_S = 450
"""Half a window: what is left of it is for its release and for the next epoch."""

EVENING = int(datetime(2026, 1, 15, 16, 30, tzinfo=UTC).timestamp())
"""Where time starts when neither a file nor ``--start`` says so."""

LEFT_OUT_COVERAGE = 0.5
"""Of a city with misbehaving meters: one lane of three may be left out."""

ZONE = ZoneInfo("Europe/Berlin")
"""Where the households that are made up live; with a console a file's are taken to live there."""
PAST_DAYS = 48
"""With a console: so many days before the first window are known to the controller's forecast."""

_SHORTEST_WINDOW_S = 4.0
_SHORTEST_ROTATING_WINDOW_S = 9.0
"""With misbehaving meters: an epoch that is spent is followed before the next window's reports."""
_WINDOW_S_A_START_S = 3.0
"""Real seconds of a window for each that the key-holder takes to start: what the machine is slow in
there, it is slow in with reports and releases too."""
_LONGEST_SLOW_WINDOW_S = 60.0
_LEAST_METERS_IN_LANES = 300
_WINDOW_S_A_METER = 0.01
_MOST_METERS = 20_000
MOST_AGGREGATORS = 8


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for."""

    readings: Path | None = None
    """CSV file; made-up households without one."""
    meters: int = 120
    windows: int = 4
    start: int | None = None
    """Start of the first window, Unix seconds."""
    keep: Path | None = None
    """Folder to make the city in and leave it; a temporary one without it."""
    misbehaving: int = 0
    """How many of the households' meters misbehave, one in a window, twice each."""
    cluster: int = 0
    """Aggregators that share a Redis Cluster; 0 for one with a file of its own."""
    console: bool = False
    """Whether a controller and a console run beside it, and stay until a signal comes."""

    def __post_init__(self) -> None:
        if not MIN_HONEST <= self.meters <= _MOST_METERS:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"--meters is {MIN_HONEST} to {_MOST_METERS}: no total is opened over fewer than"
                f" {MIN_HONEST} households",
            )
        if not 1 <= self.windows <= 1_000:
            raise MalformedInput(Reason.CONFIG_INVALID, "--windows is 1 to 1000")
        if self.start is not None and self.start % WINDOW_S:
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"--start is a multiple of {WINDOW_S} seconds"
            )
        if self.cluster and not 2 <= self.cluster <= MOST_AGGREGATORS:
            raise MalformedInput(Reason.CONFIG_INVALID, f"--cluster is 2 to {MOST_AGGREGATORS}")
        if self.cluster and self.misbehaving:
            raise MalformedInput(Reason.CONFIG_INVALID, "--cluster or --misbehaving, not both")
        self._check_misbehaving()

    @property
    def aggregators(self) -> list[str]:
        """Their names."""
        return aggregator_names(self.cluster or 1)

    def _check_misbehaving(self) -> None:
        if not 0 <= self.misbehaving <= MOST_FAILURES:
            raise MalformedInput(Reason.CONFIG_INVALID, f"--misbehaving is 0 to {MOST_FAILURES}")
        if self.misbehaving and self.meters < _LEAST_METERS_IN_LANES:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"with --misbehaving, --meters is {_LEAST_METERS_IN_LANES} or more: fewer make up"
                " fewer than three lanes, and too few are counted without one of them",
            )
        if self.windows < 2 * self.misbehaving:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"--windows is {2 * self.misbehaving} or more: each meter of --misbehaving has two"
                " turns",
            )


@dataclass(frozen=True)
class Truth:
    """What only the demonstration knows: the plain sums of one window."""

    households: int
    """With a reading."""
    sums: dict[str, int]
    """Wh by register."""


class DemoPlan:
    """The readings of a demonstration, its windows and its clock rate."""

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        self.redis_nodes: tuple[str, ...] = ()
        """Of the Redis Cluster, once it runs."""
        self.first_window = EVENING if options.start is None else options.start
        self.windows = [self.first_window + at * WINDOW_S for at in range(options.windows)]
        self.past_days = _past_days(options)
        self.source = _source(options, self._file_start)
        self._table = self._read(self.windows)
        self._check_readings()
        self.truth = {window: self.truth_of(window) for window in self.windows}

    @property
    def _file_start(self) -> int:
        """When the first interval of a file is: where days before it are wanted, at a midnight."""
        if not self.past_days:
            return self.first_window
        return _midnight_before(self.first_window, self.past_days)

    def past(self) -> dict[int, int]:
        """Wh that the households drew in each window of the days before the first one."""
        if not self.past_days:
            return {}
        windows = range(self._file_start, self.first_window, WINDOW_S)
        table = self._read(list(windows))
        drawn = np.where(table.present & (table.wh > 0), table.wh, 0).sum(axis=1)
        return dict(zip(windows, map(int, drawn), strict=True))

    def rate(self, start_s: float) -> float:
        """Metering seconds per real second: slow enough to encrypt a window's reports twice.

        The services' clock cannot wait for them once it runs, so it is slower from the beginning
        where the machine is.

        Args:
            start_s: real seconds that the key-holder took to start on this machine just now.
        """
        rotating = self.options.misbehaving > 0
        shortest = _SHORTEST_ROTATING_WINDOW_S if rotating else _SHORTEST_WINDOW_S
        slow = min(start_s * _WINDOW_S_A_START_S, _LONGEST_SLOW_WINDOW_S)
        return WINDOW_S / max(shortest, slow, self.options.meters * _WINDOW_S_A_METER)

    @property
    def city(self) -> CityOptions:
        """The city: a development city with the smallest cohort there is.

        With misbehaving meters a total may miss a lane, and their first turns spend the failure
        budget.
        """
        others = (CONTROLLER, "console") if self.options.console else ()
        addresses = free_addresses((*SERVICES, *self.options.aggregators[1:], *others))
        city = CityOptions(
            window_length=WINDOW_S,
            grace=GRACE_S,
            min_cohort=MIN_HONEST,
            refusals_per_day=MOST_REFUSALS_PER_DAY,
            development=True,
            addresses={name: addresses[name] for name in (*SERVICES, *others[:1])},
            console=addresses.get("console", DEFAULT_CONSOLE),
            time_zone=ZONE.key,
            further_aggregators=tuple(addresses[n] for n in self.options.aggregators[1:]),
            redis_nodes=self.redis_nodes,
        )
        if not self.options.misbehaving:
            return city
        return replace(
            city,
            grace=_ROTATING_GRACE_S,
            min_coverage=LEFT_OUT_COVERAGE,
            failure_budget=self.options.misbehaving,
        )

    def truth_of(self, window: int, counted: NDArray[np.bool_] | None = None) -> Truth:
        """The plain sums of one window, over the ``counted`` households or all of them."""
        at = self.windows.index(window)
        chosen = self._table.present[at] if counted is None else self._table.present[at] & counted
        wh = self._table.wh[at, chosen]
        return Truth(
            int(chosen.sum()),
            {IMPORT_REGISTER: int(wh[wh > 0].sum()), EXPORT_REGISTER: int(-wh[wh < 0].sum())},
        )

    def part(self, places: Sequence[int]) -> Part:
        """The readings of some of the fleet."""
        table = self._table
        return Part(Readings(table.windows, table.wh[:, places], table.present[:, places]))

    def _read(self, windows: Sequence[int]) -> Readings:
        bounds = {register.name: register.bound for register in DEFAULT_REGISTERS}
        limits = ReadingBounds(WINDOW_S, -bounds[EXPORT_REGISTER], bounds[IMPORT_REGISTER])
        return self.source.read([None] * self.options.meters, windows, limits)

    def _check_readings(self) -> None:
        present = self._table.present.any(axis=0)
        if not present.all():
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"there are readings of {int(present.sum())} households only"
            )


@dataclass(frozen=True)
class Part:
    """A source of readings that were read before."""

    readings: Readings
    skipped: int = 0

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        """Of all its meters, in order."""
        chosen = [self.readings.windows.index(window) for window in windows]
        return Readings(tuple(windows), self.readings.wh[chosen], self.readings.present[chosen])


def _past_days(options: DemoOptions) -> int:
    """As many as wanted, or as a file has before enough of them to play."""
    if not options.console or options.start is not None:
        return 0
    intervals = CsvSource(options.readings).intervals() if options.readings else None
    if options.readings and intervals is None:
        return 0
    first = (EVENING - _midnight_before(EVENING, 0)) // WINDOW_S + options.windows
    spare = PAST_DAYS if intervals is None else (intervals - first) // (86_400 // WINDOW_S)
    return max(0, min(PAST_DAYS, spare))


def _midnight_before(at: int, days: int) -> int:
    """The start of the local day some days before a time's."""
    return windows_of(day_of(at, ZONE) - timedelta(days=days), ZONE, WINDOW_S).start


def _source(options: DemoOptions, file_start: int) -> ReadingSource:
    if options.readings is None:
        return StandardLoadSource()
    source = CsvSource(options.readings, start=file_start)
    if source.intervals() is None and options.start is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"{options.readings.name} has timestamps: say with --start which window to begin with",
        )
    return source
