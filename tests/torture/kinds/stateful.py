"""A simulated cluster to which anything happens in any order that Hypothesis comes up with."""

from __future__ import annotations

from collections import Counter

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.cluster import parallel
from tests.torture.tally import Kind, Tally

PART = 50
"""Runs that one process does before it takes up more."""


def run(seed: int, budget: int) -> Tally:
    """So many runs of up to 50 steps each."""
    parts = [(seed * 100_000 + at, min(PART, budget - at)) for at in range(0, budget, PART)]
    tally = Tally()
    for found in parallel.on_every_core(_part, parts):
        tally.add(found)
    return tally


def _part(given: tuple[int, int]) -> Tally:
    from tests.simulation.test_cluster_machine import Cluster, settings_for

    seed, budget = given
    Cluster.runs, Cluster.counts = 0, Counter()
    tally = Tally()
    try:
        hypothesis.seed(seed)(Cluster)
        run_state_machine_as_test(Cluster, settings=settings_for(budget))
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        tally.violations.append(f"seed {seed}, {budget} runs: {error!r} {notes}")
    tally.injected = Cluster.runs
    tally.counts.update(Cluster.counts)
    return tally


KIND = Kind(
    "a cluster, anything in any order",
    "The same simulated cluster, to which Hypothesis does up to 50 things in a run: reports, the"
    " same again, contradictions, waits, and every fault. What is counted is runs; the same is"
    " judged after each of them, when the faults have ended.",
    run,
    {"short": 100, "long": 5_000},
    simulated=True,
)
