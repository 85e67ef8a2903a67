"""The failure budget of an epoch: so many lanes may fail, and then its keys are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gridveil.clock import ManualClock
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.v1.keyholder_pb2 import ReleaseMessage
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.publication import LOG
from gridveil_services.releaselog.signing import LogSigner
from tests.support.keyholders import refusal_of, unpublishable
from tests.support.lanes import LANES, NOW, LaneCity, decrypted, prepare_lanes, window_at
from tests.support.reports import BuiltRelease

BUDGET_SPENT = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> LaneCity:
    return prepare_lanes(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: LaneCity, tmp_path: Path) -> LaneCity:
    return prepared.copy(tmp_path / "city")


def assert_refused(keyholder: KeyHolder, release: BuiltRelease) -> None:
    assert refusal_of(keyholder, release).reason is Reason.REFUSED


def assert_expired(keyholder: KeyHolder, release: BuiltRelease) -> None:
    assert refusal_of(keyholder, release).reason is Reason.WINDOW_EXPIRED


def assert_destroyed(city: LaneCity) -> None:
    """The epoch's keys are gone for its failures, and the log says so once."""
    (record,) = city.logged("epoch_destroyed")
    assert record.epoch_destroyed.epoch_id == city.city.parameters.epoch.epoch_id
    assert record.epoch_destroyed.cause == BUDGET_SPENT
    folder = city.city.config.state / "epochs" / record.epoch_destroyed.epoch_id.hex()
    assert not folder.exists()


def alarms(logs: list[EventDict]) -> list[EventDict]:
    return [line for line in logs if line["event"] == "failure budget spent"]


def test_failures_add_up_over_windows_until_the_keys_are_destroyed(city: LaneCity) -> None:
    with city.open() as keyholder, capture_logs() as logs:
        keys = city.keys(keyholder)
        for number in range(4):
            keyholder.releases.release(city.release(number, failing=[number]).messages())
        assert not city.logged("epoch_destroyed")
        assert not alarms(logs)
        keyholder.releases.release(city.release(4, failing=[4]).messages())
        assert decrypted(keys, 4) == dict.fromkeys(range(LANES), 1)
        assert keyholder.ring.by_digest(city.city.parameters.digest) is None
    for number in range(5):
        city.assert_exact(number, left_out=[number])
    assert city.outcomes() == [("released", 1)] * 5
    assert_destroyed(city)
    (alarm,) = alarms(logs)
    assert alarm["log_level"] == "error"
    assert alarm["epoch"] == city.city.parameters.epoch.epoch_id.hex()


def test_nothing_is_decrypted_after_the_lane_that_spends_the_budget(city: LaneCity) -> None:
    with city.open() as keyholder:
        keys = city.keys(keyholder)
        assert_refused(keyholder, city.release(0, failing=[0, 1, 2, 3]))
        # Its fifth lane would open; that it was not decrypted leaves it out all the same.
        keyholder.releases.release(city.release(1, failing=[3]).messages())
        assert decrypted(keys, 1) == {0: 1, 1: 1, 2: 1, 3: 1}
    city.assert_exact(1, left_out=[3, 4])
    assert city.outcomes() == [("refused", 4), ("released", 1)]
    assert_destroyed(city)


def test_one_window_spends_no_more_than_the_budget(city: LaneCity) -> None:
    with city.with_policy(failure_budget=2).open() as keyholder:
        keys = city.keys(keyholder)
        assert_refused(keyholder, city.release(0, failing=range(LANES)))
        assert decrypted(keys, 0) == {0: 1, 1: 1}
    assert city.outcomes() == [("refused", 2)]
    assert_destroyed(city)


def test_failures_count_across_restarts(city: LaneCity) -> None:
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[0, 1, 2, 3]))
    with city.open() as keyholder:
        keys = city.keys(keyholder)
        assert_refused(keyholder, city.release(1, failing=[0, 1]))
        assert decrypted(keys, 1) == {0: 1}
    assert city.outcomes() == [("refused", 4), ("refused", 1)]
    assert_destroyed(city)


def test_a_smaller_budget_of_today_holds_for_older_epochs_too(city: LaneCity) -> None:
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[0, 1, 2]))
    with city.with_policy(failure_budget=3).open():
        pass
    assert_destroyed(city)


