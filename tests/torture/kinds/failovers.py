"""Failovers of a real Redis Cluster under two aggregators."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.support.redis_replicas import ReplicatedCluster
from tests.support.redis_servers import until
from tests.torture.kinds.redis_rounds import Fault, play
from tests.torture.tally import Kind, Tally


def _kill(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
    victim = chance.choice(cluster.masters())
    victim.kill()
    return victim.start


def _pause(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
    victim = chance.choice(cluster.masters())
    victim.pause()
    return victim.resume


def _switch(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
    replica = cluster.replica_of(chance.choice(cluster.masters()))
    assert replica is not None
    replica.client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
    return lambda: None


def _behind(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
    """The replica misses some seconds, and the master dies then: what it had alone is lost.

    What the kernel's buffers hold reaches the replica yet, so it takes some megabytes.
    """
    victim = chance.choice(cluster.masters())
    replica = cluster.replica_of(victim)
    assert replica is not None
    replica.pause()

    def over() -> None:
        victim.kill()
        replica.resume()
        until(lambda: replica in cluster.masters())
        victim.start()

    return over


FAULTS = (
    Fault("master killed, replica elected", _kill, 4.0),
    Fault("master paused, replica elected, master back", _pause, 4.0),
    Fault("replica took over at once", _switch, 1.0),
    Fault("replica behind, then master killed; nothing waited for", _behind, 4.0, replicas=0),
    Fault("master killed; nothing waited for", _kill, 4.0, replicas=0),
)


def run(seed: int, budget: int) -> Tally:
    """Rounds on a cluster of its own."""
    cluster = ReplicatedCluster()
    try:
        with tempfile.TemporaryDirectory(prefix="gridveil-failovers-") as folder:
            return play(cluster, Path(folder), FAULTS, seed, budget)
    finally:
        cluster.stop()


KIND = Kind(
    "failovers of Redis",
    "Two aggregators take reports on a Redis Cluster of three masters and three replicas while a"
    " master is killed, paused or replaced, also by a replica that lacks what was acknowledged."
    " Every acknowledged report is in the sealed set, whose sum is that of just its meters, or the"
    " window is poisoned.",
    run,
    {"short": 3, "long": 15},
    tool="redis-server",
)
