"""Readings of local days of 92, 96 and 100 quarter-hours: made up, and from files."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from numpy.typing import NDArray

from gridveil.days import windows_of
from gridveil.simulator import ReadingBounds, StandardLoadSource
from gridveil.simulator.csv_source import CsvSource

BERLIN = ZoneInfo("Europe/Berlin")
BOUNDS = ReadingBounds(900, -200_000, 200_000)
DAYS = [(date(2026, 3, 29), 92), (date(2026, 3, 28), 96), (date(2026, 10, 25), 100)]
ANY = [None] * 300


def made_up(day: date) -> NDArray[np.int64]:
    """Wh of all homes in each quarter-hour of a local day, without scatter."""
    windows = list(windows_of(day, BERLIN, 900))
    table = StandardLoadSource(seed=5, interval_sigma=0.0).read(ANY, windows, BOUNDS)
    assert table.present.all()
    drawn: NDArray[np.int64] = table.wh.sum(axis=1)
    return drawn


@pytest.mark.parametrize(("day", "count"), DAYS)
def test_made_up_homes_draw_power_in_every_quarter_hour_of_the_day(day: date, count: int) -> None:
    drawn = made_up(day)

    assert drawn.size == count
    assert (drawn > 0).all()


def test_made_up_homes_live_the_hour_that_comes_twice_twice_alike() -> None:
    drawn = made_up(date(2026, 10, 25))

    assert drawn[8:12].tolist() == drawn[12:16].tolist()


def test_made_up_homes_live_by_the_clock_on_the_wall_after_the_hour_that_is_left_out() -> None:
    changed, usual = made_up(date(2026, 3, 29)), made_up(date(2026, 4, 5))  # both Sundays

    assert np.allclose(changed[8:], usual[12:], rtol=0.08)
    assert not np.allclose(changed[8:], usual[8:92], rtol=0.08)


@pytest.mark.parametrize(("day", "count"), DAYS)
def test_a_file_with_local_times_and_offsets_gives_each_quarter_hour_its_reading(
    tmp_path: Path, day: date, count: int
) -> None:
    windows = list(windows_of(day, BERLIN, 900))
    rows = [
        f"m1,{datetime.fromtimestamp(window, BERLIN).isoformat()},{1000 + at}"
        for at, window in enumerate(windows)
    ]
    path = tmp_path / "day.csv"
    path.write_text("\n".join(["meter_id,timestamp,wh", *reversed(rows)]) + "\n")

    table = CsvSource(path).read(["m1"], windows, BOUNDS)

    assert table.present.all()
    assert table.wh[:, 0].tolist() == [1000 + at for at in range(count)]
