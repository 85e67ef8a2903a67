"""An aggregator hands entries to its key-holder while the window is open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from gridveil.protocol.release import Total
from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.releaselog.reader import LogReader
from tests.support.aggregators import LENGTH, VALUES, LocalCity
from tests.support.reports import WINDOW

METERS = 120
CLOSES = WINDOW + LENGTH + 300


@pytest.fixture
def city(tmp_path: Path) -> Iterator[LocalCity]:
    with LocalCity.create(tmp_path, meters=METERS) as city:
        city.enter_window(WINDOW)
        yield city


def submit(city: LocalCity, meters: Iterable[int]) -> None:
    """Some meters report; all are accepted."""
    reports = [city.report(meter) for meter in meters]
    reply = city.stub("gateway").SubmitReports(aggregator_pb2.SubmitReportsRequest(reports=reports))
    assert all(outcome.HasField("receipt") for outcome in reply.outcomes)


def held(city: LocalCity) -> int:
    """Meters of the window whose entries the key-holder has checked."""
    return city.keyholder.releases.prechecks.held(WINDOW)


def release(city: LocalCity) -> Total:
    """Close the window; its total."""
    city.clock.move_to(CLOSES)
    city.aggregator.sealer.step()
    step_until(city.aggregator.releaser.step, lambda: city.stored_window().phase.settled)
    assert city.stored_window().phase is Phase.RELEASED
    records = LogReader(city.paths.published / "log").poll()
    (found,) = (r.released for r in records if r.WhichOneof("event") == "released")
    return Total.decode(found.total.total)


def step_until(step: Callable[[], object], done: Callable[[], bool]) -> None:
    """A connection that broke may fail some steps before it is there again."""
    until = time.monotonic() + 30
    step()
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)
        step()


def test_entries_are_checked_as_they_are_committed(city: LocalCity) -> None:
    forerunner = city.aggregator.forerunner
    forerunner.step()
    assert held(city) == 0
    submit(city, range(50))
    forerunner.step()
    assert held(city) == 50
    submit(city, range(50, 110))
    forerunner.step()
    forerunner.step()
    assert held(city) == 110
    total = release(city)
    assert (total.count, total.sum("import_wh")) == (110, 110 * VALUES[0])
    assert held(city) == 0


def test_reports_that_come_too_late_to_be_checked_ahead_count_as_well(city: LocalCity) -> None:
    submit(city, range(60))
    city.aggregator.forerunner.step()
    submit(city, range(60, METERS))
    assert held(city) == 60
    total = release(city)
    assert (total.count, total.sum("import_wh")) == (METERS, METERS * VALUES[0])


def test_a_key_holder_that_was_restarted_is_handed_everything_again(city: LocalCity) -> None:
    submit(city, range(60))
    city.aggregator.forerunner.step()
    city.stop_keyholder()
    city.start_keyholder()
    assert held(city) == 0
    submit(city, range(60, 70))
    step_until(city.aggregator.forerunner.step, lambda: held(city) == 70)
    submit(city, range(70, METERS))
    assert release(city).count == METERS


def test_an_aggregator_that_was_restarted_hands_everything_over_again(city: LocalCity) -> None:
    submit(city, range(60))
    city.aggregator.forerunner.step()
    city.restart_aggregator()
    submit(city, range(60, METERS))
    step_until(city.aggregator.forerunner.step, lambda: held(city) == METERS)
    assert release(city).count == METERS


def test_a_key_holder_that_is_away_is_not_waited_for(city: LocalCity) -> None:
    """Reports are accepted meanwhile, and the window is released when it is back."""
    city.stop_keyholder()
    submit(city, range(METERS))
    city.aggregator.forerunner.step()
    city.start_keyholder()
    assert release(city).count == METERS


def test_a_settled_window_is_not_followed_any_more(city: LocalCity) -> None:
    submit(city, range(METERS))
    city.aggregator.forerunner.step()
    release(city)
    city.aggregator.forerunner.step()
    assert city.keyholder.releases.prechecks.windows() == []
