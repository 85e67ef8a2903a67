"""The roster that an aggregator was told for a window is the window's for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.roster import Member, RosterVersion
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW, make_members

METERS = 3


@pytest.fixture
def city(tmp_path: Path) -> Iterator[LocalCity]:
    with LocalCity.create(tmp_path, meters=METERS, start=WINDOW - 1000.0) as made:
        yield made


def told(city: LocalCity, window: int = WINDOW) -> RosterVersion:
    """What the key-holder answers an aggregator, over the wire."""
    return city.aggregator._keyholder.roster(0, window).head


def newcomer() -> Member:
    return make_members(METERS + 1)[METERS].member


def test_the_roster_of_a_window_that_has_not_begun_is_not_told(city: LocalCity) -> None:
    """A meter may still be enrolled for it: an aggregator whose clock is fast comes back."""
    city.clock.move_to(WINDOW - 1)
    with pytest.raises(Unavailable) as refusal:
        told(city)
    assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    assert refusal.value.retry_after_s is not None
    city.keyholder.roster.enrol([newcomer()])
    city.clock.move_to(WINDOW)
    assert told(city).count == METERS + 1


def test_a_told_roster_stays_when_the_clock_steps_back(city: LocalCity) -> None:
    """Who is enrolled after the step counts from the window after the told one."""
    city.clock.move_to(WINDOW + 20)
    before = told(city)
    city.clock.move_to(WINDOW - 20)
    version = city.keyholder.roster.enrol([newcomer()])
    city.clock.move_to(WINDOW + 30)
    assert told(city) == before
    assert version.effective_window == WINDOW + LENGTH
    city.clock.move_to(WINDOW + LENGTH)
    assert told(city, WINDOW + LENGTH) == version
