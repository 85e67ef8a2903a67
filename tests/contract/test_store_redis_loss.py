"""What the store in Redis makes of a server that lost, or altered, what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil_services.aggregator.store.interface import Committed, Known, NotOpen, Phase
from tests.contract.redis_lanes import KEYS, LANE, everything, meter_id, phase, receipt, sum_of
from tests.contract.stores import LENGTH, START, RedisHarness, batch, made_up_report
from tests.contract.stores import make_window as window_of
from tests.support.redis_servers import NEEDED, RedisServer

pytestmark = NEEDED


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[RedisHarness]:
    made = RedisHarness(tmp_path)
    made.store.open_window(window_of())
    yield made
    made.close()


@pytest.fixture
def client(harness: RedisHarness) -> Any:
    """The server, behind the store's back."""
    return harness.clients[0]


@contextmanager
def own_server(folder: Path, **settings: str) -> Iterator[tuple[RedisServer, RedisHarness]]:
    """A server that the test may kill, and a store on it with an open window."""
    server = RedisServer(**settings)
    try:
        harness = RedisHarness(folder, server)
        harness.store.open_window(window_of())
        yield server, harness
        harness.close()
    finally:
        server.stop()


class TestLoss:
    def test_everything_acknowledged_is_there_after_a_kill(self, tmp_path: Path) -> None:
        with own_server(tmp_path) as (server, harness):
            for meter in range(20):
                assert harness.store.commit([batch([meter])], meter) == [Committed(meter)]
            server.kill()
            with pytest.raises(Unavailable) as refused:
                harness.store.commit([batch([99])], 99)
            assert refused.value.reason is Reason.STORE_UNAVAILABLE
            server.start()
            assert harness.store.commit([batch([20])], 20) == [Committed(20)]
            harness.reopen()
            known = harness.store.known(START, [meter_id(m) for m in range(21)])
            assert known == {meter_id(m): receipt(m, m) for m in range(21)}
            assert harness.store.seal(START)
            assert harness.store.lane_sums(START) == [sum_of(*range(21))]

    def test_an_emptied_server_poisons_the_window_at_the_next_commit(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        client.flushall()
        assert harness.store.commit([batch([2])], 78) == [NotOpen(Phase.POISONED)]
        harness.reopen()
        assert phase(harness) is Phase.POISONED
        assert harness.store.open_window(window_of()).phase is Phase.POISONED
        assert harness.store.commit([batch([1])], 79) == [NotOpen(Phase.POISONED)]
        assert not harness.store.seal(START)

    def test_an_emptied_server_poisons_the_window_at_its_seal(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        client.flushall()
        assert not harness.store.seal(START)
        assert phase(harness) is Phase.POISONED

    @pytest.mark.parametrize("sealed", [False, True])
    def test_a_server_emptied_while_nobody_looked_poisons_the_window(
        self, harness: RedisHarness, client: Any, sealed: bool
    ) -> None:
        harness.store.commit([batch([1])], 77)
        if sealed:
            harness.store.seal(START)
        harness.close()
        client.flushall()
        harness.reopen()
        assert phase(harness) is Phase.POISONED
        client.flushall()
        harness.reopen()
        assert phase(harness) is Phase.POISONED

    def test_what_was_settled_stays_settled_on_an_emptied_server(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.seal(START)
        harness.store.settle(START, Phase.EMPTY)
        client.flushall()
        harness.reopen()
        assert phase(harness) is Phase.EMPTY
        assert harness.store.forget(START + LENGTH + 1) == 1
        client.flushall()
        harness.reopen()
        with pytest.raises(Exception, match="closed"):
            harness.store.open_window(window_of())

    @pytest.mark.parametrize(
        "key",
        [LANE.lane, LANE.journal, LANE.partials, KEYS.window(START)],
        ids=lambda key: key[-8:],
    )
    def test_a_window_that_lost_one_key_is_never_released(
        self, harness: RedisHarness, client: Any, key: str
    ) -> None:
        harness.store.commit([batch([1])], 77)
        client.delete(key)
        harness.store.commit([batch([2])], 78)
        harness.store.seal(START)
        if phase(harness) is Phase.SEALED:
            with pytest.raises(IntegrityLost):
                harness.store.lane_sums(START)
        else:
            assert phase(harness) is Phase.POISONED

    def test_a_lane_that_is_lost_beside_one_that_is_not_poisons_their_window(
        self, harness: RedisHarness, client: Any
    ) -> None:
        client.delete(LANE.lane)
        outcomes = harness.store.commit([batch([1]), batch([2], lane=1)], 77)
        assert outcomes[0] == NotOpen(Phase.POISONED)
        assert harness.store.commit([batch([3], lane=1)], 78) == [NotOpen(Phase.POISONED)]

    def test_a_receipt_that_is_not_whole_poisons_the_window(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        client.hset(receipts_key(client), meter_id(1), b"short")
        with pytest.raises(IntegrityLost):
            harness.store.known(START, [meter_id(1)])
        assert harness.store.commit([batch([1])], 78) == [NotOpen(Phase.POISONED)]

    def test_a_lane_put_back_to_an_earlier_state_is_noticed_by_its_writer(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        before = everything(client)
        harness.store.commit([batch([2])], 78)
        put_back(client, before)
        assert harness.store.commit([batch([3])], 79) == [NotOpen(Phase.POISONED)]

    def test_and_by_the_seal(self, harness: RedisHarness, client: Any) -> None:
        before = everything(client)
        harness.store.commit([batch([2])], 78)
        put_back(client, before)
        assert not harness.store.seal(START)
        assert phase(harness) is Phase.POISONED

    def test_a_seal_that_redis_lost_poisons_the_window(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        before = everything(client)
        harness.store.seal(START)
        put_back(client, before)
        harness.reopen()
        assert phase(harness) is Phase.POISONED

    def test_an_aggregator_with_a_new_file_takes_what_redis_has(
        self, harness: RedisHarness, tmp_path: Path
    ) -> None:
        harness.store.commit([batch([1])], 77)
        harness.close()
        harness.path = tmp_path / "another" / "aggregator.db"
        harness.reopen()
        assert harness.store.windows() == [window_of()]
        assert harness.store.window(START) is None, "its roster is not known yet"
        assert harness.store.open_window(window_of()) == window_of()
        assert harness.store.commit([batch([1])], 78) == [Known({meter_id(1): receipt(1, 77)})]


def put_back(client: Any, before: dict[bytes, bytes]) -> None:
    """As a replica that was behind, and is the master now."""
    client.flushall()
    for key, dump in before.items():
        client.restore(key, 0, dump)


class TestDamage:
    """Each is written with redis-py, behind the store's back, into a sealed window."""

    @pytest.fixture
    def sealed(self, harness: RedisHarness) -> RedisHarness:
        harness.store.commit([batch([1, 2])], 77)
        harness.store.commit([batch([3])], 78)
        harness.store.seal(START)
        return harness

    @pytest.mark.parametrize(
        "damage",
        [
            lambda client: client.hset(LANE.lane, "count", 2),
            lambda client: client.hset(LANE.lane, "sealed", 9),
            lambda client: client.hdel(LANE.lane, "digest"),
            lambda client: client.rpop(LANE.journal),
            lambda client: flip(client, LANE.partials),
            lambda client: client.delete(LANE.partials),
        ],
    )
    def test_a_sum_that_is_not_whole_is_not_given_out(
        self, sealed: RedisHarness, client: Any, damage: Any
    ) -> None:
        damage(client)
        with pytest.raises(IntegrityLost) as lost:
            sealed.store.lane_sums(START)
        assert lost.value.reason is Reason.PARTIAL_CORRUPT

    @pytest.mark.parametrize(
        "damage",
        [
            lambda client: client.hset(LANE.lane, "digest", "0" * 40),
            lambda client: client.lset(LANE.journal, 0, client.lindex(LANE.journal, 1)),
            lambda client: client.lset(LANE.journal, 0, client.lindex(LANE.journal, 0)[:-1]),
            lambda client: client.rpoplpush(LANE.journal, LANE.journal),
            lambda client: flip(client, receipts_key(client)),
            lambda client: client.delete(receipts_key(client)),
        ],
    )
    def test_entries_that_are_not_whole_are_not_given_out(
        self, sealed: RedisHarness, client: Any, damage: Any
    ) -> None:
        damage(client)
        with pytest.raises(IntegrityLost) as lost:
            list(sealed.store.entries(START))
        assert lost.value.reason is Reason.PARTIAL_CORRUPT

    def test_an_entry_that_was_altered_is_not_handed_ahead(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1, 2])], 77)
        element = bytearray(client.lindex(LANE.journal, 1))
        element[100] ^= 1
        client.lset(LANE.journal, 1, bytes(element))
        with pytest.raises(IntegrityLost):
            harness.store.entries_after(START, 0)


def receipts_key(client: Any) -> bytes:
    found: list[bytes] = list(client.scan_iter(LANE.receipts(0)[:-3] + "*"))
    return found[0]


def flip(client: Any, key: str | bytes) -> None:
    """Change a bit of the longest value in a hash."""
    name, value = max(client.hgetall(key).items(), key=lambda item: len(item[1]))
    client.hset(key, name, value[:-1] + bytes([value[-1] ^ 1]))


def test_a_settled_window_keeps_neither_entries_nor_sums_that_nobody_needs(
    harness: RedisHarness, client: Any
) -> None:
    harness.store.commit([batch([1, 2])], 77)
    harness.store.seal(START)
    harness.store.settle(START, Phase.REFUSED)
    assert not client.exists(LANE.journal, LANE.partials)
    dumps = b"".join(everything(client).values())
    assert made_up_report(1)[0].entry[-64:] not in dumps


def test_nothing_but_the_horizon_is_left_of_a_forgotten_window(
    harness: RedisHarness, client: Any
) -> None:
    harness.store.commit([batch([1, 2])], 77)
    report, _ = made_up_report(1, 1)
    harness.store.record_equivocation(START, 0, report.meter_id, bytes(32), report.entry)
    harness.store.seal(START)
    harness.store.settle(START, Phase.RELEASED)
    harness.store.forget(START + LENGTH + 1)
    of_the_city = {KEYS.forgotten, KEYS.leader, KEYS.servers, KEYS.clocks}
    assert {key.decode() for key in client.scan_iter()} == of_the_city
