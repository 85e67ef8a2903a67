"""Whatever is done to a cluster, in any order: Hypothesis looks for an order that breaks it.

GRIDVEIL_MACHINE_RUNS=5000 python -m pytest tests/simulation/test_cluster_machine.py
"""

from __future__ import annotations

import os
from collections import Counter
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.simulation.cluster.meters import METERS
from tests.simulation.cluster.world import HARMFUL, HARMLESS, LENGTH, Profile, World

RUNS = int(os.environ.get("GRIDVEIL_MACHINE_RUNS", "25"))
STEPS = 50


class Cluster(RuleBasedStateMachine):
    """A world in which everything that happens is chosen."""

    runs: ClassVar[int] = 0
    counts: ClassVar[Counter[str]] = Counter()
    """Of all runs so far."""
    world: World | None = None
    steps = 0

    @initialize(
        seed=st.integers(0, 2**32),
        processes=st.integers(1, 3),
        masters=st.sampled_from([1, 3]),
        wait=st.integers(0, 2),
    )
    def begin(self, seed: int, processes: int, masters: int, wait: int) -> None:
        profile = Profile(processes, masters, wait, 20, between_faults=0.0, switching=0.1)
        self.world = World(seed, profile)
        self.world.__enter__()
        self.world.meters.on = False
        self.world.run(2 * LENGTH)

    @rule(meters=st.sets(st.integers(0, METERS - 1), min_size=1), again=st.booleans())
    def submit(self, meters: set[int], again: bool) -> None:
        """Reports for the window before this one, in one call."""
        world = self._world()
        start = int(world.now // LENGTH - 1) * LENGTH
        world.meters.submit([(start, meter, 0) for meter in sorted(meters)])
        if again:
            world.meters.submit([(start, meter, 0) for meter in sorted(meters)])

    @rule(meter=st.integers(0, METERS - 1))
    def contradict(self, meter: int) -> None:
        world = self._world()
        start = int(world.now // LENGTH - 1) * LENGTH
        world.meters.submit([(start, meter, 1)])

    @rule(seconds=st.sampled_from([0.001, 1.0, 30.0, 300.0, 900.0]))
    def wait(self, seconds: float) -> None:
        self._world().run(seconds)

    @rule(kind=st.sampled_from([*HARMLESS, *HARMFUL]))
    def inject(self, kind: str) -> None:
        self._world().faults.inject(kind)

    def teardown(self) -> None:
        """Faults end, and everything comes to its end."""
        if self.world is not None:
            try:
                self.world.settle()
            finally:
                Cluster.runs += 1
                Cluster.counts["steps"] += self.steps
                Cluster.counts["reports counted"] += self.world.counts["reports counted"]
                self.world.__exit__(None, None, None)

    def _world(self) -> World:
        """For one step."""
        self.steps += 1
        assert self.world is not None
        return self.world


def settings_for(runs: int) -> settings:
    """No example database: a run that failed is repeated from its seed."""
    return settings(
        max_examples=runs,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


TestCluster = Cluster.TestCase
TestCluster.settings = settings_for(RUNS)
