"""The controller's client, as the console's rows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict
from datetime import date
from typing import Any

from gridveil.control import AsyncControlClient, ControlSignal
from gridveil.protocol.errors import GridveilError
from gridveil_services.console.model import ForecastPoint, SignalRow


class Controller:
    """What the console asks of the controller."""

    def __init__(self, client: AsyncControlClient) -> None:
        self._client = client

    async def watch(
        self, since: int, on_failure: Callable[[GridveilError], None]
    ) -> AsyncGenerator[SignalRow]:
        """Signals from a time on, then each new one; endless."""
        async for signal in self._client.watch(max(since, 1), on_failure=on_failure):
            yield _row(signal)

    async def signal(self) -> SignalRow:
        """The signal that stands, and what became of its events by now."""
        return _row(await self._client.signal())

    async def rules(self) -> Mapping[str, Any]:
        """The rules that signals are made by."""
        return asdict(await self._client.rules())

    async def forecast(self, day: date) -> Mapping[int, ForecastPoint]:
        """What is expected of each window of a local day, W."""
        forecast = await self._client.forecast(day)
        return {
            point.window_start: ForecastPoint(
                point.expected_w,
                point.low_w,
                point.high_w,
                point.yesterday_w,
                point.last_week_w,
            )
            for point in forecast.points
        }


def _row(signal: ControlSignal) -> SignalRow:
    return SignalRow(
        signal.number,
        signal.at,
        signal.window_start,
        signal.level,
        signal.basis.value,
        signal.cause,
        signal.reason,
        signal.measured_w,
        signal.estimated_w,
        [{"json": event.json, "delivery": event.delivery.value} for event in signal.openadr],
    )
