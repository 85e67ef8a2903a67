"""The page for citizens: whoever asks, and however often, the city's services hardly notice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters
from gridveil_services.console.citizens import Citizens
from gridveil_services.console.model import RELEASED, CityModel, Row
from tests.support.controllers import ControlledCity
from tests.support.totals import open_window, publish, publish_entries, released

VISITORS = 50


class Counted(Citizens):
    """It counts how often the totals service is asked."""

    asked = 0

    def _fetch(self, window_start: int) -> CityParameters:
        self.asked += 1
        return super()._fetch(window_start)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[ControlledCity]:
    with ControlledCity.create(tmp_path, start=False) as made:
        yield made


def publish_window(city: ControlledCity, at: int) -> Row:
    """A released window with its parameters, and its row."""
    window = city.window(at)
    opened = open_window(city.policy, city._signer, window, [[1, 0]] * 100, enrolled=100, seed=at)
    publish(city.paths, released(opened))
    publish_entries(city.paths, opened)
    city.start_totals()
    return Row(window, RELEASED, 100, 100, 100, parameters=opened.parameters.digest.hex())


def page(city: ControlledCity, *rows: Row) -> Counted:
    profile = Profile.load(city.paths.profile("console"))
    model = CityModel("import_wh", 900, UTC)
    model.take(rows)
    return Counted(model, profile, "", "UTC")


def visited(made: Counted) -> list[dict[str, Any]]:
    async def at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(made.shown("en") for _ in range(VISITORS)))

    return asyncio.run(at_once())


def test_many_visitors_ask_for_the_rules_once(city: ControlledCity) -> None:
    made = page(city, publish_window(city, 0))

    shown = visited(made)

    assert all(one["policy"]["min_cohort"] == 100 for one in shown)
    assert made.asked == 1


def test_many_visitors_ask_a_service_that_is_away_once(city: ControlledCity) -> None:
    made = page(city, publish_window(city, 0))
    city.stop_totals()

    shown = visited(made)

    assert all(one["policy"] is None for one in shown)
    assert made.asked == 1


def test_rules_that_the_total_does_not_name_are_not_shown(city: ControlledCity) -> None:
    """They are signed too, such as those of an earlier day."""
    row = publish_window(city, 0)
    other = Row(row.window_start, RELEASED, 100, 100, 100, parameters="00" * 32)

    assert visited(page(city, other))[0]["policy"] is None
    assert visited(page(city, row))[0]["policy"] is not None
