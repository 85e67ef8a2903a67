"""What the store in Redis does when servers are changed under it: settings, and who has a slot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    NotOpen,
    Outcome,
    Phase,
    StoreFailed,
)
from tests.contract.redis_lanes import LANE, meter_id, phase, setting, sum_of
from tests.contract.stores import START, RedisHarness, batch, make_window
from tests.support.redis_servers import NEEDED, RedisCluster, one_cluster, one_server, until

pytestmark = NEEDED

SLOT = key_slot(LANE.lane.encode())
MOVE_MS = 5_000


class TestSettings:
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[RedisHarness]:
        made = RedisHarness(tmp_path)
        made.store.open_window(make_window())
        assert made.store.commit([batch([1])], 77) == [Committed(77)]
        yield made
        made.close_database()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("appendfsync", "everysec"),
            ("appendonly", "no"),
            ("no-appendfsync-on-rewrite", "yes"),
            ("maxmemory-policy", "allkeys-lru"),
        ],
    )
    def test_nothing_is_acknowledged_after_a_server_was_made_unsafe_and_the_setting_is_named(
        self, harness: RedisHarness, name: str, value: str
    ) -> None:
        with (
            setting(one_server().client, name, value),
            pytest.raises(StoreFailed, match=f"{name} is not"),
        ):
            harness.store.commit([batch([2])], 78)
        # That it was put right is no reason to believe in what was written meanwhile.
        with pytest.raises(StoreFailed):
            harness.store.commit([batch([3])], 79)

    def test_nor_is_a_report_that_another_aggregator_stored_before(
        self, harness: RedisHarness, tmp_path: Path
    ) -> None:
        other = RedisHarness(tmp_path / "other", fresh=False)
        other.store.open_window(make_window())
        with (
            setting(one_server().client, "appendfsync", "everysec"),
            pytest.raises(StoreFailed, match="appendfsync is not always"),
        ):
            other.store.known(START, [meter_id(1)])
        other.close()

    def test_a_start_afterwards_finds_the_reports_that_were_acknowledged(
        self, harness: RedisHarness
    ) -> None:
        with (
            setting(one_server().client, "appendfsync", "everysec"),
            pytest.raises(StoreFailed),
        ):
            harness.store.commit([batch([2])], 78)
        harness.reopen()
        (again,) = harness.store.commit([batch([1])], 79)
        assert isinstance(again, Known)
        assert harness.store.seal(START)

    def test_one_master_of_a_cluster_is_enough(self, tmp_path: Path) -> None:
        cluster = one_cluster()
        harness = RedisHarness(tmp_path, cluster)
        harness.store.open_window(make_window())
        with (
            setting(Mover(cluster).holder.client, "appendfsync", "no"),
            pytest.raises(StoreFailed, match="appendfsync"),
        ):
            harness.store.commit([batch([1])], 78)
        harness.close_database()


class Mover:
    """Moves the slot of lane 0 from the master that has it to another, a step at a time."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self.holder = next(s for s in cluster.servers if self.name_of(s) == self._owner())
        self.target = next(s for s in cluster.servers if s is not self.holder)

    def begin(self) -> None:
        setslot(self.target, "IMPORTING", self.name_of(self.holder))
        setslot(self.holder, "MIGRATING", self.name_of(self.target))

    def left(self) -> list[bytes]:
        """Keys that are still where they were."""
        found: list[bytes] = self.holder.client.execute_command(
            "CLUSTER", "GETKEYSINSLOT", SLOT, 1_000
        )
        return sorted(found)

    def move(self, key: bytes) -> None:
        self.holder.client.execute_command(
            "MIGRATE", "127.0.0.1", self.target.port, key, 0, MOVE_MS
        )

    def finish(self) -> None:
        """First the target, as the documentation of Redis says."""
        for server in (self.target, self.holder, *self._cluster.servers):
            setslot(server, "NODE", self.name_of(self.target))
        # A move that follows before all have heard of this one's epoch may draw the same: then
        # a word of the old holder that was on its way takes the slot back, and its keys are lost.
        until(lambda: len({self._told(server) for server in self._cluster.servers}) == 1)

    def _told(self, server: Any) -> tuple[tuple[bytes, ...], ...]:
        """Name, epoch and slots of every master as a server has them."""
        lines = server.client.execute_command("CLUSTER", "NODES").splitlines()
        told = [line.split(b" ") for line in lines]
        return tuple(sorted((words[0], words[6], *words[8:]) for words in told))

    def all_at_once(self) -> None:
        self.begin()
        while keys := self.left():
            for key in keys:
                self.move(key)
        self.finish()

    def _owner(self) -> str:
        for first, last, (_, _, owner, *_), *_ in self._cluster.servers[0].client.execute_command(
            "CLUSTER", "SLOTS"
        ):
            if first <= SLOT <= last:
                return bytes(owner).decode()
        raise AssertionError("no server has the slot")

    @staticmethod
    def name_of(server: Any) -> str:
        return bytes(server.client.execute_command("CLUSTER", "MYID")).decode()


