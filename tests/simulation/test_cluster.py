"""Worlds made from seeds: several aggregators, one Redis that fails, and what must hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.cluster.meters import METERS
from tests.simulation.cluster.network import CALL_FAULTS
from tests.simulation.cluster.oracle import Violation
from tests.simulation.cluster.runs import FAULT_KINDS, TRACES, run
from tests.simulation.cluster.tasks import Killed, Scheduler
from tests.simulation.cluster.world import LENGTH, Profile, World
from tests.support.reports import WINDOW

EVERYTHING = Profile(
    processes=3, masters=3, wait=1, enrolled=20, between_faults=600.0, call_faults=0.005
)
COMMITTED = json.loads(Path(TRACES).read_text())


@pytest.mark.parametrize("seed", COMMITTED)
def test_a_seed_leaves_the_trace_that_was_committed_and_breaks_nothing(seed: str) -> None:
    """After a change of the calls to Redis: python -m tests.simulation.cluster --write."""
    done = run(int(seed), COMMITTED[seed]["days"])
    assert not done.violation
    assert done.faults >= 100
    assert done.counts["windows released"] >= 50 * done.days
    assert done.digest == COMMITTED[seed]["trace"]


def test_the_same_seed_twice_is_the_same_world_and_another_is_another() -> None:
    first, second, other = (run(seed, 0.1, EVERYTHING) for seed in (1, 1, 2))
    assert first.digest == second.digest
    assert first.counts == second.counts
    assert first.digest != other.digest


def test_every_kind_of_fault_comes_up() -> None:
    together: Counter[str] = Counter()
    for seed in range(6):
        together += run(seed, 0.25, EVERYTHING).counts
    missing = {kind for kind in FAULT_KINDS if not together[kind]}
    assert not missing & set(CALL_FAULTS)
    assert len(missing) <= 2, missing


def test_without_faults_every_window_is_released_with_every_meter() -> None:
    done = run(5, 0.25, Profile.calm(3, 3, wait=2))
    assert not done.violation
    assert done.counts["windows released"] == 24
    assert done.counts["reports counted"] == 24 * 20


def test_a_violation_names_its_seed_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(world: World, seconds: float) -> None:
        world.oracle.violated("C1: something")

    monkeypatch.setattr(World, "run", lose)
    assert "seed 7" in run(7, 0.5).violation
    assert "python -m tests.simulation.cluster --seeds 7 --days 0.5" in run(7, 0.5).violation


def test_the_oracle_sees_a_receipt_that_is_not_counted() -> None:
    """The control: a client holds a receipt of a meter that never reported."""
    with World(3, Profile(1, 1, 0, 20, between_faults=0.0, call_faults=0.0)) as world:
        world.oracle.history(WINDOW).acknowledged[METERS] = bytes(32)
        with pytest.raises(Violation, match="C1: acknowledged, not counted"):
            world.run(3 * LENGTH)


def test_tasks_take_turns_in_the_order_of_their_times() -> None:
    scheduler, said = Scheduler(0.0), []

    def speak(name: str, pause: float) -> None:
        said.append(name)
        scheduler.sleep(scheduler.now + pause)
        said.append(name.upper())

    scheduler.at(1.0, lambda: scheduler.start("x", lambda: speak("a", 5.0)))
    scheduler.at(2.0, lambda: scheduler.start("y", lambda: speak("b", 1.0)))
    scheduler.run(100.0)
    assert said == ["a", "b", "B", "A"]
    scheduler.close()


def test_a_task_that_is_killed_unwinds_and_says_no_more() -> None:
    scheduler, said = Scheduler(0.0), []

    def speak() -> None:
        try:
            scheduler.sleep(5.0)
            said.append("never")
        except Killed:
            said.append("killed")
            raise

    scheduler.start("x", speak)
    scheduler.at(1.0, lambda: scheduler.kill("x"))
    scheduler.run(100.0)
    assert said == ["killed"]
    assert not scheduler.tasks
    scheduler.close()
