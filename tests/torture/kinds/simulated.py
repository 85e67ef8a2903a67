"""A cluster in simulated time: the simulation of tests/simulation/cluster, seed after seed."""

from __future__ import annotations

from tests.simulation.cluster import runs
from tests.torture.tally import Kind, Tally

DAYS = 2.0
"""Of each world."""
_WORLDS = 100_000
"""Between the first worlds of two seeds."""


def run(seed: int, budget: int) -> Tally:
    """Worlds until so many faults were injected."""
    tally, world = Tally(), seed * _WORLDS
    while tally.injected < budget:
        done = runs.run(world, DAYS)
        tally.injected += done.faults
        tally.counts["simulated days"] += int(DAYS)
        tally.counts["events"] += done.steps
        for name in ("windows released", "windows poisoned", "reports counted"):
            tally.counts[name] += done.counts[name]
        if done.violation:
            tally.violations.append(done.violation)
        world += 1
    return tally


KIND = Kind(
    "a cluster in simulated time",
    "Up to three aggregators over a simulated Redis that runs the real scripts, on a simulated"
    " clock and network, from a seed: processes crash and pause, calls are lost, delayed and run"
    " twice, servers fail over to replicas that are behind, clocks differ. The total tells which"
    " meters were counted: all that hold a receipt, once, or the window is not released.",
    run,
    {"short": 2_000, "long": 40_000},
)
