"""The city that a load test is run in: one that is there, or one that an extension makes.

An extension is an entry point of the group ``gridveil.local_city``: a :data:`MakeCity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points

from gridveil.clock import Clock
from gridveil.loadtest.load import Load
from gridveil.meter_identity import MeterKeys
from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason

GROUP = "gridveil.local_city"


def _unknown() -> Mapping[str, float]:
    return {}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class City:
    """Where to send to, with which meters, on which clock."""

    gateway: Profile
    operator: Profile
    meters: Sequence[MeterKeys]
    clock: Clock
    cpu_seconds: Callable[[], Mapping[str, float]] = _unknown
    """CPU time that each service has taken so far, by role; empty if nobody knows."""
    half_way: Callable[[], None] = _nothing
    """Called when half of all reports are sent."""


MOST_WORKERS = 16


@dataclass(frozen=True)
class LocalSetup:
    """What a city on this machine is made of."""

    workers: int = 1
    """Aggregator processes; several share a Redis Cluster that is started for them."""
    kill_worker: bool = False
    """Kill one of them in the middle of the test."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise MalformedInput(Reason.CONFIG_INVALID, f"--workers is 1 to {MOST_WORKERS}")
        if self.kill_worker and self.workers == 1:
            raise MalformedInput(Reason.CONFIG_INVALID, "--kill-worker needs --workers 2 or more")


MakeCity = Callable[[Load, LocalSetup, Callable[[str], None]], AbstractContextManager[City]]
"""Makes and runs a city for a load, and ends it; the last argument is told what happens."""


def local_city() -> MakeCity:
    """What makes a city on this machine, or CONFIG_INVALID if nothing is installed that can."""
    found = next(iter(entry_points(group=GROUP)), None)
    if found is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "a city on this machine needs: pip install 'gridveil-services[keyholder]';"
            " or name a city with --profile",
        )
    made: MakeCity = found.load()
    return made
