"""Aggregators on a Redis that loses things: what is acknowledged is counted, or nothing is.

Small worlds made from seeds (``tests/simulation/cluster``), each kind with the faults that one
protection of the store is there for.
"""

from __future__ import annotations

from tests.simulation.cluster.runs import run
from tests.simulation.cluster.world import HARMLESS, Profile

DAYS = 0.1

HARSH = Profile(
    processes=3,
    masters=1,
    wait=0,
    enrolled=20,
    kinds=HARMLESS,
    between_faults=900.0,
    call_faults=0.01,
    switching=0.3,
    misbehaving=0.2,
)
LOSSY = Profile(
    processes=3,
    masters=1,
    wait=1,
    enrolled=20,
    kinds={"replica behind": 4.0, "failover": 1.0},
    between_faults=40.0,
    call_faults=0.001,
    switching=0.1,
)


def breaks(profile: Profile, seeds: int) -> list[str]:
    """What does not hold in the first world in which something does not."""
    for seed in range(seeds):
        done = run(seed, DAYS, profile)
        if done.violation:
            return [done.violation]
    return []


def test_calls_that_are_lost_late_or_doubled_change_nothing() -> None:
    assert breaks(HARSH, 6) == []


def test_a_redis_that_goes_back_to_before_is_never_believed() -> None:
    assert breaks(LOSSY, 12) == []
