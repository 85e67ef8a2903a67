"""Local days of 92, 96 and 100 quarter-hours."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import pytest

from gridveil.days import day_of, same_time_before, windows_of

ZURICH = ZoneInfo("Europe/Zurich")


@pytest.mark.parametrize(
    ("day", "size"),
    [(date(2018, 3, 25), 92), (date(2018, 3, 26), 96), (date(2018, 10, 28), 100)],
)
def test_a_day_has_the_quarter_hours_that_its_clocks_show(day: date, size: int) -> None:
    windows = windows_of(day, ZURICH, 900)
    assert len(windows) == len(set(windows)) == size
    assert {day_of(window, ZURICH) for window in windows} == {day}


def test_days_follow_each_other_without_gap_or_overlap() -> None:
    days = [date(2018, 10, n) for n in range(26, 31)]
    windows = [window for day in days for window in windows_of(day, ZURICH, 900)]
    assert windows == list(range(windows[0], windows[-1] + 900, 900))


def test_the_same_time_a_week_ago_is_by_the_clock_on_the_wall() -> None:
    noon_in_winter_time = 1_540_810_800  # 2018-10-29 12:00 +01:00
    assert (
        noon_in_winter_time - same_time_before(noon_in_winter_time, 7, ZURICH) == 7 * 86_400 + 3600
    )


def test_an_hour_that_a_day_has_twice_is_told_apart() -> None:
    twice = list(windows_of(date(2018, 10, 28), ZURICH, 900)[8:16])  # 02:00 to 02:45, and again
    assert [same_time_before(window, 0, ZURICH) for window in twice] == twice


def test_an_hour_that_a_day_has_not_is_taken_as_the_one_after_it() -> None:
    half_past_two = 1_522_542_600  # 2018-04-01 02:30 +02:00; the week before there was none
    three_thirty = 1_521_941_400  # 2018-03-25 03:30 +02:00
    assert same_time_before(half_past_two, 7, ZURICH) == three_thirty
