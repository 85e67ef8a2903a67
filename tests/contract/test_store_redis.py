"""What only the store in Redis can get wrong: lost answers, lost data, settings, slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    NotOpen,
    Phase,
    StoreFailed,
)
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.admission import next_step
from gridveil_services.aggregator.store.redis.servers import Servers, script
from gridveil_services.aggregator.store.redis.writer import LaneWriter
from tests.contract.redis_lanes import (
    KEYS,
    LANE,
    everything,
    meter_id,
    phase,
    receipt,
    setting,
    sum_of,
)
from tests.contract.stores import LENGTH, START, RedisHarness, batch
from tests.contract.stores import make_window as window_of
from tests.support.broken_wire import BrokenWire
from tests.support.redis_servers import NEEDED, RedisServer, one_server, until

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


class TestLostAnswers:
    @pytest.fixture
    def wire(self) -> Iterator[BrokenWire]:
        with BrokenWire(one_server().port) as made:
            yield made

    @pytest.fixture
    def broken(self, wire: BrokenWire, tmp_path: Path) -> Iterator[RedisHarness]:
        config = RedisConfig((("127.0.0.1", wire.port),), cluster=False)
        made = RedisHarness(tmp_path, config=config)
        made.store.open_window(window_of())
        yield made
        made.close()

    def test_a_call_whose_answer_was_lost_is_made_again_and_counts_once(
        self, wire: BrokenWire, broken: RedisHarness
    ) -> None:
        wire.lose(1, LANE.partials.encode())
        assert broken.store.commit([batch([1, 2])], 77) == [Committed(77)]
        assert wire.lost == 1
        assert broken.store.count(START) == 2
        assert broken.store.commit([batch([3])], 78) == [Committed(78)]
        broken.store.seal(START)
        assert broken.store.lane_sums(START) == [sum_of(1, 2, 3)]

    def test_a_report_whose_fate_is_not_known_is_found_by_the_next_try(
        self, wire: BrokenWire, broken: RedisHarness
    ) -> None:
        wire.lose(2, LANE.partials.encode())
        with pytest.raises(Unavailable) as refused:
            broken.store.commit([batch([1])], 77)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
        assert not isinstance(refused.value, StoreFailed)
        assert wire.lost == 2
        again = broken.store.commit([batch([1]), batch([2])], 78)
        assert again == [Known({meter_id(1): receipt(1, 77)}), Committed(78)]
        broken.store.seal(START)
        assert broken.store.lane_sums(START) == [sum_of(1, 2)]

    def test_a_refusal_names_no_key_and_no_address(
        self, wire: BrokenWire, broken: RedisHarness
    ) -> None:
        wire.lose(2, LANE.partials.encode())
        with pytest.raises(Unavailable) as refused:
            broken.store.commit([batch([1])], 77)
        told = f"{refused.value} {refused.value.metadata}"
        assert all(part not in told for part in ("gv:", "127.0.0.1", str(wire.port), "EVAL"))
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


class TestScripts:
    def test_the_same_call_twice_or_late_changes_nothing(self, harness: RedisHarness) -> None:
        servers = Servers(harness.config, StoreFailed)
        writer = LaneWriter(window_of(), 0)
        first = writer.call(KEYS, next_step([batch([1])], {}, 10, 77))
        assert servers.write([first, first]) == [[b"stored"], [b"stored"]]
        writer.stored()
        second = writer.call(KEYS, next_step([batch([2])], {}, 10, 78))
        assert servers.write([second]) == [[b"stored"]]
        before = everything(harness.clients[0])
        other = LaneWriter(window_of(), 0, name=writer.name, sequence=1)
        reused = other.call(KEYS, next_step([batch([3])], {}, 10, 79))
        assert servers.write([first, reused]) == [[b"stale"], [b"stale"]]
        assert everything(harness.clients[0]) == before
        servers.close()
        harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(1, 2)]

    def test_a_server_that_forgot_its_scripts_is_no_obstacle(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        client.script_flush()
        assert harness.store.commit([batch([2])], 78) == [Committed(78)]

    def test_a_full_server_refuses_and_nothing_is_half_written(
        self, harness: RedisHarness, client: Any
    ) -> None:
        harness.store.commit([batch([1])], 77)
        before = everything(client)
        with setting(client, "maxmemory", "1"):
            for action in (
                lambda: harness.store.commit([batch([2]), batch([3], lane=1)], 78),
                lambda: harness.store.seal(START),
                lambda: harness.store.open_window(window_of(START + LENGTH)),
            ):
                with pytest.raises(Unavailable) as refused:
                    action()
                assert refused.value.reason is Reason.STORE_FULL
                assert everything(client) == before
            assert harness.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}
        assert harness.store.commit([batch([2])], 79) == [Committed(79)]
        assert harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(1, 2)]

    def test_a_key_of_another_type_stops_the_store_before_anything_is_written(
        self, tmp_path: Path, client: Any, harness: RedisHarness
    ) -> None:
        client.set(LANE.journal, "")
        before = everything(client)
        with pytest.raises(StoreFailed):
            harness.store.commit([batch([1])], 77)
        assert everything(client) == before
        client.delete(LANE.journal)
        with pytest.raises(StoreFailed):
            harness.store.commit([batch([1])], 78)

    def test_more_reports_than_a_script_may_hold_are_stored_in_several(
        self, harness: RedisHarness
    ) -> None:
        later = START + LENGTH
        harness.store.open_window(window_of(later, lane_capacity=3_000))
        many = [
            replace_reports(batch([1], start=later), range(at, at + 600)) for at in (0, 600, 1200)
        ]
        assert harness.store.commit(many, 77) == [Committed(77)] * 3
        assert harness.store.count(later) == 1_800
        with pytest.raises(ValueError, match="1000"):
            harness.store.commit([replace_reports(many[0], range(5_000, 6_001))], 78)


def replace_reports(made: Any, meters: range) -> Any:
    """The batch with made-up reports of other meters; its sum is of no matter."""
    first = made.reports[0]
    entries = [meter.to_bytes(16, "big") + first.entry[16:] for meter in meters]
    reports = [first._replace(meter_id=entry[:16], entry=entry) for entry in entries]
    return made._replace(reports=reports)


class TestSeals:
    def test_a_sealer_that_was_overtaken_changes_nothing(
        self, harness: RedisHarness, client: Any
    ) -> None:
        servers = Servers(harness.config, StoreFailed)
        harness.store.commit([batch([1])], 77)
        open_, sealed = str(int(Phase.OPEN)), str(int(Phase.SEALED))
        window = KEYS.window(START)
        ((word, stale),) = servers.write([script(scripts.FENCE, [window], open_)])
        assert word == b"done"
        assert harness.store.seal(START)
        before = everything(client)
        late = [
            script(scripts.SEAL_LANE, [LANE.lane, LANE.partials], stale),
            script(scripts.SEAL_WINDOW, [window], open_, sealed, stale),
            LaneWriter(window_of(), 0).call(KEYS, next_step([batch([2])], {}, 10, 79)),
        ]
        words = [word for word, *_ in servers.write(late)]
        assert words == [b"stale", b"other", b"sealed"]
        assert everything(client) == before
        servers.close()

    def test_a_sealer_changes_no_phase_once_another_has_begun(self, harness: RedisHarness) -> None:
        servers = Servers(harness.config, StoreFailed)
        open_, sealed = str(int(Phase.OPEN)), str(int(Phase.SEALED))
        fence = script(scripts.FENCE, [KEYS.window(START)], open_)
        (_, first), (_, second) = servers.write([fence, fence])
        late, right = (
            script(scripts.SEAL_WINDOW, [KEYS.window(START)], open_, sealed, epoch)
            for epoch in (first, second)
        )
        assert servers.write([late]) == [[b"other", open_.encode()]]
        assert servers.write([right]) == [[b"done"]]
        servers.close()

    def test_a_seal_that_was_cut_short_takes_no_report_and_is_completed(
        self, harness: RedisHarness
    ) -> None:
        servers = Servers(harness.config, StoreFailed)
        harness.store.commit([batch([1])], 77)
        (_, epoch) = servers.write(
            [script(scripts.FENCE, [KEYS.window(START)], str(int(Phase.OPEN)))]
        )[0]
        servers.write([script(scripts.SEAL_LANE, [LANE.lane, LANE.partials], epoch)])
        servers.close()
        assert harness.store.commit([batch([2])], 78) == [NotOpen(Phase.SEALED)]
        assert harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(1)]

    def test_a_seal_of_somebody_else_is_seen(self, harness: RedisHarness, tmp_path: Path) -> None:
        other = RedisHarness.__new__(RedisHarness)
        harness.store.commit([batch([1])], 77)
        other.__dict__ |= harness.__dict__ | {
            "path": tmp_path / "other" / "aggregator.db",
            "database": None,
        }
        other.reopen()
        assert other.store.seal(START)
        assert not harness.store.seal(START)
        assert phase(harness) is Phase.SEALED
        assert harness.store.lane_sums(START) == [sum_of(1)]
        other.close()


class TestMoves:
    def test_lanes_of_a_move_that_was_cut_short_come_back_to_their_window(
        self, harness: RedisHarness, client: Any
    ) -> None:
        client.hset(LANE.lane, "parameters", bytes([1]) * 32)
        assert harness.store.commit([batch([1])], 77) == [Committed(77)]
        client.hset(KEYS.lane(START, 1).lane, "parameters", bytes([1]) * 32)
        harness.reopen()
        assert harness.store.commit([batch([2], lane=1)], 78) == [Committed(78)]

    def test_fewer_lanes_leave_no_marker_behind(self, harness: RedisHarness, client: Any) -> None:
        moved = window_of(parameters_digest=bytes([1]) * 32, lanes=1)
        assert harness.store.move_window(moved)
        assert not client.exists(KEYS.lane(START, 1).lane)


class TestReplicas:
    @pytest.fixture
    def pair(self, tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
        """A master and its replica."""
        master = RedisServer(min_replicas_to_write="1", repl_diskless_sync_delay="0")
        replica = RedisServer(replicaof=f"127.0.0.1 {master.port}")
        wait_for_replica(master)
        yield master, replica
        for server in (replica, master):
            server.stop()

    def test_what_too_few_replicas_have_is_not_acknowledged(
        self, pair: tuple[RedisServer, RedisServer], tmp_path: Path
    ) -> None:
        master, replica = pair
        harness = RedisHarness(tmp_path, master, replace(master.config, replicas=1))
        harness.store.open_window(window_of())
        assert harness.store.commit([batch([1])], 77) == [Committed(77)]
        replica.pause()
        for attempt in (
            lambda: harness.store.commit([batch([2])], 78),
            lambda: harness.store.commit([batch([2])], 79),
            lambda: harness.store.known(START, [meter_id(2)]),
        ):
            with pytest.raises(Unavailable) as refused:
                attempt()
            assert refused.value.reason is Reason.STORE_UNAVAILABLE
        replica.resume()
        assert harness.store.commit([batch([2])], 80) == [Known({meter_id(2): receipt(2, 78)})]
        harness.store.seal(START)
        assert harness.store.lane_sums(START) == [sum_of(1, 2)]
        harness.close()

    def test_what_another_stored_on_too_few_replicas_is_not_acknowledged(
        self, pair: tuple[RedisServer, RedisServer], tmp_path: Path
    ) -> None:
        master, replica = pair
        config = replace(master.config, replicas=1)
        one = RedisHarness(tmp_path / "one", master, config)
        one.store.open_window(window_of())
        two = RedisHarness(tmp_path / "two", master, config, fresh=False)
        two.store.open_window(window_of())
        one.store.commit([batch([1])], 77)
        assert two.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}
        replica.pause()
        with pytest.raises(Unavailable):
            one.store.commit([batch([2])], 78)
        with pytest.raises(Unavailable):
            two.store.known(START, [meter_id(2)])
        assert two.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}
        replica.resume()
        two.store.follow()
        assert two.store.known(START, [meter_id(2)]) == {meter_id(2): receipt(2, 78)}
        two.close()
        one.close()


def test_a_replica_that_is_copied_to_keeps_nobody_from_taking_part(tmp_path: Path) -> None:
    master = RedisServer(repl_diskless_sync_delay="600")
    replica = RedisServer(replicaof=f"127.0.0.1 {master.port}")
    until(lambda: master.client.info("replication")["connected_slaves"] == 1)
    harness = RedisHarness(tmp_path, master)
    assert harness.store.open_window(window_of()) == window_of()
    assert harness.store.commit([batch([1])], 77) == [Committed(77)]
    harness.close()
    for server in (replica, master):
        server.stop()


def wait_for_replica(master: RedisServer) -> None:
    until(lambda: master.client.wait(1, 10) == 1 and master.client.info("replication")["slave0"])
