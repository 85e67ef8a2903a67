"""Which servers the store in Redis is kept on, how it spreads over a cluster, and what it costs."""

from __future__ import annotations

import hashlib
import shlex
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from redis.crc import key_slot

from gridveil.protocol.errors import Unavailable
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import (
    Committed,
    LaneBatch,
    Phase,
    StoredReport,
    StoreFailed,
)
from gridveil_services.aggregator.store.redis.settings import setting_fault, version_fault
from tests.contract.redis_lanes import KEYS, setting
from tests.contract.stores import START, RedisHarness, batch, made_up_report, make_window
from tests.support.redis_servers import NEEDED, SETTINGS, RedisServer, one_cluster, one_server

pytestmark = NEEDED

MOST_BYTES_A_REPORT = 300
"""What docs/operations.md says: bytes of Redis for a report of an open window, without sums."""
DANGEROUS = [
    ("appendonly", "no"),
    ("appendfsync", "everysec"),
    ("appendfsync", "no"),
    ("no-appendfsync-on-rewrite", "yes"),
    ("aof-load-truncated", "yes"),
    ("maxmemory-policy", "allkeys-lru"),
    ("maxmemory-policy", "volatile-ttl"),
]


@pytest.mark.parametrize(("name", "value"), DANGEROUS)
def test_a_server_that_may_lose_data_is_refused_and_the_setting_named(
    tmp_path: Path, name: str, value: str
) -> None:
    with (
        setting(one_server().client, name, value),
        pytest.raises(StoreFailed, match=f"{name} is not"),
    ):
        RedisHarness(tmp_path)


def test_fewer_replicas_than_the_server_insists_on_are_refused(tmp_path: Path) -> None:
    config = replace(one_server().config, replicas=1)
    with pytest.raises(StoreFailed, match="min-replicas-to-write"):
        RedisHarness(tmp_path, config=config)


def test_one_such_master_of_a_cluster_is_enough(tmp_path: Path) -> None:
    cluster = one_cluster()
    with (
        setting(cluster.servers[2].client, "appendfsync", "everysec"),
        pytest.raises(StoreFailed, match="appendfsync"),
    ):
        RedisHarness(tmp_path, cluster)


def test_a_replica_is_refused(tmp_path: Path) -> None:
    server = RedisServer()
    harness = RedisHarness(tmp_path, server)
    harness.close()
    server.client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(StoreFailed, match="replica"):
            harness.reopen()
    finally:
        harness.close_database()
        server.stop()


def test_a_server_that_does_not_answer_is_refused_without_naming_it(tmp_path: Path) -> None:
    server = RedisServer()
    harness = RedisHarness(tmp_path, server)
    harness.close()
    server.kill()
    try:
        with pytest.raises(StoreFailed) as refused:
            harness.reopen()
        assert str(server.port) not in str(refused.value)
    finally:
        harness.close_database()
        server.stop()


@pytest.mark.parametrize(
    ("version", "changed", "replicas", "named"),
    [
        ("6.2.14", {}, 0, "version"),
        ("7.0.15", {}, 0, None),
        ("8.0.1", {}, 0, None),
        ("7.0.15", {"min-replicas-to-write": "2"}, 2, None),
        ("7.0.15", {"min-replicas-to-write": "1"}, 2, "min-replicas-to-write"),
        ("7.0.15", {"appendfsync": "everysec"}, 0, "appendfsync"),
    ],
)
def test_what_is_wrong_with_a_server_is_decided_by_what_it_tells(
    version: str, changed: dict[str, str], replicas: int, named: str | None
) -> None:
    fault = version_fault(version) or setting_fault(SETTINGS | changed, replicas)
    assert fault is None if named is None else fault is not None and named in fault


@pytest.mark.parametrize("key", ["somebody:else", f"gv:{{{'ff' * 16}:x}}:window", KEYS.city])
def test_a_database_that_holds_something_else_is_refused(tmp_path: Path, key: str) -> None:
    harness = RedisHarness(tmp_path)
    harness.store.open_window(make_window())
    harness.reopen()
    harness.close()
    harness.clients[0].set(key, "1")
    with pytest.raises(StoreFailed, match="something else"):
        harness.reopen()
    harness.close_database()


