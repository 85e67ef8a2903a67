"""From windows to findings: each trouble is told once, when it is found.

watchdog = Watchdog(Limits(), length=900)
for observation in observations(settled):
watchdog, findings = step(watchdog, observation)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from gridveil.days import time_zone
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Observation
from gridveil.watchdog.watchers import (
    DAY_S,
    Coverage,
    Demand,
    Feeder,
    Frozen,
    Kind,
    Lanes,
    Latency,
    Refusals,
    Sign,
    Watcher,
)

QUIET_WINDOWS = 4
"""Without a sign of it, a trouble is over; the next sign is another one."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at."""

    kind: Kind
    window_start: int
    """In which it was found; when it began may be earlier."""
    observed: float
    expected: float
    unit: str
    """Of both."""
    lane: str | None
    """Which lane it is about, if it is about one."""


class Watchdog:
    """Everything that was learned so far; :func:`step` leaves it as it is."""

    def __init__(self, limits: Limits, length: int) -> None:
        """Begin without any history.

        Args:
            limits: of the city.
            length: of its windows, seconds.

        Raises:
            MalformedInput: CONFIG_INVALID for a zone that is not known here.
        """
        zone, day = time_zone(limits.zone), max(1, DAY_S // length)
        self._watchers: tuple[Watcher, ...] = (
            Coverage(limits, day),
            Lanes(limits),
            Feeder(limits, zone),
            Demand(limits, zone, day),
            Refusals(limits, day),
            Latency(limits, day),
            Frozen(limits),
        )
        self._length = length
        self._newest = -1
        self._open: dict[tuple[Kind, str | None], int] = {}
        """Troubles that are not over, each with the last window that had a sign of it."""

    def _look(self, seen: Observation) -> tuple[Finding, ...]:
        if seen.window_start <= self._newest or seen.length != self._length:
            raise MalformedInput(Reason.RANGE_INVALID, "windows are shown in order, of one length")
        self._newest = seen.window_start
        signs = [sign for watcher in self._watchers for sign in watcher.look(seen)]
        return tuple(self._found(signs, seen.window_start))

    def _found(self, signs: Iterable[Sign], window: int) -> Iterator[Finding]:
        since = window - QUIET_WINDOWS * self._length
        self._open = {trouble: last for trouble, last in self._open.items() if last >= since}
        for sign in signs:
            if (sign.kind, sign.lane) not in self._open:
                yield Finding(sign.kind, window, sign.observed, sign.expected, sign.unit, sign.lane)
            self._open[sign.kind, sign.lane] = window


def step(watchdog: Watchdog, seen: Observation) -> tuple[Watchdog, tuple[Finding, ...]]:
    """What is known after a window, and what was found in it; ``watchdog`` stays as it is.

    Raises:
        MalformedInput: RANGE_INVALID unless the window is later than the last, and as long.
    """
    after = copy.deepcopy(watchdog)
    return after, after._look(seen)


def replay(limits: Limits, seen: Iterable[Observation]) -> list[Finding]:
    """What is found in windows from the first one on; as :func:`step` by step, without copies."""
    source = iter(seen)
    first = next(source, None)
    if first is None:
        return []
    return learn(Watchdog(limits, first.length), chain((first,), source))[1]


def learn(watchdog: Watchdog, seen: Iterable[Observation]) -> tuple[Watchdog, list[Finding]]:
    """What is known after many windows, and what was found in them; as :func:`step` by step."""
    after, found = copy.deepcopy(watchdog), list[Finding]()
    for observation in seen:
        found += after._look(observation)
    return after, found
