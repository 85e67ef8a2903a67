"""A real Redis Cluster in network namespaces, whose links are cut, under two aggregators.

Needs root and iproute2. The aggregators are outside, beside the bridge that joins the servers.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from random import Random

from tests.support.redis_replicas import ReplicatedCluster
from tests.torture.kinds.redis_rounds import Fault, play
from tests.torture.tally import Kind, Tally

_SERVERS = 6
_NUMBERS = count()
_NET = "10.213.77"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A bridge, and a namespace for each server with one link to it."""

    def __init__(self) -> None:
        # Another one each time: the kernel takes its time to remove what was there.
        self._id = f"{os.getpid() % 10_000}x{next(_NUMBERS)}"
        self.bridge = f"gvb{self._id}"
        self.places = [
            (f"{_NET}.{n + 10}", ("ip", "netns", "exec", self._name(n))) for n in range(_SERVERS)
        ]

    def up(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{_NET}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for n, (address, _) in enumerate(self.places):
            name, inner = self._name(n), f"gvi{self._id}{n}"
            _ip("netns", "add", name)
            _ip("link", "add", self._link(n), "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", name)
            _ip("link", "set", self._link(n), "master", self.bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
            _ip("-n", name, "link", "set", inner, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def down(self) -> None:
        for n in range(_SERVERS):
            with suppress(subprocess.CalledProcessError):
                _ip("link", "del", self._link(n))
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._name(n))
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.bridge)

    def connected(self, address: str, *, is_up: bool) -> None:
        """Have a server reach everybody, or nobody."""
        _ip("link", "set", self._link(self._number(address)), "up" if is_up else "down")

    def isolated(self, *, are: bool) -> None:
        """Have servers not reach each other, while the aggregators reach all."""
        for n in range(_SERVERS):
            _ip(
                *("link", "set", self._link(n), "type", "bridge_slave"),
                *("isolated", "on" if are else "off"),
            )

    def _number(self, address: str) -> int:
        return [place for place, _ in self.places].index(address)

    def _name(self, n: int) -> str:
        return f"gvn{self._id}{n}"

    def _link(self, n: int) -> str:
        return f"gvl{self._id}{n}"


@contextmanager
def _network() -> Iterator[Network]:
    network = Network()
    try:
        network.up()
        yield network
    finally:
        network.down()


def _faults(network: Network) -> tuple[Fault, ...]:
    def cut_off(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
        host = chance.choice(cluster.masters()).host
        network.connected(host, is_up=False)
        return lambda: network.connected(host, is_up=True)

    def cut_each(cluster: ReplicatedCluster, chance: Random) -> Callable[[], None]:
        network.isolated(are=True)
        return lambda: network.isolated(are=False)

    return (
        Fault("a master cut off from everybody", cut_off, 5.0),
        Fault("all servers cut off from each other, not from aggregators", cut_each, 3.0),
        Fault("a master cut off; nothing waited for", cut_off, 5.0, replicas=0),
        Fault("all cut off from each other; nothing waited for", cut_each, 3.0, replicas=0),
    )


def run(seed: int, budget: int) -> Tally:
    """Rounds on a cluster and a network of its own."""
    with _network() as network:
        cluster = ReplicatedCluster(network.places)
        try:
            with tempfile.TemporaryDirectory(prefix="gridveil-partitions-") as folder:
                return play(cluster, Path(folder), _faults(network), seed, budget)
        finally:
            cluster.stop()


KIND = Kind(
    "partitions of Redis",
    "The same, while links are cut in network namespaces: a master is cut off from everybody, or"
    " all servers from each other while both aggregators reach all of them.",
    run,
    {"short": 3, "long": 9},
    tool="ip",
)
