"""What the controller knows of past demand, and the forecasts that it makes of it."""

from __future__ import annotations

import threading
from datetime import date, timedelta
from pathlib import Path
from queue import Queue
from zoneinfo import ZoneInfo

import pytest

from gridveil.clock import ManualClock
from gridveil.days import windows_of
from gridveil.protocol.errors import Exhausted, MalformedInput, Reason
from gridveil.protocol.v1 import controller_pb2
from gridveil_services.controller.core import Gap, Settled
from gridveil_services.controller.forecasts import Forecasts, parse_day
from gridveil_services.controller.history import History, read_recorded
from gridveil_services.controller.journal import Window
from gridveil_services.controller.rules import ControlRules
from gridveil_services.rpc import ServerOptions

ZONE = ZoneInfo("Europe/Zurich")
RULES = ControlRules(capacity_w=1_000_000, hysteresis_w=1, ramp_limit_w=1)
WINDOW = 1_767_225_600


def whole(first: date, days: int, wh: int = 100_000) -> list[Window]:
    """Days of which every window was released; each uses a bit more than the one before."""
    return [
        Window(window, wh + n * 100, 100, 100)
        for n in range(days)
        for window in windows_of(first + timedelta(days=n), ZONE, 900)
    ]


def forecasts(history: History, today: date) -> Forecasts:
    noon = windows_of(today, ZONE, 900)[48]
    return Forecasts(history, ZONE, 900, ManualClock(noon))


def test_a_gap_has_no_figure_and_is_not_zero() -> None:
    history = History(RULES, [Window(WINDOW)], {WINDOW: 5_000})
    history.add(Gap(0, WINDOW + 900, "REFUSED"))
    for window in (WINDOW, WINDOW + 900, WINDOW + 1_800):
        assert history.measured_w(window) is None
        assert window not in history.demand_w()
    assert history.knows(WINDOW + 900)
    assert not history.knows(WINDOW + 1_800)


def test_a_total_of_too_few_meters_has_no_figure() -> None:
    history = History(RULES, [Window(WINDOW, 79_000, 79, 100)])
    assert history.measured_w(WINDOW) is None
    assert history.demand_w() == {}


def test_what_was_released_is_shown_and_what_is_forecast_from_is_scaled() -> None:
    history = History(RULES)
    history.add(Settled(0, WINDOW, 80_000, 80, 100))
    assert history.measured_w(WINDOW) == 320_000
    assert history.demand_w() == {WINDOW: 400_000.0}


def test_the_record_counts_only_where_nothing_was_settled() -> None:
    history = History(RULES, [Window(WINDOW, 1_000, 100, 100)], {WINDOW: 7, WINDOW - 900: 2_000})
    assert history.demand_w() == {WINDOW - 900: 8_000.0, WINDOW: 4_000.0}
    assert [history.measured_w(w) for w in (WINDOW - 900, WINDOW)] == [8_000, 4_000]


def test_what_is_forgotten_is_not_known() -> None:
    history = History(RULES, [Window(WINDOW + at * 900) for at in range(4)])
    history.forget(WINDOW + 1_800)
    assert [history.knows(WINDOW + at * 900) for at in range(4)] == [False, False, True, True]
    assert history.newest == WINDOW + 2_700


def test_a_record_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text(f"window_start,wh\n{WINDOW},12\n{WINDOW + 1_800},0\n")
    assert read_recorded(path, 900) == {WINDOW: 12, WINDOW + 1_800: 0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "first line"),
        ("window,wh\n", "first line"),
        (f"window_start,wh\n{WINDOW}\n", "line 2"),
        (f"window_start,wh\n{WINDOW},1,2\n", "line 2"),
        (f"window_start,wh\n{WINDOW},-1\n", "line 2"),
        (f"window_start,wh\n{WINDOW},1.5\n", "line 2"),
        (f"window_start,wh\n{WINDOW}, 1\n", "line 2"),
        (f"window_start,wh\n{WINDOW},\n", "line 2"),
        (f"window_start,wh\n{WINDOW},1\n\n", "line 3"),
        (f"window_start,wh\n{WINDOW},{10**15}\n", "line 2"),
        (f"window_start,wh\n{WINDOW + 1},1\n", "grid"),
        (f"window_start,wh\n{WINDOW},1\n{WINDOW},1\n", "twice"),
        ("window_start,wh\n١٢٣,1\n", "ASCII"),
        ('window_start,wh\n"1,1\n', "CSV"),
    ],
)
def test_a_record_that_is_anything_else_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(MalformedInput, match=named) as refused:
        read_recorded(path, 900)
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_a_record_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(MalformedInput, match="16 MiB"):
        read_recorded(path, 900)


