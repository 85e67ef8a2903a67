"""What the console makes of settled windows and signals: figures, and gaps elsewhere."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.days import windows_of
from gridveil_services.console.model import (
    RELEASED,
    CityModel,
    ForecastPoint,
    Row,
    SignalRow,
    day_view,
    range_view,
)

BERLIN = ZoneInfo("Europe/Berlin")
DAY = date(2026, 1, 15)
WINDOWS = windows_of(DAY, BERLIN, 900)


def model(*rows: Row) -> CityModel:
    made = CityModel("import_wh", 900, BERLIN)
    made.take(rows)
    return made


def released(at: int, wh: int, count: int = 100, enrolled: int = 100) -> Row:
    return Row(at, RELEASED, wh, count, enrolled, 1)


def signal(number: int, at: int, level: int, window: int | None = None) -> SignalRow:
    return SignalRow(number, at, window, level, "MEASURED", "CAPACITY", "", None, None)


def test_a_sum_is_shown_as_mean_power_and_scaled_up_only_where_meters_are_missing() -> None:
    made = model(released(WINDOWS[0], 1_000), released(WINDOWS[1], 900, count=90))

    view = day_view(made, DAY)

    assert view["measured"][:3] == [4_000, 3_600, None]  # type: ignore[index]
    assert view["estimated"][:3] == [None, 4_000, None]  # type: ignore[index]


def test_what_was_not_released_has_a_reason_and_no_figure() -> None:
    view = day_view(model(Row(WINDOWS[0], "refused")), DAY)

    assert view["status"][:2] == ["refused", None]  # type: ignore[index]
    for name in ("measured", "estimated", "sum", "count", "enrolled"):
        assert view[name][0] is None  # type: ignore[index]


def test_a_sum_of_zero_is_a_figure() -> None:
    view = day_view(model(released(WINDOWS[0], 0)), DAY)

    assert view["measured"][:2] == [0, None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("day", "count"),
    [(date(2026, 3, 29), 92), (date(2026, 3, 30), 96), (date(2026, 10, 25), 100)],
)
def test_a_day_has_all_its_windows(day: date, count: int) -> None:
    view = day_view(model(), day)

    lengths = {len(column) for name, column in view.items() if isinstance(column, list) and column}
    assert lengths == {count}


def test_yesterday_is_at_the_same_local_time_over_a_change_of_the_clocks() -> None:
    after = windows_of(date(2026, 3, 30), BERLIN, 900)
    noon_before = windows_of(date(2026, 3, 29), BERLIN, 900)[44]
    made = model(released(noon_before, 500))

    yesterday = day_view(made, date(2026, 3, 30))["yesterday"]

    assert isinstance(yesterday, list)
    assert [at for at, watts in zip(after, yesterday, strict=True) if watts] == [after[48]]


def test_what_was_released_counts_before_what_somebody_recorded() -> None:
    points = {at: ForecastPoint(1, 0, 2, 7_000, 8_000) for at in WINDOWS}
    made = model(released(WINDOWS[0] - 86_400, 1_000))

    view = day_view(made, DAY, points)

    assert view["yesterday"][:2] == [4_000, 7_000]  # type: ignore[index]
    assert view["last_week"][:2] == [8_000, 8_000]  # type: ignore[index]


def test_the_first_signal_about_a_window_is_the_one_shown_with_it() -> None:
    made = model()
    made.add_signal(signal(1, WINDOWS[1], 3, WINDOWS[0]))
    made.add_signal(signal(2, WINDOWS[2], 0, WINDOWS[0]))

    assert day_view(made, DAY)["level"][:2] == [3, None]  # type: ignore[index]
    assert made.newest_signal == signal(2, WINDOWS[2], 0, WINDOWS[0])


def test_a_signal_that_comes_again_changes_nothing() -> None:
    made = model()
    for number in (1, 2, 1, 2):
        made.add_signal(signal(number, WINDOWS[number], number))

    assert made.levels(WINDOWS[0], WINDOWS[-1]) == [(WINDOWS[1], 1), (WINDOWS[2], 2)]


def test_a_level_stands_until_another_is_signalled_also_over_midnight() -> None:
    made = model()
    made.add_signal(signal(1, WINDOWS[0] - 7_200, 2))
    made.add_signal(signal(2, WINDOWS[4], 0))

    assert day_view(made, DAY)["levels"] == [(WINDOWS[0] - 7_200, 2), (WINDOWS[4], 0)]
    view = range_view(made, range(WINDOWS[0] - 9_000, WINDOWS[6], 900))
    assert view["level"] == [None, None, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), max_size=20),
    st.integers(0, 60),
)
def test_what_is_forgotten_leaves_later_levels_as_they_were(
    steps: list[tuple[int, int]], cut: int
) -> None:
    whole, short = model(), model()
    for number, (at, level) in enumerate(sorted(steps), 1):
        whole.add_signal(signal(number, at * 900, level, at * 900))
        short.add_signal(signal(number, at * 900, level, at * 900))

    short.forget(cut * 900)

    for at in range(cut * 900, 61 * 900, 900):
        assert short.level_at(at) == whole.level_at(at)
        assert short.signal(at) == whole.signal(at)


def test_only_signals_that_say_something_new_are_listed() -> None:
    made = model()
    said = [
        SignalRow(1, 900, None, 0, "NEUTRAL", "NO_TOTAL", "", None, None),
        SignalRow(2, 1_800, 900, 2, "MEASURED", "CAPACITY", "", 5, None),
        SignalRow(3, 2_700, 900, 2, "HELD", "WAITING", "", None, None),
        SignalRow(4, 3_600, 2_700, 2, "MEASURED", "CAPACITY", "", 5, None),
        SignalRow(5, 4_500, 2_700, 2, "HELD", "STALE", "", None, None),
        SignalRow(6, 5_400, 2_700, 2, "HELD", "STALE", "", None, None),
        SignalRow(7, 6_300, 2_700, 0, "NEUTRAL", "STALE", "", None, None),
    ]
    for one in said:
        made.add_signal(one)

    assert [one.number for one in made.recent_signals] == [7, 5, 4, 2, 1]


def test_what_becomes_of_an_event_changes_the_newest_signal_only() -> None:
    made = model()
    pending = msgspec.structs.replace(signal(1, 900, 1), openadr=[{"delivery": "PENDING"}])
    delivered = msgspec.structs.replace(pending, openadr=[{"delivery": "DELIVERED"}])
    made.add_signal(pending)

    assert not made.update_signal(pending)
    assert made.update_signal(delivered)
    assert made.newest_signal == delivered
    made.add_signal(signal(2, 1_800, 0))
    assert not made.update_signal(delivered)
