"""Aggregators on one Redis that were paused, came late, or look while another one works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil_services.aggregator.store.interface import Committed, Moved, NotOpen, Phase
from gridveil_services.aggregator.store.redis import scripts, vouching
from gridveil_services.aggregator.store.redis.servers import Call
from tests.contract.redis_lanes import KEYS, meter_id, phase, receipt, sum_of
from tests.contract.stores import START, RedisHarness, batch
from tests.contract.stores import make_window as window_of
from tests.contract.test_store_redis_loss import put_back
from tests.contract.test_store_redis_sharing import die, dumped, lead
from tests.support.redis_servers import NEEDED

pytestmark = NEEDED

MOVED = replace(window_of(), parameters_digest=bytes([7]) * 32, lanes=1)


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


def before_call(
    harness: RedisHarness,
    of: str,
    happens: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Have something happen, once, before an aggregator sends a script."""
    servers = harness.redis._servers
    write, waiting = servers.write, [happens]

    def written(calls: Sequence[Call], *, everywhere: bool = False) -> list[Any]:
        if waiting and any(of in call.command for call in calls):
            waiting.pop()()
        return write(calls, everywhere=everywhere)

    monkeypatch.setattr(servers, "write", written)


class TestPaused:
    def test_a_leader_that_is_paused_in_a_move_does_not_move_a_window_that_holds_reports(
        self,
        one: RedisHarness,
        two: RedisHarness,
        client: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def another_leads_meanwhile() -> None:
            lead(two, client)
            for lane in range(2):
                assert two.store.commit([batch([lane], lane=lane)], 77) == [Committed(77)]

        before_call(one, scripts.MOVE_WINDOW, another_leads_meanwhile, monkeypatch)
        assert not one.store.move_window(MOVED)
        one.store.follow()
        assert two.store.seal(START)
        one.store.follow()
        one.store.vouched(START)
        assert two.store.vouched(START)
        assert sum(lane.count for lane in two.store.lane_sums(START)) == 2

    def test_a_leader_that_is_paused_in_a_move_does_not_move_a_window_that_is_being_sealed(
        self,
        one: RedisHarness,
        two: RedisHarness,
        client: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def another_seals_meanwhile() -> None:
            lead(two, client)
            assert two.store.seal(START)

        before_call(one, scripts.MOVE_WINDOW, another_seals_meanwhile, monkeypatch)
        assert not one.store.move_window(MOVED)
        assert two.store.window(START) == replace(window_of(), phase=Phase.SEALED)

    def test_a_leader_that_was_paused_does_not_poison_what_another_has_released(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        one.store.commit([batch([1])], 77)
        one.store.seal(START)
        lead(two, client)
        two.store.vouched(START)
        assert one.store.vouched(START)
        assert two.store.vouched(START)
        two.store.settle(START, Phase.RELEASED)
        with pytest.raises(IntegrityLost):
            one.store.lane_sums(START)
        assert not one.store.settle(START, Phase.POISONED)
        assert phase(one) is Phase.RELEASED
        assert one.store.why_poisoned(START) == ""

    def test_what_was_released_stays_so_for_one_that_was_away_although_a_failover_forgot_it(
        self,
        one: RedisHarness,
        two: RedisHarness,
        client: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(vouching, "PATIENCE_S", -1.0)
        one.store.commit([batch([1])], 77)
        before = dumped(client)
        one.store.seal(START)
        assert one.store.vouched(START)
        one.store.settle(START, Phase.RELEASED)
        put_back(client, before)
        one.store.follow()
        two.store.follow()
        assert two.store.commit([batch([2])], 78) == [NotOpen(Phase.RELEASED)]


class TestLate:
    def test_one_that_comes_when_a_window_was_just_sealed_can_vouch_for_it_and_release_it(
        self, one: RedisHarness, client: Any, tmp_path: Path
    ) -> None:
        late = RedisHarness(tmp_path / "late", fresh=False)
        one.store.commit([batch([1])], 77)
        one.store.seal(START)
        assert late.store.open_window(window_of()).phase is Phase.SEALED
        assert late.store.vouched(START) is False
        assert one.store.vouched(START)
        lead(late, client)
        assert late.store.vouched(START)
        assert late.store.lane_sums(START) == [sum_of(1)]
        late.close()

    def test_one_that_does_not_take_part_yet_acknowledges_nothing(
        self, one: RedisHarness, tmp_path: Path
    ) -> None:
        late = RedisHarness(tmp_path / "late", fresh=False)
        one.store.commit([batch([1])], 77)
        with pytest.raises(Unavailable):
            late.store.known(START, [meter_id(1)])
        late.store.open_window(window_of())
        assert late.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}
        late.close()

    def test_one_that_was_away_longer_than_windows_are_kept_says_nothing_of_them(
        self, one: RedisHarness, two: RedisHarness, client: Any
    ) -> None:
        one.store.seal(START)
        die(two)
        one.store.settle(START, Phase.EMPTY)
        one.store.forget(START + 10_000)
        kept = dumped(client)
        two.reopen()
        assert two.store.windows() == []
        assert two.store.why_poisoned(START) == ""
        assert dumped(client).keys() - kept.keys() <= {KEYS.clocks.encode()}

    def test_a_window_that_another_opened_first_is_in_the_own_file_too(
        self, two: RedisHarness, client: Any
    ) -> None:
        two.store.commit([batch([1])], 77)
        die(two)
        client.flushall()
        two.reopen()
        assert phase(two) is Phase.POISONED


class TestLeading:
    def test_a_leader_leads_while_it_says_so_again(
        self, one: RedisHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        led = []
        before_call(one, scripts.LEAD, lambda: led.append(one.store.leads), monkeypatch)
        one.store.follow()
        assert led == [True]

    def test_who_took_over_while_a_server_was_away_finishes_a_move_later(
        self,
        one: RedisHarness,
        two: RedisHarness,
        client: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        client.hset(KEYS.lane(START, 0).lane, "parameters", MOVED.parameters_digest)
        die(one)
        client.delete(KEYS.leader)

        def away(_starts: object) -> None:
            raise Unavailable(Reason.STORE_UNAVAILABLE, "away", retry_after_s=1)

        with monkeypatch.context() as patch:
            patch.setattr(two.redis._remote, "records", away)
            with pytest.raises(Unavailable):
                two.store.follow()
        assert two.store.follow()
        assert client.hget(KEYS.lane(START, 0).lane, "parameters") == bytes(32)

    def test_a_move_is_followed_by_those_who_take_reports(
        self, one: RedisHarness, two: RedisHarness
    ) -> None:
        assert one.store.move_window(MOVED)
        assert two.store.commit([batch([1])], 77) == [Moved()]
        assert two.store.window(START) == MOVED
