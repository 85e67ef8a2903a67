"""What a load test sends: how many reports of which kind, decided before anything is sent.

Pure functions of the load, the seed and a window's number, so that every process comes to the
same answer by itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from gridveil.protocol.city import MIN_HONEST
from gridveil.protocol.errors import MalformedInput, Reason

MOST_LATE = 0.2
"""Beyond it, too few meters are left for a total."""


class Kind(IntEnum):
    """What is sent, and so what must be answered."""

    ON_TIME = 0
    """A meter's report, within the grace period."""
    RESENT = 1
    """A report sent before, to the byte."""
    LATE = 2
    """A meter's only report of a window, after the grace period."""
    FORGED = 3
    """A report with a bit of its signature flipped."""
    FOREIGN_KEY = 4
    """A report signed by another meter of the fleet."""
    MALFORMED = 5
    """A report with a field that is a byte short."""


EXPECTED: Mapping[Kind, frozenset[Reason]] = MappingProxyType(
    {
        Kind.ON_TIME: frozenset(),
        Kind.RESENT: frozenset(),
        Kind.LATE: frozenset({Reason.WINDOW_CLOSED, Reason.WINDOW_RELEASED}),
        Kind.FORGED: frozenset({Reason.SIGNATURE_INVALID}),
        Kind.FOREIGN_KEY: frozenset({Reason.SIGNATURE_INVALID}),
        Kind.MALFORMED: frozenset({Reason.FIELD_FORMAT}),
    }
)
"""Reasons with which a report of a kind must be refused; none: it must get a receipt."""

BAD = (Kind.FORGED, Kind.FOREIGN_KEY, Kind.MALFORMED)


@dataclass(frozen=True)
class Mixture:
    """Shares of the fleet, each of 0 to 1, whose reports go wrong on purpose in a window."""

    duplicates: float = 0.0
    late: float = 0.0
    bad: float = 0.0

    def __post_init__(self) -> None:
        limits = {"duplicates": 1.0, "late": MOST_LATE, "bad": 1.0}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise _invalid(f"--{name} is 0% to {most:.0%}")


@dataclass(frozen=True)
class Load:
    """How much is sent, how fast, and by how many processes."""

    meters: int
    windows: int | None = None
    """Windows to play; None: as many as begin within ``duration_s``."""
    duration_s: float | None = None
    """Real seconds."""
    rate: float | None = None
    """Reports a second, whatever the answers take; None: as fast as they come."""
    processes: int = 2
    """That send; as many more prepare reports."""
    batch: int = 32
    in_flight: int = 4
    """Calls of one process at a time, if no rate is given."""
    mixture: Mixture = field(default_factory=Mixture)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.meters < MIN_HONEST:
            raise _invalid(f"--meters is {MIN_HONEST} or more: no total is opened over fewer")
        if (self.windows is None) == (self.duration_s is None):
            raise _invalid("give either --windows or --duration")
        if self.windows is not None and self.windows < 1:
            raise _invalid("--windows is 1 or more")
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise _invalid("--duration is above 0 seconds")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise _invalid("--rate is above 0 reports a second, or max")
        if not 1 <= self.processes <= 64:
            raise _invalid("--processes is 1 to 64")
        if self.batch < 1 or self.in_flight < 1:
            raise _invalid("--batch and --in-flight are 1 or more")

    def windows_at(self, window_s: float) -> int:
        """How many windows are played if one takes so many real seconds."""
        return self.windows or max(1, math.ceil((self.duration_s or 0) / window_s))

    def count(self, share: float) -> int:
        """So many meters are a share of the fleet."""
        return round(self.meters * share)

    @property
    def late(self) -> int:
        """Reports that are sent too late, in every window."""
        return self.count(self.mixture.late)

    @property
    def refused(self) -> int:
        """Reports that must be refused, in every window."""
        return self.late + self.count(self.mixture.bad)

    @property
    def timely(self) -> int:
        """Reports that are sent within the grace period, good or bad, in every window."""
        extra = self.count(self.mixture.duplicates) + self.count(self.mixture.bad)
        return self.meters - self.late + extra

    @property
    def sending_s(self) -> float | None:
        """Real seconds that a window's reports are spread over; None: nobody knows before."""
        return None if self.rate is None else self.timely / self.rate


class Slot(NamedTuple):
    """One report to be sent: its kind, and its meter's place in the fleet."""

    kind: Kind
    place: int


class Share(NamedTuple):
    """What one process sends of a window, in order."""

    timely: list[Slot]
    late: list[Slot]


def places_of(load: Load, process: int) -> range:
    """The places in the fleet of one process's meters."""
    return range(process, load.meters, load.processes)


def share_of(load: Load, number: int, process: int) -> Share:
    """What a process sends of a window.

    Args:
        load: the whole test.
        number: of the window within the test, from 0 on.
        process: its number, from 0 on.
    """
    chance = random.Random(f"{load.seed}/{number}")
    late = set(chance.sample(range(load.meters), load.late))
    on_time = [place for place in range(load.meters) if place not in late]
    again = chance.sample(on_time, min(len(on_time), load.count(load.mixture.duplicates)))
    bad = chance.sample(range(load.meters), load.count(load.mixture.bad))
    order: list[tuple[float, Slot]] = [
        (float(place), Slot(Kind.ON_TIME, place)) for place in on_time
    ]
    order += [(chance.uniform(p, load.meters), Slot(Kind.RESENT, p)) for p in again]
    order += [
        (chance.uniform(0, load.meters), Slot(BAD[at % len(BAD)], p)) for at, p in enumerate(bad)
    ]
    timely = [slot for _, slot in sorted(order) if slot.place % load.processes == process]
    ours = [Slot(Kind.LATE, p) for p in sorted(late) if p % load.processes == process]
    return Share(timely, ours)


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
