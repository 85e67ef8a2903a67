"""An aggregator on a shared Redis that begins to lead does what the one before did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.errors import Unavailable
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.follower import confirm_at
from gridveil_services.aggregator.sharing import Sharing
from gridveil_services.aggregator.store.redis.keys import CityKeys
from tests.contract.stores import START, RedisHarness, batch, make_window
from tests.support.aggregators import LocalCity
from tests.support.redis_servers import NEEDED, RedisServer, one_server
from tests.support.reports import WINDOW

pytestmark = NEEDED


def test_a_window_that_the_one_before_did_not_move_comes_to_the_epoch_that_serves_it(
    tmp_path: Path,
) -> None:
    client = one_server().client
    client.flushall()
    with LocalCity.create(tmp_path, meters=3, redis=one_server().config) as city:
        leader = CityKeys(city.aggregator_config.city_id.hex()).leader
        client.set(leader, "another")
        aggregator = city.aggregator
        aggregator.sharing.step()
        city.clock.move_to(WINDOW + 20)
        aggregator.follower.step()
        old = city.parameters()
        cause = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
        city.keyholder.ring.retire(old.epoch.epoch_id, cause, city.clock.now())
        city.clock.move_to(confirm_at(old.policy.rules, WINDOW))
        aggregator.follower.step()
        assert city.stored_window().parameters_digest == old.digest, "it does not lead"
        client.delete(leader)
        aggregator.sharing.step()
        aggregator.follower.step()
        assert city.stored_window().parameters_digest == city.parameters().digest != old.digest


def test_a_leader_is_told_of_its_sealed_windows_again_after_an_outage(tmp_path: Path) -> None:
    """Its releaser may have looked meanwhile, and has gone to rest because it did not lead."""
    server = RedisServer()
    try:
        harness = RedisHarness(tmp_path, server)
        harness.store.open_window(make_window())
        harness.store.commit([batch([1])], 77)
        harness.store.seal(START)
        told: list[str] = []
        clock = ManualClock(1.0)
        with Committer(harness.store, clock) as committer:
            sharing = Sharing(harness.store, committer, clock, lambda: told.append("sealed"))
            sharing.step()
            sharing.step()
            assert len(told) == 1
            server.kill()
            with pytest.raises(Unavailable):
                sharing.step()
            assert not harness.store.leads
            server.start()
            sharing.step()
            assert len(told) == 2
        harness.close()
    finally:
        server.stop()
