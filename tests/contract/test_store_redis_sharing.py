"""Several aggregators on one Redis: who leads, who vouches, and what a loss comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import IntegrityLost, Unavailable
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    Moved,
    NotOpen,
    Phase,
    StoreFailed,
)
from gridveil_services.aggregator.store.redis import scripts, vouching
from gridveil_services.aggregator.store.redis.servers import script
from tests.contract.redis_lanes import KEYS, meter_id, phase, receipt, sum_of
from tests.contract.stores import LENGTH, START, RedisHarness, batch
from tests.contract.stores import make_window as window_of
from tests.contract.test_store_redis_loss import put_back
from tests.support.redis_servers import NEEDED, RedisServer

pytestmark = NEEDED


@pytest.fixture
def one(tmp_path: Path) -> Iterator[RedisHarness]:
    """The first, which leads."""
    made = RedisHarness(tmp_path / "one")
    made.store.open_window(window_of())
    yield made
    made.close()


@pytest.fixture
def two(one: RedisHarness, tmp_path: Path) -> Iterator[RedisHarness]:
    made = RedisHarness(tmp_path / "two", fresh=False)
    made.store.open_window(window_of())
    yield made
    made.close()


@pytest.fixture
def client(one: RedisHarness) -> Any:
    """The server, behind the stores' backs."""
    return one.clients[0]


def die(harness: RedisHarness) -> None:
    """As when its process is killed: its lease ends by itself, its file stays."""
    harness.redis._servers.close()
    harness.close_database()
    harness.database = None


def lead(harness: RedisHarness, client: Any) -> None:
    """The lease of whoever led has run out."""
    client.delete(KEYS.leader)
    assert harness.store.follow()


def tell(harness: RedisHarness, now: float) -> bool:
    """Move an aggregator's clock; whether it leads then."""
    harness.clock.move_to(now)
    return harness.store.follow()


