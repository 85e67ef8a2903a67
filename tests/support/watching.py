"""Windows of a calm city for the watchdog, to be disturbed.

seen = calm(28)
seen[2_000] = replace(seen[2_000], counted=None)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

from gridveil.watchdog.detector import Finding, replay
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Counted, Observation, Told
from gridveil.watchdog.watchers import Kind

LENGTH = 900
DAY = 96
START = 1_777_852_800
"""2026-05-04T00:00Z, a Monday."""
ENROLLED = 1_000


def calm(days: int, *, seed: int = 0, start: int = START) -> list[Observation]:
    """Days with a morning and an evening, a little noise, and losses of some 4 %."""
    source = random.Random(seed)
    found = []
    for at in range(days * DAY):
        shape = 1 + 0.5 * math.sin(2 * math.pi * at / DAY) + 0.2 * math.sin(4 * math.pi * at / DAY)
        demand = round(100_000 * shape * source.gauss(1, 0.01))
        fed = round(demand / 0.96 * source.gauss(1, 0.002))
        counted = Counted((demand, 0), demand, source.randint(985, 995), ENROLLED, 4, ())
        lanes = {str(lane): float(source.randint(235, 260)) for lane in range(4)}
        told = Told(float(source.randint(0, 8)), 0.05 * math.exp(source.gauss(0, 0.1)), lanes)
        found.append(Observation(start + at * LENGTH, LENGTH, counted, feeder_wh=fed, told=told))
    return found


def with_counted(seen: Observation, **changes: object) -> Observation:
    """The window with another total."""
    assert seen.counted is not None
    return replace(seen, counted=replace(seen.counted, **changes))  # type: ignore[arg-type]


def scaled(seen: Observation, factor: float) -> Observation:
    """The window with so many times the demand, at the meters and at the feeder."""
    assert seen.counted is not None
    assert seen.feeder_wh is not None
    city = round(seen.counted.city_wh * factor)
    return replace(
        with_counted(seen, city_wh=city, sums=(city, 0)), feeder_wh=round(seen.feeder_wh * factor)
    )


def frozen(seen: list[Observation], begin: int, end: int) -> list[Observation]:
    """The windows, some of them with the total of the first of these."""
    held = seen[begin].counted
    return disturbed(seen, begin, end, lambda one: replace(one, counted=held))


def told(seen: Observation, **changes: object) -> Observation:
    """The window with other metrics."""
    return replace(seen, told=replace(seen.told, **changes))  # type: ignore[arg-type]


def disturbed(
    seen: list[Observation], begin: int, end: int, change: Callable[[Observation], Observation]
) -> list[Observation]:
    """The windows with some of them changed."""
    return [*seen[:begin], *map(change, seen[begin:end]), *seen[end:]]


def found(seen: list[Observation], limits: Limits | None = None) -> list[tuple[Kind, int]]:
    """What is found, each with the number of its window."""
    return [
        (one.kind, (one.window_start - seen[0].window_start) // LENGTH)
        for one in all_of(seen, limits)
    ]


def all_of(seen: list[Observation], limits: Limits | None = None) -> list[Finding]:
    """What is found, whole."""
    return replay(limits or Limits(), seen)
