"""Forecasts of the last two weeks of a city, a day ahead, beside the same time last week.

    GRIDVEIL_READINGS=readings.csv.gz python -m benchmarks.forecast

The file has one row a household and one column a quarter-hour, in Wh; 49 days from Monday
2018-10-29 in Zurich. Demand is the sum over all households. Each day is forecast from what came
before its midnight; how far off is the mean of absolute errors. Nothing was tuned on the two weeks
but the choice of the model (docs/control.md says what else was tried).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.measure import Goal, parser, report
from gridveil.days import windows_of
from gridveil.simulator.csv_source import CsvSource
from gridveil.simulator.readings import ReadingBounds
from gridveil_services.controller.forecast import COVERAGE, Array, Forecaster

ZONE = ZoneInfo("Europe/Zurich")
FIRST = date(2018, 10, 29)
DAYS = 49
SCORED = 14
BOUND_WH = 2**31


@dataclass(frozen=True)
class Scores:
    """What came out, in the unit of the demand; one array a scored day."""

    off: Array
    last_week: Array
    yesterday: Array
    inside: Array
    width: Array
    cpu_s: float
    """The longest day's, with everything it learns from; imports not counted."""


def demand(path: Path) -> dict[int, float]:
    """Demand of the whole city in kWh, by window start."""
    days = [FIRST + timedelta(days=n) for n in range(DAYS)]
    windows = [window for day in days for window in windows_of(day, ZONE, 900)]
    source = CsvSource(path, start=windows[0])
    found = source.read(source.names(), windows, ReadingBounds(900, -BOUND_WH, BOUND_WH))
    sums = found.wh.sum(axis=1)
    return {window: int(total) / 1_000 for window, total in zip(windows, sums, strict=True)}


def score(history: dict[int, float], days: Sequence[date], zone: ZoneInfo) -> Scores:
    """Forecast each day anew from what came before it."""
    # What the first forecast would load by itself, and would be charged with.
    for part in ("linear_model", "pipeline", "preprocessing"):
        import_module(f"sklearn.{part}")
    off, last_week, yesterday, inside, width, cpu = [], [], [], [], [], []
    for day in days:
        begin = windows_of(day, zone, 900)[0]
        known = {window: value for window, value in history.items() if window < begin}
        began = time.process_time()
        found = Forecaster(known, zone).day(day)
        cpu.append(time.process_time() - began)
        whole = Forecaster(history, zone)
        truth = whole.truth(day)
        off.append(np.abs(found.expected - truth))
        last_week.append(np.abs(whole.same_time(day, 7) - truth))
        yesterday.append(np.abs(whole.same_time(day, 1) - truth))
        inside.append((found.low <= truth) & (truth <= found.high))
        width.append(found.high - found.low)
    return Scores(
        np.concatenate(off),
        np.concatenate(last_week),
        np.concatenate(yesterday),
        np.concatenate(inside),
        np.concatenate(width),
        max(cpu),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__, 1).parse_args(arguments)
    if "GRIDVEIL_READINGS" not in os.environ:
        print("left out: GRIDVEIL_READINGS names no file of readings", file=sys.stderr)
        return 0
    history = demand(Path(os.environ["GRIDVEIL_READINGS"]))
    days = [FIRST + timedelta(days=n) for n in range(DAYS - SCORED, DAYS)]
    found = score(history, days, ZONE)
    daily = (part.reshape(SCORED, -1).mean(axis=1) for part in (found.off, found.yesterday))
    better = int(np.count_nonzero(np.less(*daily)))
    figures = {
        "mean_kwh": float(np.mean(list(history.values()))),
        "ridge_mae_kwh": float(found.off.mean()),
        "last_week_mae_kwh": float(found.last_week.mean()),
        "yesterday_mae_kwh": float(found.yesterday.mean()),
        "days_better_than_yesterday": better,
        "interval_coverage": float(found.inside.mean()),
        "interval_width_kwh": float(found.width.mean()),
        "cpu_s_a_day": found.cpu_s,
    }
    lines = [
        f"demand of a quarter-hour, all weeks        {figures['mean_kwh']:7.1f} kWh",
        f"mean absolute error, forecast              {figures['ridge_mae_kwh']:7.1f} kWh",
        f"mean absolute error, same time last week   {figures['last_week_mae_kwh']:7.1f} kWh",
        f"mean absolute error, same time yesterday   {figures['yesterday_mae_kwh']:7.1f} kWh",
        f"days on which it beat yesterday            {better:5d} of {SCORED}",
        f"truth inside the {COVERAGE:.0%} interval             {found.inside.mean():7.1%}",
        f"mean width of the interval                 {figures['interval_width_kwh']:7.1f} kWh",
        f"CPU of a day's forecast, longest           {found.cpu_s:7.3f} s",
    ]
    goals = [
        Goal(
            "error by that of last week", figures["ridge_mae_kwh"] / figures["last_week_mae_kwh"], 1
        ),
        Goal("CPU of a day's forecast, s", found.cpu_s, 1),
    ]
    return report(options, "forecast", lines, goals, figures)


if __name__ == "__main__":
    sys.exit(main())
