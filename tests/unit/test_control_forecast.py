"""The forecast of a day: what it learns, what it falls back on, and what it must not see."""

from __future__ import annotations

import math
import os
import random
import sys
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from benchmarks.forecast import DAYS, FIRST, SCORED, demand, score
from gridveil.days import windows_of
from gridveil_services.controller.forecast import Forecaster, Method

ZONE = ZoneInfo("Europe/Zurich")
MONDAY = date(2018, 9, 3)


def city(days: int, first: date = MONDAY, seed: int = 1) -> dict[int, float]:
    """A level that wanders from day to day, under a daily curve with noise, in kWh."""
    draw, level, history = random.Random(seed), 300.0, {}
    for n in range(days):
        level += draw.gauss(0, 15)
        windows = windows_of(first + timedelta(days=n), ZONE, 900)
        for at, window in enumerate(windows):
            curve = 80 * math.sin(2 * math.pi * at / 96)
            history[window] = level + curve + draw.gauss(0, 8)
    return history


def test_a_wandering_level_is_forecast_better_than_by_last_week() -> None:
    history = city(56)
    days = [MONDAY + timedelta(days=n) for n in range(42, 56)]
    found = score(history, days, ZONE)
    assert found.off.mean() < found.last_week.mean()
    assert 0.75 <= found.inside.mean() <= 1


def test_nothing_of_the_day_itself_or_later_is_seen() -> None:
    history, day = city(50), MONDAY + timedelta(days=45)
    begin = windows_of(day, ZONE, 900)[0]
    before = {window: value for window, value in history.items() if window < begin}
    seen, unseen = Forecaster(history, ZONE).day(day), Forecaster(before, ZONE).day(day)
    assert seen.method is unseen.method is Method.RIDGE
    for one, other in ((seen.expected, unseen.expected), (seen.low, unseen.low)):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("day", "size"), [(date(2018, 10, 28), 100), (date(2019, 3, 31), 92)])
def test_days_of_100_and_92_quarter_hours_are_forecast_whole(day: date, size: int) -> None:
    found = Forecaster(city(50, day - timedelta(days=50)), ZONE).day(day)
    assert found.method is Method.RIDGE
    assert len(found.windows) == len(found.expected) == size
    assert np.isfinite(found.low).all()
    assert (found.low < found.high).all()


def test_a_short_history_gives_the_same_time_last_week() -> None:
    history, day = city(16), MONDAY + timedelta(days=16)
    found = Forecaster(history, ZONE).day(day)
    assert found.method is Method.LAST_WEEK
    assert np.array_equal(found.expected, [history[w - 7 * 86_400] for w in found.windows])
    assert np.isfinite(found.low).all()


def test_without_history_there_is_no_figure_and_no_zero() -> None:
    found = Forecaster({}, ZONE).day(MONDAY)
    assert len(found.windows) == 96
    assert np.isnan(found.expected).all()
    assert np.isnan(found.low).all()


def test_a_window_whose_like_is_missing_everywhere_has_no_figure() -> None:
    history, day = city(50), MONDAY + timedelta(days=50)
    windows = windows_of(day, ZONE, 900)
    for days_before in (1, 7):
        del history[windows[40] - days_before * 86_400]
    found = Forecaster(history, ZONE).day(day)
    assert np.flatnonzero(np.isnan(found.expected)).tolist() == [40]


def test_the_interval_rests_on_errors_of_the_same_method_only() -> None:
    """Of the 14 days before, the regression forecasts two; the others were too early for it."""
    history, day = city(30), MONDAY + timedelta(days=30)
    days = [day - timedelta(days=n) for n in range(1, 15)]
    forecaster = Forecaster(history, ZONE)
    by_ridge = [one for one in days if forecaster.day(one).method is Method.RIDGE]
    assert by_ridge == days[:2]
    off = sorted(
        float(error)
        for one in by_ridge
        for error in np.abs(forecaster.truth(one) - forecaster.day(one).expected)
    )

    found = forecaster.day(day)

    assert found.method is Method.RIDGE
    width = off[math.ceil((len(off) + 1) * 0.9) - 1]
    assert found.high - found.expected == pytest.approx(width)


def test_without_the_extra_every_day_is_the_same_time_last_week(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history, day = city(50), MONDAY + timedelta(days=50)
    assert Forecaster(history, ZONE).day(day).method is Method.RIDGE
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)

    found = Forecaster(history, ZONE).day(day)

    assert found.method is Method.LAST_WEEK
    assert np.array_equal(found.expected, [history[w - 7 * 86_400] for w in found.windows])
    assert np.isfinite(found.low).all()


@pytest.mark.skipif(
    "GRIDVEIL_READINGS" not in os.environ,
    reason="GRIDVEIL_READINGS names no file of 537 households in quarter-hours",
)
def test_a_real_city_is_forecast_better_than_by_last_week() -> None:
    history = demand(Path(os.environ["GRIDVEIL_READINGS"]))
    days = [FIRST + timedelta(days=n) for n in range(DAYS - SCORED, DAYS)]
    found = score(history, days, ZONE)
    assert found.off.mean() < found.last_week.mean()
