"""A cluster in simulated time: the simulation of tests/simulation/cluster, seed after seed."""

from __future__ import annotations

import math

from tests.simulation.cluster import parallel, runs
from tests.simulation.cluster.runs import Run
from tests.torture.tally import Kind, Tally

FAULTS_A_DAY = 300
"""So many faults stand for one simulated day at least: 547,500 for 5 years."""
SHORT_DAYS, LONG_DAYS = 2.0, 12.5
"""Of each world; what comes after its faults takes up to a day, so long ones are cheaper."""
_WORLDS = 100_000
"""Between the first worlds of two seeds."""


def run(seed: int, budget: int) -> Tally:
    """Worlds until so many faults were injected, in so many days."""
    tally, world, days = Tally(), seed * _WORLDS, 0.0
    each = LONG_DAYS if budget > 10_000 else SHORT_DAYS
    while tally.injected < budget or days < budget / FAULTS_A_DAY:
        at_once = min(24, max(parallel.cores(), math.ceil((budget / FAULTS_A_DAY - days) / each)))
        worlds = [(world + number, each) for number in range(at_once)]
        for done in parallel.on_every_core(runs.run_named, worlds):
            _count(tally, done)
            days += each
        world += at_once
    tally.counts["simulated days"] = int(days)
    return tally


def _count(tally: Tally, done: Run) -> None:
    tally.injected += done.faults
    tally.counts["events"] += done.steps
    for name in ("windows released", "windows poisoned", "reports counted"):
        tally.counts[name] += done.counts[name]
    if done.violation:
        tally.violations.append(done.violation)


KIND = Kind(
    "a cluster in simulated time",
    "Up to three aggregators over a simulated Redis that runs the real scripts, on a simulated"
    " clock and network, from a seed: processes crash and pause, calls are lost, delayed and run"
    " twice, servers fail over to replicas that are behind, clocks differ. The total tells which"
    " meters were counted: all that hold a receipt, once, or the window is not released.",
    run,
    {"short": 2_000, "long": 547_500},
    simulated=True,
)
