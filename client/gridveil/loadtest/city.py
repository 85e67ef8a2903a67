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


@dataclass(frozen=True)
class City:
    """Where to send to, with which meters, on which clock."""

    gateway: Profile
    operator: Profile
    meters: Sequence[MeterKeys]
    clock: Clock
    cpu_seconds: Callable[[], Mapping[str, float]] = _unknown
    """CPU time that each service has taken so far, by role; empty if nobody knows."""


MakeCity = Callable[[Load, Callable[[str], None]], AbstractContextManager[City]]
"""Makes and runs a city for a load, and ends it; the second argument is told what happens."""


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
