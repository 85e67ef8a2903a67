"""A disk that fails while a window is settled: the releaser goes on, and rests when it may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.aggregator.upstream import KeyHolderClient
from tests.support.aggregators import LocalCity
from tests.support.reports import WINDOW

PAUSE_S = 0.02


@pytest.fixture
def city(tmp_path: Path) -> Iterator[LocalCity]:
    """A city whose first window is sealed, with one report."""
    with LocalCity.create(tmp_path, meters=4) as made:
        made.enter_window(WINDOW)
        made.aggregator.ingest.submit([made.report(0)])
        made.clock.move_to(made.stored_window().closes)
        made.aggregator.sealer.step()
        yield made


def full(_database: Database) -> None:
    raise Unavailable(Reason.STORE_FULL, "the store is full", retry_after_s=5)


def step_until_the_store_is_full(city: LocalCity) -> None:
    while True:
        try:
            city.aggregator.releaser.step()
        except Unavailable as error:
            if error.reason is not Reason.STORE_FULL:
                raise
            return
        time.sleep(PAUSE_S)


def test_a_releaser_rests_after_a_settlement_that_the_disk_half_refused(
    city: LocalCity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that is settled is never due again, though its settlement reported a fault."""
    city.stop_keyholder()
    city.aggregator.releaser.step()
    assert city.stored_window().phase is Phase.SEALED
    city.start_keyholder()
    with monkeypatch.context() as patch:
        patch.setattr(Database, "shrink_log", full)
        step_until_the_store_is_full(city)
    assert city.stored_window().phase.settled
    assert city.aggregator.releaser.step() == 60.0


def test_a_releaser_rests_after_another_settled_what_it_was_to_try_again(city: LocalCity) -> None:
    """An aggregator that misses an acknowledgement poisons a window while the leader waits."""
    city.stop_keyholder()
    assert city.aggregator.releaser.step() < 60.0
    assert city.aggregator.store.settle(WINDOW, Phase.POISONED)
    assert city.aggregator.releaser.step() == 60.0


def test_nothing_is_handed_in_of_a_window_that_another_aggregator_settles_while_it_is_read(
    city: LocalCity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are gone by then: what was read would be a second set."""
    store, asked = city.aggregator.store, []

    def settled_meanwhile(start: int) -> bool:
        assert store.settle(start, Phase.RELEASED)
        return True

    monkeypatch.setattr(store, "vouched", settled_meanwhile)
    monkeypatch.setattr(KeyHolderClient, "progress", lambda *told: asked.append(told))
    city.aggregator.releaser.step()
    assert asked == []
    assert city.stored_window().phase is Phase.RELEASED
