"""What a demonstration plays, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gridveil.protocol.city import MIN_HONEST
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.reporting import EXPORT_REGISTER, IMPORT_REGISTER
from gridveil.simulator.csv_source import CsvSource
from gridveil.simulator.readings import ReadingBounds, ReadingSource
from gridveil.simulator.standard_load import StandardLoadSource
from gridveil_services.bootstrap.city import DEFAULT_REGISTERS, CityOptions
from gridveil_services.demo.processes import free_addresses

WINDOW_S = 900
GRACE_S = 600
"""Twice the usual: on the fast clock it is what the households have for building their reports."""

EVENING = int(datetime(2026, 1, 15, 16, 30, tzinfo=UTC).timestamp())
"""Where time starts when neither a file nor ``--start`` says so."""

_SHORTEST_WINDOW_S = 4.0
_WINDOW_S_A_METER = 0.01
_MOST_METERS = 20_000


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
        self.first_window = EVENING if options.start is None else options.start
        self.windows = [self.first_window + at * WINDOW_S for at in range(options.windows)]
        self.source = _source(options, self.first_window)
        self.truth = self._sum_plainly()

    @property
    def rate(self) -> float:
        """Metering seconds per real second: slow enough to encrypt a window's reports twice."""
        return WINDOW_S / max(_SHORTEST_WINDOW_S, self.options.meters * _WINDOW_S_A_METER)

    @property
    def city(self) -> CityOptions:
        """The city: a development city with the smallest cohort there is."""
        return CityOptions(
            window_length=WINDOW_S,
            grace=GRACE_S,
            min_cohort=MIN_HONEST,
            development=True,
            addresses=free_addresses(),
        )

    def _sum_plainly(self) -> dict[int, Truth]:
        bounds = {register.name: register.bound for register in DEFAULT_REGISTERS}
        limits = ReadingBounds(WINDOW_S, -bounds[EXPORT_REGISTER], bounds[IMPORT_REGISTER])
        table = self.source.read([None] * self.options.meters, self.windows, limits)
        if not table.present.any(axis=0).all():
            found = int(table.present.any(axis=0).sum())
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"there are readings of {found} households only"
            )
        return {
            window: Truth(
                int(present.sum()),
                {
                    IMPORT_REGISTER: int(wh[wh > 0].sum()),
                    EXPORT_REGISTER: int(-wh[wh < 0].sum()),
                },
            )
            for window, wh, present in zip(self.windows, table.wh, table.present, strict=True)
        }


def _source(options: DemoOptions, first_window: int) -> ReadingSource:
    if options.readings is None:
        return StandardLoadSource()
    source = CsvSource(options.readings, start=first_window)
    if source.intervals() is None and options.start is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"{options.readings.name} has timestamps: say with --start which window to begin with",
        )
    return source
