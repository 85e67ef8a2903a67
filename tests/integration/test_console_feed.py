"""What the console follows, and what it says when it cannot any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, date
from pathlib import Path

from gridveil.clock import ManualClock
from gridveil.operator import AsyncOperator
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.watchdog.limits import Limits
from gridveil_services.console.feed import Feed
from gridveil_services.console.hub import Hub
from gridveil_services.console.model import HISTORY_DAYS, CityModel, ForecastPoint, Row, SignalRow
from gridveil_services.console.watching import Watching
from tests.support.city import MIDNIGHT
from tests.support.consoles import WatchedCity, start, watched_city

PATIENCE_S = 20.0


class Faulty:
    """A source of signals with a fault that nobody foresaw."""

    async def watch(
        self, since: int, on_failure: Callable[[GridveilError], None]
    ) -> AsyncGenerator[SignalRow]:
        yield SignalRow(1 // 0, 0, None, 0, "", "", "", None, None)

    async def signal(self) -> SignalRow:
        raise Unavailable(Reason.UNREACHABLE, "away")

    async def rules(self) -> Mapping[str, object]:
        return {}

    async def forecast(self, day: date) -> Mapping[int, ForecastPoint]:
        await asyncio.Event().wait()
        return {}


def test_a_fault_that_nobody_foresaw_ends_under_an_alarm_and_not_in_silence(
    tmp_path: Path,
) -> None:
    async def followed(city: WatchedCity) -> Feed:
        model = CityModel("import_wh", 900, UTC)
        async with AsyncOperator.open(city.paths.profile("console")) as operator:
            feed = Feed(
                model, Hub(), operator, Faulty(), ManualClock(MIDNIGHT), Watching(Limits(), 900)
            )
            await asyncio.wait_for(feed.run(), PATIENCE_S)
        return feed

    with WatchedCity.create(tmp_path, start=False) as city:
        assert isinstance(city, WatchedCity)
        health = asyncio.run(followed(city)).health

    assert (health.alarm, health.totals, health.ready) == ("INTERNAL", "INTERNAL", False)


def test_a_day_does_not_wait_for_a_controller_that_does_not_answer(tmp_path: Path) -> None:
    async def forecast(city: WatchedCity) -> Mapping[int, ForecastPoint]:
        async with AsyncOperator.open(city.paths.profile("console")) as operator:
            model = CityModel("import_wh", 900, UTC)
            watching = Watching(Limits(), 900)
            feed = Feed(model, Hub(), operator, Faulty(), ManualClock(MIDNIGHT), watching)
            return await asyncio.wait_for(feed.forecast(date(2026, 1, 1)), PATIENCE_S)

    with WatchedCity.create(tmp_path, start=False) as city:
        assert isinstance(city, WatchedCity)
        assert asyncio.run(forecast(city)) == {}


def test_what_is_older_than_the_history_is_forgotten_as_time_passes(tmp_path: Path) -> None:
    with watched_city(tmp_path) as city:
        city.release(0, 500_000)
        city.until_window(0)
        model = city.console.model
        model.take([Row(city.window(-HISTORY_DAYS * 96 - 1), "expired")])
        model.take([Row(city.window(-HISTORY_DAYS * 96 + 96), "expired")])

        city.release(1, 500_000)
        until(lambda: model.row(city.window(1)) is not None)

        assert model.row(city.window(-HISTORY_DAYS * 96 - 1)) is None
        assert model.row(city.window(-HISTORY_DAYS * 96 + 96)) is not None


def test_windows_of_another_length_than_configured_are_not_shown_as_power(tmp_path: Path) -> None:
    """They would be a whole multiple of what they are."""
    with watched_city(tmp_path) as city:
        path = city.paths.config("console")
        city.stop_console()
        path.write_text(path.read_text().replace("window_length = 900", "window_length = 1800"))
        city.console, city.thread = start(city.paths, city.clock)

        city.release(0, 500_000)
        console = city.console.app.state.console
        until(lambda: console.feed.health.alarm == "CONFIG_INVALID")

        assert city.console.model.newest is None


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