def dumped(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


class TestTogether:
    def test_reports_taken_by_either_are_counted_once(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        assert one.store.commit([batch([1, 2])], 77) == [Committed(77)]
        assert two.store.commit([batch([3])], 78) == [Committed(78)]
        assert two.store.commit([batch([2, 4])], 79) == [Known({meter_id(2): receipt(2, 77)})]
        assert one.store.known(START, [meter_id(3)]) == {meter_id(3): receipt(3, 78)}
        assert one.store.seal(START)
        assert two.store.follow() is False
        assert phase(two) is Phase.SEALED
        assert not one.store.vouched(START), "the other has not compared yet"
        two.store.vouched(START)
        assert one.store.vouched(START)
        assert one.store.lane_sums(START) == [sum_of(1, 2, 3)]

    def test_one_leads_and_the_other_does_when_the_lease_is_over(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        assert one.store.leads
        assert not two.store.leads
        assert one.store.follow()
        assert not two.store.follow()
        assert 0 < client.pttl(KEYS.leader) <= 3_000
        die(one)
        assert not two.store.follow()
        lead(two, client)
        assert two.store.leads

    def test_one_that_stops_lets_the_other_lead_at_once(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        one.close()
        assert two.store.follow()
        one.reopen()
        assert not one.store.leads

    def test_a_window_that_others_opened_takes_no_report_before_its_roster_is_known(
        self, one: RedisHarness, tmp_path: Path
    ) -> None:
        other = RedisHarness(tmp_path / "two", fresh=False)
        assert other.store.windows() == [window_of()]
        assert other.store.window(START) is None
        assert other.store.commit([batch([1])], 77) == [NotOpen(None)]
        other.store.open_window(window_of())
        assert other.store.commit([batch([1])], 77) == [Committed(77)]
        other.close()

    def test_a_window_that_the_leader_moved_is_under_the_same_parameters_everywhere(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        moved = replace(window_of(), parameters_digest=bytes([7]) * 32)
        assert not two.store.move_window(moved), "it does not lead"
        assert one.store.move_window(moved)
        assert two.store.commit([batch([1])], 77) == [Moved()]
        assert two.store.window(START) == moved
        new = batch([1])._replace(parameters_digest=moved.parameters_digest)
        assert two.store.commit([new], 78) == [Committed(78)]
        assert one.store.count(START) == 1

    def test_a_move_that_its_leader_did_not_finish_is_finished_by_the_next(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        lane = KEYS.lane(START, 0).lane
        client.hset(lane, "parameters", bytes([7]) * 32)
        with pytest.raises(Unavailable, match="just now"):
            two.store.commit([batch([1])], 77)
        die(one)
        lead(two, client)
        assert two.store.commit([batch([1])], 78) == [Committed(78)]

    def test_a_leader_that_was_paused_seals_nothing_after_another_has(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        one.store.commit([batch([1])], 77)
        servers = one.redis._servers
        ((_, epoch),) = servers.write([script(scripts.FENCE, [KEYS.window(START)], "1")])
        lead(two, client)
        assert two.store.seal(START)
        sealed = script(scripts.SEAL_WINDOW, [KEYS.window(START)], "1", "2", epoch.decode())
        ((word, _),) = servers.write([sealed])
        assert word == b"other"
        assert not one.store.seal(START)
        assert phase(one) is Phase.SEALED
        assert one.store.commit([batch([2])], 78) == [NotOpen(Phase.SEALED)]

    def test_a_window_settled_by_one_is_settled_and_forgotten_by_all(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        two.store.commit([batch([1])], 77)
        one.store.seal(START)
        two.store.follow()
        two.store.vouched(START)
        assert one.store.vouched(START)
        assert one.store.settle(START, Phase.RELEASED)
        two.store.follow()
        assert phase(two) is Phase.RELEASED
        assert two.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}
        assert two.database is not None
        assert two.database.rows("SELECT count(*) FROM acknowledgements") == [(0,)]
        assert one.store.forget(START + LENGTH + 1) == 1
        two.store.follow()
        assert two.store.windows() == []
        with pytest.raises(Exception, match="closed"):
            two.store.open_window(window_of())


class TestLoss:
    def test_an_acknowledged_report_that_a_failover_lost_poisons_the_window(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        one.store.commit([batch([1])], 77)
        before = dumped(client)
        two.store.commit([batch([2])], 78)
        put_back(client, before)
        assert one.store.seal(START), "nobody in Redis knows"
        two.store.follow()
        with pytest.raises(IntegrityLost, match="acknowledged"):
            two.store.vouched(START)
        assert not one.store.vouched(START)
        assert two.store.settle(START, Phase.POISONED)
        one.store.follow()
        assert phase(one) is Phase.POISONED
        assert one.store.why_poisoned(START) == "an acknowledged report is missing"
        one.reopen()
        assert one.store.why_poisoned(START) == "an acknowledged report is missing"

    def test_what_is_acknowledged_again_by_another_is_in_its_journal_too(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        before = dumped(client)
        one.store.commit([batch([1])], 77)
        two.store.known(START, [meter_id(1)])
        die(one)
        put_back(client, before)
        lead(two, client)
        assert two.store.seal(START)
        with pytest.raises(IntegrityLost, match="acknowledged"):
            two.store.vouched(START)

    def test_a_window_waits_for_an_aggregator_that_is_gone_if_a_server_was_restarted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vouching, "PATIENCE_S", -1.0)
        server = RedisServer()
        try:
            one = RedisHarness(tmp_path / "one", server)
            one.store.open_window(window_of())
            two = RedisHarness(tmp_path / "two", server, fresh=False)
            two.store.open_window(window_of())
            two.store.commit([batch([1])], 77)
            die(two)
            server.kill()
            server.start()
            assert one.store.follow()
            assert one.store.seal(START)
            assert not one.store.vouched(START)
            two.reopen()
            two.store.vouched(START)
            assert one.store.vouched(START)
            assert one.store.lane_sums(START) == [sum_of(1)]
            two.close()
            one.close()
        finally:
            server.stop()

    def test_a_window_does_without_one_that_is_gone_if_the_servers_are_the_same(
        self,
        one: RedisHarness,
        two: RedisHarness,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        two.store.commit([batch([1])], 77)
        die(two)
        one.store.seal(START)
        assert not one.store.vouched(START), "it may be slow"
        monkeypatch.setattr(vouching, "PATIENCE_S", 0.0)
        assert one.store.vouched(START)
        assert one.store.lane_sums(START) == [sum_of(1)]

    def test_who_took_part_is_known_although_redis_forgot_it(
        self, one: RedisHarness, two: RedisHarness, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one.store.follow()
        name = two.redis._replica.name
        die(two)
        assert client.hdel(KEYS.window(START), f"r:{name}", "lineage") == 2
        monkeypatch.setattr(vouching, "PATIENCE_S", -1.0)
        one.store.seal(START)
        assert not one.store.vouched(START)

    def test_one_whose_part_redis_forgot_says_so_again(
        self, two: RedisHarness, client: Any
    ) -> None:
        field = f"r:{two.redis._replica.name}"
        client.hdel(KEYS.window(START), field)
        two.store.follow()
        assert client.hget(KEYS.window(START), field) == b"1"

    def test_what_was_vouched_for_is_what_is_read(self, one: RedisHarness, client: Any) -> None:
        one.store.commit([batch([1])], 77)
        before = dumped(client)
        one.store.commit([batch([2])], 78)
        one.store.seal(START)
        assert one.store.vouched(START)
        lanes = [KEYS.lane(START, lane).lane for lane in range(2)]
        sealed = [client.hget(lane, "sealed") for lane in lanes]
        put_back(client, before)
        for lane, epoch in zip(lanes, sealed, strict=True):
            client.hset(lane, "sealed", epoch)
        with pytest.raises(IntegrityLost):
            one.store.lane_sums(START)
        with pytest.raises(IntegrityLost):
            list(one.store.entries(START))

    def test_a_new_aggregator_opens_no_window_whose_reports_an_emptied_server_may_have_lost(
        self, one: RedisHarness, client: Any, tmp_path: Path
    ) -> None:
        one.store.commit([batch([1])], 77)
        die(one)
        client.flushall()
        other = RedisHarness(tmp_path / "two", fresh=False, now=START + LENGTH)
        assert other.store.open_window(window_of()).phase is Phase.POISONED
        assert "before the servers were changed" in other.store.why_poisoned(START)
        following = replace(window_of(), start=START + LENGTH + 900)
        assert other.store.open_window(following).phase is Phase.OPEN
        other.close()

    def test_of_two_whose_clocks_differ_neither_takes_reports_until_they_agree(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        assert tell(one, 10_000.0) is False
        tell(two, 1.0)
        for each in (one, two):
            with pytest.raises(Unavailable, match="clocks"):
                each.store.commit([batch([1])], 77)
        tell(two, 10_000.0)
        assert tell(one, 10_000.0)
        for at, each in enumerate((one, two)):
            assert each.store.commit([batch([at])], 78) == [Committed(78)]

    def test_of_three_only_the_one_that_is_wrong_stops(
        self, one: RedisHarness, two: RedisHarness, tmp_path: Path
    ) -> None:
        three = RedisHarness(tmp_path / "three", fresh=False)
        three.store.open_window(window_of())
        tell(three, 10_000.0)
        assert tell(one, 1.0)
        tell(two, 1.0)
        assert one.store.commit([batch([1])], 77) == [Committed(77)]
        assert two.store.commit([batch([2])], 77) == [Committed(77)]
        with pytest.raises(Unavailable, match="clocks"):
            three.store.commit([batch([3])], 77)
        three.close()

    def test_aggregators_of_another_version_do_not_share_it(
        self, one: RedisHarness, client: Any, tmp_path: Path
    ) -> None:
        client.hset(KEYS.servers, "format", "2")
        with pytest.raises(StoreFailed, match="another version"):
            RedisHarness(tmp_path / "two", fresh=False)


def test_a_window_that_was_forgotten_stays_so_when_redis_is_put_back_to_before(
    one: RedisHarness, client: Any
) -> None:
    """An old copy of Redis knows of windows that were released and deleted since."""
    one.store.commit([batch([1, 2])], 77)
    before = dumped(client)
    one.store.seal(START)
    one.store.vouched(START)
    one.store.settle(START, Phase.RELEASED)
    assert one.store.forget(START + 10 * LENGTH) == 1
    put_back(client, before)
    one.reopen()
    assert one.store.window(START) is None
    assert one.store.windows() == []


def test_a_leader_that_was_overtaken_while_it_read_takes_over_what_the_other_settled(
    one: RedisHarness, two: RedisHarness, client: Any
) -> None:
    """What it does not find any more was deleted because the window is released."""
    one.store.commit([batch([1, 2])], 77)
    one.store.seal(START)
    assert not one.store.vouched(START)
    lead(two, client)
    two.store.vouched(START)
    assert one.store.vouched(START)
    assert two.store.vouched(START)
    assert two.store.settle(START, Phase.RELEASED)
    with pytest.raises(IntegrityLost):
        one.store.lane_sums(START)
    assert not one.store.settle(START, Phase.POISONED)
    assert phase(one) is Phase.RELEASED
    assert one.store.lane_sums(START) == two.store.lane_sums(START) == [sum_of(1, 2)]
