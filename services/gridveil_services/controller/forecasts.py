"""Forecasts of days as they are asked for: computed once for what is known, and kept a while."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from datetime import date, tzinfo

import numpy as np

from gridveil.clock import Clock
from gridveil.days import day_of, midnight, same_time_before
from gridveil.protocol.errors import Exhausted, MalformedInput, Reason
from gridveil.protocol.v1 import controller_pb2
from gridveil_services.controller.forecast import Forecast, Forecaster, Method
from gridveil_services.controller.history import History

AHEAD_DAYS = 7
PAST_DAYS = 400
_KEPT = 16
_PLACES = 3
"""One is computed, two wait; more would keep the server's last worker from signals."""
_RETRY_S = 1.0

_METHODS = {
    Method.RIDGE: controller_pb2.FORECAST_METHOD_RIDGE,
    Method.LAST_WEEK: controller_pb2.FORECAST_METHOD_LAST_WEEK,
}


class Forecasts:
    """What is expected of local days. Thread-safe; one is computed at a time."""

    def __init__(self, history: History, zone: tzinfo, length: int, clock: Clock) -> None:
        self._history = history
        self._zone = zone
        self._length = length
        self._clock = clock
        self._kept: OrderedDict[date, tuple[int, Forecast]] = OrderedDict()
        self._lock = threading.Lock()
        self._computing = threading.Lock()
        self._places = threading.BoundedSemaphore(_PLACES)

    def day(self, day: date) -> controller_pb2.DemandForecast:
        """The forecast of a day from what was settled before it, beside what came before.

        Raises:
            MalformedInput: RANGE_INVALID for a day too far away.
            Exhausted: OVERLOADED while others are computed.
        """
        today = day_of(int(self._clock.now()), self._zone)
        if not -PAST_DAYS <= (day - today).days <= AHEAD_DAYS:
            raise MalformedInput(
                Reason.RANGE_INVALID,
                f"a day is at most {AHEAD_DAYS} days ahead or {PAST_DAYS} days ago",
                field="day",
            )
        forecast = self._forecast(day)
        figures = zip(forecast.expected, forecast.low, forecast.high, strict=True)
        points = (
            self._point(window, *map(_whole, found))
            for window, found in zip(forecast.windows, figures, strict=True)
        )
        return controller_pb2.DemandForecast(
            day=day.isoformat(), method=_METHODS[forecast.method], points=points
        )

    def _forecast(self, day: date) -> Forecast:
        if (kept := self._look_up(day)) is not None:
            return kept
        if not self._places.acquire(blocking=False):
            raise Exhausted(
                Reason.OVERLOADED, "other days are being forecast", retry_after_s=_RETRY_S
            )
        try:
            with self._computing:
                return self._look_up(day) or self._renew(day)
        finally:
            self._places.release()

    def _look_up(self, day: date) -> Forecast | None:
        """What was computed of the same windows as are known now."""
        with self._lock:
            known, forecast = self._kept.get(day, (None, None))
            if forecast is None or known != self._history.settled_before(midnight(day, self._zone)):
                return None
            self._kept.move_to_end(day)
            return forecast

    def _renew(self, day: date) -> Forecast:
        begins = midnight(day, self._zone)
        known = self._history.settled_before(begins)
        forecast = self._compute(day, begins)
        with self._lock:
            self._kept[day] = known, forecast
            self._kept.move_to_end(day)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return forecast

    def _compute(self, day: date, begins: int) -> Forecast:
        demand = self._history.demand_w()
        before = {window: power for window, power in demand.items() if window < begins}
        return Forecaster(before, self._zone, self._length).day(day)

    def _point(
        self, window: int, expected: int | None, low: int | None, high: int | None
    ) -> controller_pb2.ForecastPoint:
        yesterday, last_week = (
            self._history.measured_w(same_time_before(window, days, self._zone)) for days in (1, 7)
        )
        return controller_pb2.ForecastPoint(
            window_start=window,
            expected_w=expected,
            low_w=low,
            high_w=high,
            yesterday_w=yesterday,
            last_week_w=last_week,
        )


def parse_day(value: str) -> date:
    """A local day such as 2026-11-28, or FIELD_FORMAT."""
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = None
    if day is None or day.isoformat() != value:
        raise MalformedInput(
            Reason.FIELD_FORMAT, "a day is such as 2026-11-28", field="day"
        ) from None
    return day


def _whole(power: np.float64) -> int | None:
    return round(float(power)) if math.isfinite(power) else None