def test_a_larger_budget_of_today_does_not_help_older_epochs(city: LaneCity) -> None:
    with city.with_policy(failure_budget=16).open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=range(LANES)))
    assert_destroyed(city)


def test_windows_of_a_destroyed_epoch_expire_by_their_header_alone(city: LaneCity) -> None:
    """Nothing is claimed with keys that are gone, and no refusal is counted for it."""
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=range(LANES)))
        honest = city.release(1)
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(iter([honest.header_message()]))
        assert refusal.value.reason is Reason.WINDOW_EXPIRED
        for release in (honest, city.release(1, failing=[1]), city.release(2)):
            assert_expired(keyholder, release)
    assert city.city.totals() == {}
    assert city.outcomes() == [("refused", 5)]
    expired = [record.expired.window_start for record in city.logged("expired")]
    assert expired == [window_at(1), window_at(2)]
    assert len(city.logged("intent")) == 1


def test_a_window_that_was_looked_at_before_the_keys_were_spent_is_not_claimed(
    city: LaneCity,
) -> None:
    """Its release comes in while another one spends the budget."""
    with city.open() as keyholder:
        first, *rest = city.release(1).messages()

        def messages() -> Iterator[ReleaseMessage]:
            yield first
            assert_refused(keyholder, city.release(0, failing=range(LANES)))
            yield from rest

        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(messages())
        assert refusal.value.reason is Reason.WINDOW_EXPIRED
    assert len(city.logged("intent")) == 1
    assert city.outcomes() == [("refused", 5)]


def test_a_window_that_has_not_ended_is_not_settled_with_its_epoch(city: LaneCity) -> None:
    """The successor serves it: nobody can have it refused before its time."""
    with city.open(window_at(2) + 600) as keyholder:
        spend(keyholder.ledger, city)
        assert refusal_of(keyholder, city.release(2)).reason is Reason.WINDOW_OPEN
        keyholder.upkeep.tick()
        assert refusal_of(keyholder, city.release(2)).reason is Reason.KEY_EPOCH
        successor = keyholder.ring.for_window(window_at(2))
    assert successor is not None
    assert successor.parameters.digest != city.city.parameters.digest
    assert city.outcomes() == [("refused", 5)]


# Between the record that spends the budget and the end of the keys.


def spend(ledger: Ledger, city: LaneCity) -> None:
    """The records of a key-holder that died before it destroyed the keys."""
    ledger.claim(window_at(0), bytes(32), city.city.parameters.digest, 1)
    ledger.refused(window_at(0), bytes(32), 5)


def spend_while_closed(city: LaneCity) -> None:
    """The same, added to the log of a key-holder that is not running."""
    config = city.city.config
    key = identity.load(config.state, AtRest.load(config.key_encrypting_key_file, config.city_id))
    ledger = Ledger(config.published / LOG, ManualClock(NOW), LogSigner(config.city_id, key))
    spend(ledger, city)
    ledger.close()


def test_spent_keys_decrypt_nothing_even_before_they_are_destroyed(city: LaneCity) -> None:
    with city.open() as keyholder:
        spend(keyholder.ledger, city)
        keys = city.keys(keyholder)
        assert_expired(keyholder, city.release(1))
        assert decrypted(keys, 1) == {}
    assert city.outcomes() == [("refused", 5)]


def test_a_claimed_window_of_a_spent_epoch_is_refused_at_the_next_start(city: LaneCity) -> None:
    release = city.release(1)
    with city.open() as keyholder, unpublishable(city.city, window_at(1)):
        assert refusal_of(keyholder, release).reason is Reason.KEYHOLDER_UNAVAILABLE
    spend_while_closed(city)
    with city.open() as keyholder:
        assert keyholder.ring.decryptions(window_at(1)) == 0
        assert_refused(keyholder, release)
    assert city.outcomes() == [("refused", 5), ("refused", 0)]
    assert_destroyed(city)


def test_a_spent_epoch_is_retired_at_the_next_start(city: LaneCity) -> None:
    spend_while_closed(city)
    assert not city.logged("epoch_destroyed")
    with capture_logs() as logs, city.open() as keyholder:
        assert keyholder.ring.by_digest(city.city.parameters.digest) is None
    assert_destroyed(city)
    assert len(alarms(logs)) == 1