@pytest.mark.parametrize(
    ("day", "size"), [(date(2026, 3, 29), 92), (date(2026, 6, 1), 96), (date(2026, 10, 25), 100)]
)
def test_a_day_has_a_point_for_each_of_its_windows(day: date, size: int) -> None:
    history = History(RULES, whole(day - timedelta(days=40), 40))

    found = forecasts(history, day).day(day)

    assert found.day == day.isoformat()
    assert found.method == controller_pb2.FORECAST_METHOD_RIDGE
    assert [point.window_start for point in found.points] == list(windows_of(day, ZONE, 900))
    assert len(found.points) == size
    # 39 days after the first, and 33: in W, a quarter-hour's Wh times four.
    assert {point.yesterday_w for point in found.points} == {(100_000 + 39 * 100) * 4}
    assert {point.last_week_w for point in found.points} == {(100_000 + 33 * 100) * 4}
    assert all(point.low_w <= point.expected_w <= point.high_w for point in found.points)


def test_a_point_without_anything_to_go_by_has_no_figures() -> None:
    found = forecasts(History(RULES), date(2026, 6, 1)).day(date(2026, 6, 1))
    assert found.method == controller_pb2.FORECAST_METHOD_LAST_WEEK
    names = ("expected_w", "low_w", "high_w", "yesterday_w", "last_week_w")
    assert not any(point.HasField(name) for point in found.points for name in names)


def test_the_operators_record_is_forecast_from(tmp_path: Path) -> None:
    day = date(2026, 6, 1)
    recorded = {
        window.window_start: window.energy_wh or 0 for window in whole(day - timedelta(days=40), 40)
    }
    found = forecasts(History(RULES, recorded_wh=recorded), day).day(day)
    assert found.method == controller_pb2.FORECAST_METHOD_RIDGE
    assert {point.last_week_w for point in found.points} == {(100_000 + 33 * 100) * 4}


def test_a_forecast_changes_when_a_window_before_its_day_is_settled_and_not_after() -> None:
    day = date(2026, 6, 1)
    windows = whole(day - timedelta(days=40), 40)
    history = History(RULES, windows[:-1])
    asked = forecasts(history, day)
    before = asked.day(day)

    begin = windows_of(day, ZONE, 900)[0]
    history.add(Settled(0, begin, 900_000, 100, 100))
    same = asked.day(day)
    history.add(Settled(0, windows[-1].window_start, 500_000, 100, 100))
    other = asked.day(day)

    assert same == before
    assert [point.expected_w for point in other.points] != [p.expected_w for p in before.points]


@pytest.mark.parametrize("days", [-401, 8])
def test_a_day_too_far_away_is_refused(days: int) -> None:
    today = date(2026, 6, 1)
    with pytest.raises(MalformedInput) as refused:
        forecasts(History(RULES), today).day(today + timedelta(days=days))
    assert refused.value.reason is Reason.RANGE_INVALID


@pytest.mark.parametrize("value", ["", "today", "20260601", "2026-W23-1", "2026-6-1", "2026-02-30"])
def test_what_is_no_day_is_refused(value: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        parse_day(value)
    assert refused.value.reason is Reason.FIELD_FORMAT


def test_days_that_are_asked_for_at_once_leave_a_worker_for_signals() -> None:
    workers, today = ServerOptions.workers, date(2026, 5, 4)
    made = forecasts(History(RULES), today)
    made.day(today)
    ended: Queue[str] = Queue()

    def ask(days: int) -> None:
        try:
            ended.put(made.day(today - timedelta(days=days)).day)
        except Exhausted as error:
            ended.put(error.reason)

    asking = [threading.Thread(target=ask, args=(days,)) for days in range(1, workers + 1)]
    with made._computing:
        for thread in asking:
            thread.start()
        assert ended.get(timeout=20) == "OVERLOADED"
        # What is known already needs nobody's turn.
        assert made.day(today).day == today.isoformat()
    for thread in asking:
        thread.join(20)

    assert ended.qsize() == workers - 1
    assert "OVERLOADED" not in ended.queue


@pytest.mark.parametrize("day", [date(2026, 3, 29), date(2026, 4, 1)])
def test_a_day_of_23_hours_may_have_no_window_of_24(day: date) -> None:
    rules = ControlRules(capacity_w=100, hysteresis_w=0, ramp_limit_w=1, window_length=86_400)
    zone, noon = ZoneInfo("Atlantic/Azores"), 1_775_044_800
    found = Forecasts(History(rules), zone, 86_400, ManualClock(noon)).day(day)
    assert len(found.points) == len(windows_of(day, zone, 86_400)) == (day.month == 4)