def setslot(server: Any, state: str, node: str) -> None:
    server.client.execute_command("CLUSTER", "SETSLOT", SLOT, state, node)


class TestMovingSlots:
    @pytest.fixture
    def cluster(self) -> RedisCluster:
        return one_cluster()

    @pytest.fixture
    def harness(self, cluster: RedisCluster, tmp_path: Path) -> Iterator[RedisHarness]:
        made = RedisHarness(tmp_path, cluster)
        made.store.open_window(make_window(lanes=1))
        yield made
        made.close()

    def test_a_lane_that_is_on_its_way_is_never_taken_for_empty(
        self, harness: RedisHarness, cluster: RedisCluster
    ) -> None:
        mover = Mover(cluster)
        assert harness.store.commit([batch([0])], 77) == [Committed(77)]
        mover.begin()
        at, unsure = 1, set()
        while keys := mover.left():
            mover.move(keys[0])
            if attempt(harness, at) is None:
                unsure.add(at)
            at += 1
        assert unsure
        assert phase(harness) is Phase.OPEN
        mover.finish()
        for meter in unsure:
            assert isinstance(attempt(harness, meter), Committed | Known)
        assert harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(*range(at))]

    def test_a_lane_without_a_report_that_is_on_its_way_is_not_made_anew(
        self, harness: RedisHarness, cluster: RedisCluster
    ) -> None:
        mover = Mover(cluster)
        mover.begin()
        for key in mover.left():
            mover.move(key)
        assert attempt(harness, 1) is None
        assert harness.store.windows() == [make_window(lanes=1)]
        mover.finish()
        assert attempt(harness, 1) == Committed(77)

    def test_commits_go_on_while_a_slot_moves_and_each_report_counts_once(
        self, harness: RedisHarness, cluster: RedisCluster
    ) -> None:
        moves, errors = 6, []

        def move() -> None:
            try:
                for _ in range(moves):
                    Mover(cluster).all_at_once()
            except Exception as error:
                errors.append(error)

        moving = threading.Thread(target=move)
        moving.start()
        meter = 0
        while (moving.is_alive() or meter < 30) and not errors:
            if (outcome := attempt(harness, meter)) is not None:
                assert isinstance(outcome, Committed | Known)
                meter += 1
        moving.join()
        assert errors == []
        assert harness.store.count(START) == meter
        assert harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(*range(meter))]

    def test_a_slot_that_was_given_away_without_its_keys_poisons_the_window(
        self, harness: RedisHarness, cluster: RedisCluster
    ) -> None:
        assert harness.store.commit([batch([0])], 77) == [Committed(77)]
        mover = Mover(cluster)
        mover.begin()
        setslot(mover.target, "NODE", mover.name_of(mover.target))
        # Who had the slot hears of it, and drops what it holds.
        until(lambda: not mover.left())
        mover.finish()
        assert attempt(harness, 1) == NotOpen(Phase.POISONED)


def attempt(harness: RedisHarness, meter: int) -> Outcome | None:
    """What becomes of a meter's report; None if the store cannot tell now."""
    try:
        (outcome,) = harness.store.commit([batch([meter])], 77)
    except Unavailable as refusal:
        if refusal.reason is not Reason.STORE_UNAVAILABLE or isinstance(refusal, StoreFailed):
            raise
        return None
    return outcome
