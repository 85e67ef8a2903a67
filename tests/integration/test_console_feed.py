"""What the console follows, and what it says when it cannot any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, date
from pathlib import Path

from gridveil.clock import ManualClock
from gridveil.operator import AsyncOperator
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.watchdog.limits import Limits
from gridveil_services.console.feed import Feed
from gridveil_services.console.hub import Hub
from gridveil_services.console.model import CityModel, ForecastPoint, SignalRow
from gridveil_services.console.watching import Watching
from tests.support.city import MIDNIGHT
from tests.support.consoles import WatchedCity

PATIENCE_S = 20.0


class Faulty:
    """A source of signals with a fault that nobody foresaw."""

    async def watch(
        self, since: int, on_failure: Callable[[GridveilError], None]
    ) -> AsyncGenerator[SignalRow]:
        if since:
            raise ZeroDivisionError("a reading of 4711 Wh")
        yield SignalRow(1, 1, None, 0, "NEUTRAL", "NO_TOTAL", "", None, None)

    async def signal(self) -> SignalRow:
        raise Unavailable(Reason.UNREACHABLE, "away")

    async def rules(self) -> Mapping[str, object]:
        return {}

    async def forecast(self, day: date) -> Mapping[int, ForecastPoint]:
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
