"""An aggregator that was away while a window was released, and servers that forgot that it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gridveil_services.aggregator.store.interface import Phase
from tests.simulation.cluster.meters import METERS
from tests.simulation.cluster.process import Process
from tests.simulation.cluster.world import LENGTH, Profile, World

LAST = METERS - 1
"""The meter that reports late."""


@pytest.fixture
def world() -> Iterator[World]:
    """Two aggregators on one server, whose replica nobody waits for; nothing comes by chance."""
    calm = replace(Profile.calm(2, 1, wait=0), switching=0.0)
    with World(1, calm) as world:
        world.meters.on = False
        world.run(2 * LENGTH)
        yield world


def reported(world: World) -> int:
    """A window in which all meters but one have reported, to whomever; its start."""
    start = int(world.now // LENGTH - 1) * LENGTH
    world.meters.submit([(start, meter, 0) for meter in range(LAST)])
    world.run(1)
    assert len(world.oracle.history(start).acknowledged) == LAST
    return start


def send_away(process: Process) -> None:
    """It does nothing from now on, and does not know how late it is."""
    process.clock.skew = -300.0
    process.pause(10 * LENGTH)


def forget_the_seal(world: World, at: float) -> None:
    """The replica has what is stored by now, and takes over once the window is released."""
    (master,) = world.network.masters
    master.fall_behind(0, linked=True)
    world.run(at - world.now)
    assert world.counts["windows released"] == 1
    world.oracle.changed("failover, replica behind")
    master.fail_over(0)


def forget_nothing(world: World) -> None:
    """A replica that has everything takes over."""
    (master,) = world.network.masters
    world.run(30)
    world.oracle.changed("failover")
    master.fail_over(0)


def come_back_after_a_release(world: World, others_pause_s: float) -> int:
    """One was away over it, is back before the others look, and has a report; the window."""
    start = reported(world)
    away, other = world.processes
    send_away(away)
    forget_the_seal(world, start + LENGTH + 450)
    other.pause(others_pause_s)
    away.resume()
    world.meters.submit([(start, LAST, 0)], to=away)
    return start


def test_it_acknowledges_nothing_of_a_window_that_others_released_and_redis_forgot(
    world: World,
) -> None:
    start = come_back_after_a_release(world, 60)
    world.run(30)
    assert LAST not in world.oracle.history(start).acknowledged


def test_it_says_that_the_window_was_released_once_the_others_have_told_redis_again(
    world: World,
) -> None:
    start = come_back_after_a_release(world, 20)
    world.run(300)
    window = world.processes[0].store.window(start)
    assert window is not None
    assert window.phase is Phase.RELEASED
    assert LAST not in world.oracle.history(start).acknowledged


def test_it_acknowledges_again_when_the_others_have_said_that_they_sealed_nothing(
    world: World,
) -> None:
    start = reported(world)
    away, _ = world.processes
    away.pause(10 * LENGTH)
    forget_nothing(world)
    away.resume()
    world.meters.submit([(start, LAST, 0)], to=away)
    world.run(1)
    assert LAST not in world.oracle.history(start).acknowledged
    world.run(300)
    world.meters.submit([(start, LAST, 0)], to=away)
    world.run(1)
    assert LAST in world.oracle.history(start).acknowledged


def test_it_acknowledges_at_once_if_no_server_was_replaced_meanwhile(world: World) -> None:
    start = reported(world)
    away, other = world.processes
    away.pause(10 * LENGTH)
    world.run(30)
    other.pause(600)
    away.resume()
    world.meters.submit([(start, LAST, 0)], to=away)
    world.run(1)
    assert LAST in world.oracle.history(start).acknowledged


def test_one_that_takes_part_from_now_on_asks_too(world: World) -> None:
    """It comes to a window that it never had, on servers that forgot how far that was."""
    start = reported(world)
    away, other = world.processes
    away.crash()
    shutil.rmtree(away.folder)
    forget_the_seal(world, start + LENGTH + 450)
    other.pause(60)
    world.meters.submit([(start, LAST, 0)], to=away)
    world.run(30)
    assert LAST not in world.oracle.history(start).acknowledged
