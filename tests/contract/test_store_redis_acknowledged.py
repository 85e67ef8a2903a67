"""What must be so before a report is acknowledged, and for as long as it counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import Unavailable
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.interface import Committed, Known
from gridveil_services.aggregator.store.redis import servers
from tests.contract.redis_lanes import KEYS, LANE, meter_id, receipt
from tests.contract.stores import START, RedisHarness, batch, make_window
from tests.contract.test_store_redis import wait_for_replica
from tests.support.broken_wire import BrokenWire
from tests.support.redis_servers import NEEDED, RedisServer, one_server

pytestmark = NEEDED


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[RedisHarness]:
    made = RedisHarness(tmp_path)
    made.store.open_window(make_window())
    yield made
    made.close()


def names_in(client: Any) -> set[str]:
    """Aggregators that take part in the window, as Redis says."""
    return {field.decode()[2:] for field in client.hkeys(KEYS.window(START)) if field[:2] == b"r:"}


def test_a_call_is_not_answered_before_the_store_is_known_to_have_its_reports(
    tmp_path: Path,
) -> None:
    with BrokenWire(one_server().port) as wire:
        config = RedisConfig((("127.0.0.1", wire.port),), cluster=False)
        harness = RedisHarness(tmp_path, config=config)
        harness.store.open_window(make_window())
        with Committer(harness.store, harness.clock) as committer:
            wire.lose(2, LANE.partials.encode())
            with pytest.raises(Unavailable):
                committer.commit([batch([1])])
            assert committer.commit([batch([1]), batch([2])]) == [
                Known({meter_id(1): receipt(1, 1000)}),
                Committed(1000),
            ]
        harness.close()


def test_an_aggregator_is_named_in_a_window_before_it_takes_reports(harness: RedisHarness) -> None:
    client = harness.clients[0]
    assert names_in(client) == {harness.redis._replica.name}
    other = RedisHarness(harness.path.parent / "other", fresh=False)
    assert len(names_in(client)) == 1
    other.store.open_window(make_window())
    assert names_in(client) == {harness.redis._replica.name, other.redis._replica.name}
    other.close()


def test_an_aggregator_takes_no_reports_while_a_connected_replica_may_not_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no replica is asked for: it may be the one that takes over."""
    master = RedisServer(repl_diskless_sync_delay="0")
    replica = RedisServer(replicaof=f"127.0.0.1 {master.port}")
    try:
        wait_for_replica(master)
        harness = RedisHarness(tmp_path, master)
        replica.pause()
        with monkeypatch.context() as patch:
            patch.setattr(servers, "WAIT_MS", 200)
            with pytest.raises(Unavailable, match="replicas are behind"):
                harness.store.open_window(make_window())
        assert harness.store.window(START) is None
        replica.resume()
        wait_for_replica(master)
        assert harness.store.open_window(make_window()) == make_window()
        assert names_in(replica.client) == {harness.redis._replica.name}
        harness.close()
    finally:
        for server in (replica, master):
            server.stop()


def test_nothing_that_is_stored_of_a_window_goes_by_itself(harness: RedisHarness) -> None:
    client = harness.clients[0]
    harness.store.commit([batch([1]), batch([2], lane=1)], 77)
    harness.store.seal(START)
    kept = {key for key in client.scan_iter() if client.pttl(key) == -1}
    gone_some_time = {key.decode() for key in client.scan_iter()} - {k.decode() for k in kept}
    assert gone_some_time == {KEYS.leader}
    assert len(kept) > 8


def test_a_voucher_for_another_set_than_the_one_that_is_read_does_not_count(
    harness: RedisHarness,
) -> None:
    """As when the server of a lane goes back to before, and that of the record does not."""
    client, lane = harness.clients[0], KEYS.lane(START, 0)
    other = RedisHarness(harness.path.parent / "other", fresh=False)
    other.store.open_window(make_window())
    harness.store.commit([batch([1])], 77)
    before = {key: client.dump(key) for key in (lane.lane, lane.journal, lane.partials)}
    other.store.commit([batch([2])], 78)
    assert harness.store.seal(START)
    sealed = client.hget(lane.lane, "sealed")
    other.store.follow()
    other.store.vouched(START)
    for key, dump in before.items():
        client.restore(key, 0, dump, replace=True)
    client.hset(lane.lane, "sealed", sealed)
    assert not harness.store.vouched(START)
    other.close()
