"""Demand of the next day with intervals: a ridge regression on lags, or the same time last week.

For display only: no signal depends on it (docs/control.md). The regression needs the extra
``controller``; where it is not installed, every day is the same time last week.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta, tzinfo
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from gridveil.days import same_time_before, windows_of

Array = npt.NDArray[np.float64]

HISTORY_DAYS = 56
LEAST_DAYS = 14
"""Whole days to learn from, at least; with fewer the forecast is the same time last week."""
TRIED_DAYS = 14
"""So many days before are forecast as well: how far off those were is the interval."""
COVERAGE = 0.9
HARMONICS = (1, 2, 3)
EVENING = 8
"""Windows at the end of a day whose mean is a feature of its own."""


class Method(StrEnum):
    """How a day was forecast."""

    RIDGE = "RIDGE"
    LAST_WEEK = "LAST_WEEK"


@dataclass(frozen=True)
class Forecast:
    """A day's demand, a window each, in the unit of the history; NaN where there is no figure."""

    method: Method
    windows: tuple[int, ...]
    expected: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class _Day:
    windows: Sequence[int]
    features: Array
    truth: Array


class Forecaster:
    """Forecasts days of a city from its totals.

    Args:
        history: demand by window start; windows that were not released are not in it.
        zone: where the city's days begin and end.
        length: of a window, seconds.
    """

    def __init__(self, history: Mapping[int, float], zone: tzinfo, length: int = 900) -> None:
        self._history = history
        self._zone = zone
        self._length = length
        self._days: dict[date, _Day] = {}

    def day(self, day: date) -> Forecast:
        """The day's forecast, from what was settled before its midnight and nothing later."""
        method, expected = self._expected(day)
        off = [self._off(day - timedelta(days=n), method) for n in range(1, TRIED_DAYS + 1)]
        width = _conformal(np.concatenate(off))
        windows = tuple(self._day(day).windows)
        return Forecast(method, windows, expected, expected - width, expected + width)

    def same_time(self, day: date, days_before: int) -> Array:
        """The demand at the same local times of an earlier day: what any forecast must beat."""
        zone, windows = self._zone, windows_of(day, self._zone, self._length)
        return self._at([same_time_before(window, days_before, zone) for window in windows])

    def truth(self, day: date) -> Array:
        """What was measured; NaN where nothing was."""
        return self._at(windows_of(day, self._zone, self._length))

    def _expected(self, day: date) -> tuple[Method, Array]:
        past = [self._day(day - timedelta(days=n)) for n in range(HISTORY_DAYS, 0, -1)]
        features = np.vstack([found.features for found in past])
        truth = np.concatenate([found.truth for found in past])
        whole = np.isfinite(features).all(axis=1) & np.isfinite(truth)
        last_week = self.same_time(day, 7)
        model = _ridge()
        if model is None or np.count_nonzero(whole) < LEAST_DAYS * 86_400 // self._length:
            return Method.LAST_WEEK, last_week
        model.fit(features[whole], truth[whole])
        wanted, expected = self._day(day).features, last_week.copy()
        known = np.isfinite(wanted).all(axis=1)
        if known.any():
            expected[known] = model.predict(wanted[known])
        return Method.RIDGE, expected

    def _off(self, day: date, method: Method) -> Array:
        """How far off the same method was on an earlier day, forecast as if from the day before."""
        used, expected = self._expected(day)
        off: Array = np.abs(self.truth(day) - expected)
        return off[np.isfinite(off)] if used is method else off[:0]

    def _day(self, day: date) -> _Day:
        if day not in self._days:
            windows = windows_of(day, self._zone, self._length)
            self._days[day] = _Day(windows, self._features(day, windows), self._at(windows))
        return self._days[day]

    def _features(self, day: date, windows: Sequence[int]) -> Array:
        size = len(windows)
        lags = [self.same_time(day, days) for days in (1, 7, 14)]
        levels = [
            np.full(size, _mean(part))
            for days in (1, 8)
            for before in [self.truth(day - timedelta(days=days))]
            for part in (before, before[-EVENING:])
        ]
        begins = windows[0] if size else 0  # a day of 23 hours may have no window of 24
        hours = (np.array(windows, dtype=np.float64) - begins) * (2 * math.pi / 86_400)
        waves = [wave(n * hours) for n in HARMONICS for wave in (np.sin, np.cos)]
        weekday = [np.full(size, float(day.weekday() == n)) for n in range(7)]
        return np.column_stack([*lags, *levels, *waves, *weekday])

    def _at(self, windows: Sequence[int]) -> Array:
        return np.array([self._history.get(window, math.nan) for window in windows], np.float64)


def _ridge() -> Any:
    """A regression that is to be fitted; None where the extra is not installed."""
    try:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ModuleNotFoundError:
        return None
    return make_pipeline(StandardScaler(), Ridge())


def _mean(values: Array) -> float:
    """The mean of what there is; NaN of nothing."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else math.nan


def _conformal(off: Array) -> float:
    """Split conformal half-width: the (n + 1) * coverage-th smallest error; NaN of too few."""
    rank = math.ceil((off.size + 1) * COVERAGE)
    return float(np.partition(off, rank - 1)[rank - 1]) if rank <= off.size else math.nan