class Monitor:
    """What a server executes, from now on."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._lines = self._socket.makefile("r", encoding="ascii")
        assert self._lines.readline().strip() == "+OK"

    def scripts(self) -> list[list[str]]:
        """Of each script call so far, the keys that it touched."""
        self._client.echo("the-end")
        found: list[list[str]] = []
        for line in self._lines:
            words = shlex.split(line.partition("] ")[2])
            if words[0] == "ECHO" and words[1] == "the-end":
                break
            if words[0] == "EVAL":
                found.append([])
            elif " lua] " in line:
                found[-1].append(words[1])
        self._lines.close()
        self._socket.close()
        return found


def test_no_script_touches_two_slots_and_lanes_are_spread(tmp_path: Path) -> None:
    cluster = one_cluster()
    harness = RedisHarness(tmp_path, cluster)
    monitors = [Monitor(server) for server in cluster.servers]
    lanes = 8
    harness.store.open_window(make_window(lanes=lanes))
    moved = make_window(parameters_digest=bytes([1]) * 32, lanes=lanes)
    assert harness.store.move_window(moved)
    made = [batch([at], lane=at, parameters_digest=bytes([1]) * 32) for at in range(lanes)]
    assert harness.store.commit(made, 77) == [Committed(77)] * lanes
    harness.store.commit(made, 78)
    assert harness.store.known(START, [made_up_report(3)[0].meter_id])
    assert harness.store.seal(START)
    assert harness.store.settle(START, Phase.RELEASED)
    harness.store.forget(2**40)
    harness.close()
    calls = [keys for monitor in monitors for keys in monitor.scripts()]
    touched = [{key_slot(key.encode()) for key in keys} for keys in calls]
    assert all(len(slots) == 1 for slots in touched)
    assert len(calls) > 5 * lanes
    slots = {key_slot(KEYS.lane(START, lane).lane.encode()) for lane in range(lanes)}
    assert len(slots) == lanes


def test_a_node_that_is_gone_stops_its_lanes_and_comes_back(tmp_path: Path) -> None:
    cluster = one_cluster()
    harness = RedisHarness(tmp_path, cluster)
    harness.store.open_window(make_window(lanes=8))
    assert harness.store.commit([batch([1], lane=1)], 77) == [Committed(77)]
    server = next(s for s in cluster.servers if s.client.dbsize())
    server.kill()
    lanes = [batch([10 + lane], lane=lane) for lane in range(8)]
    with pytest.raises(Unavailable):
        harness.store.commit(lanes, 78)
    server.start()
    cluster.wait()
    outcomes = [harness.store.commit([batch([20 + at], lane=at)], 79) for at in range(8)]
    assert outcomes == [[Committed(79)]] * 8
    harness.close()


def reports(meters: Sequence[int], source: bytes) -> list[StoredReport]:
    """Reports that differ in all that a real one differs in, made fast."""
    made = []
    for meter in meters:
        meter_id = hashlib.sha256(source + b"%d" % meter).digest()[:16]
        entry = meter_id + hashlib.shake_256(meter_id).digest(ENTRY_BYTES - 16)
        made.append(StoredReport(meter_id, hashlib.sha256(entry).digest(), entry))
    return made


@pytest.mark.parametrize(
    ("meters", "lanes", "together"), [(20_000, 2, 500), (10_000, 4, 100), (6_000, 2, 1)]
)
def test_a_report_of_an_open_window_takes_at_most_300_bytes_beside_the_sums(
    tmp_path: Path, meters: int, lanes: int, together: int
) -> None:
    harness = RedisHarness(tmp_path)
    client = harness.clients[0]
    harness.store.open_window(make_window(enrolled=meters, lanes=lanes, lane_capacity=meters))
    before = client.info("memory")["used_memory"]
    total = made_up_report(1)[1]
    for at in range(0, meters, together):
        lane = at // together % lanes
        made = reports(range(at, min(at + together, meters)), b"memory")
        outcome = harness.store.commit([LaneBatch(START, lane, made, total, bytes(32))], 1)
        assert outcome == [Committed(1)]
    sums = sum(client.memory_usage(KEYS.lane(START, lane).partials) for lane in range(lanes))
    used = client.info("memory")["used_memory"] - before - sums
    harness.close()
    assert used / meters <= MOST_BYTES_A_REPORT
    assert sums <= lanes * 25_000
