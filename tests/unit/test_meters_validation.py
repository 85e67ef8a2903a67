"""Values of a file become windows: exactly, with their quality, and with every gap told."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.days import windows_of
from gridveil.meters.history import Day, days, replay_rows, summarize
from gridveil.meters.intervals import Cause, Finding, Interval, Lapse, Quality
from gridveil.meters.slots import MICRO, Grade, Slot
from gridveil.meters.still import watch
from gridveil.meters.validation import validate
from gridveil.protocol.errors import MalformedInput

START = 1_767_225_600
Q = 900
REGISTERS = {"import_wh": ("in",)}
ESTIMATED = Quality.ESTIMATED
MEASURED = Grade.MEASURED


def slot(
    window: float, wh: float, seconds: int = Q, grade: Grade = MEASURED, start: int = START
) -> Slot:
    return Slot(start + int(window * Q), seconds, round(wh * MICRO), grade)


def made(*slots: Slot) -> list[Finding]:
    return validate({"in": slots}, REGISTERS, Q)


def interval(window: int, wh: int, quality: Quality = Quality.VALIDATED) -> Interval:
    return Interval(START + window * Q, {"import_wh": wh}, quality)


def lapse(first: int, end: int, cause: Cause) -> Lapse:
    return Lapse(START + first * Q, START + end * Q, cause)


def test_shorter_intervals_are_summed_and_none_may_be_missing() -> None:
    third = Q // 3
    whole = [slot(at / 3, 100 + at, third) for at in range(3)]
    half = [slot(1 + at / 3, 100, third) for at in (0, 2)]
    assert made(*whole, *half, slot(2, 7)) == [
        interval(0, 303),
        lapse(1, 2, Cause.GAP),
        interval(2, 7),
    ]


@pytest.mark.parametrize(("at", "seconds"), [(0, 2 * Q), (0.5, Q), (0, 1200), (0, 7200)])
def test_intervals_that_do_not_make_up_windows_are_refused(at: float, seconds: int) -> None:
    with pytest.raises(MalformedInput, match="do not make up windows") as refused:
        made(slot(at, 50, seconds))
    assert refused.value.metadata["fault"] == "interval"


def test_one_estimated_part_makes_its_window_estimated_and_no_other() -> None:
    parts = [slot(0, 10, 450), slot(0.5, 20, 450, Grade.ESTIMATED), slot(1, 5)]
    assert made(*parts) == [interval(0, 30, ESTIMATED), interval(1, 5)]


def test_a_missing_value_and_a_hole_are_gaps_in_one_piece_and_never_zero() -> None:
    found = made(slot(0, 1), slot(1, 0, grade=Grade.MISSING), slot(4, 2))
    assert found == [interval(0, 1), lapse(1, 4, Cause.GAP), interval(4, 2)]


def test_the_same_value_twice_counts_once_and_two_different_ones_not_at_all() -> None:
    found = made(slot(0, 1), slot(0, 1), slot(1, 5), slot(1, 6), slot(2, 9))
    assert found == [interval(0, 1), lapse(1, 2, Cause.CONTRADICTION), interval(2, 9)]


def test_intervals_that_overlap_contradict_each_other() -> None:
    found = made(slot(0, 5), slot(0.5, 5, 450), slot(1, 9))
    assert found == [lapse(0, 1, Cause.CONTRADICTION), interval(1, 9)]


@pytest.mark.parametrize("wh", [-0.000001, 100_000.000001])
def test_what_no_connection_carries_is_implausible(wh: float) -> None:
    assert made(slot(0, wh), slot(1, 100_000)) == [
        lapse(0, 1, Cause.IMPLAUSIBLE),
        interval(1, 100_000),
    ]


def test_parts_of_a_wh_go_into_the_window_after_and_are_not_lost() -> None:
    found = made(*(slot(at, 0.4) for at in range(5)))
    assert found == [interval(at, wh) for at, wh in enumerate([0, 0, 1, 0, 1])]


def test_parts_of_a_wh_end_at_a_gap_and_never_pass_from_an_estimate_to_a_measurement() -> None:
    found = made(slot(0, 0.9), slot(2, 0.9), slot(3, 0.9, grade=Grade.ESTIMATED), slot(4, 0.9))
    wanted = [interval(0, 0), lapse(1, 2, Cause.GAP), interval(2, 0)]
    assert found == [*wanted, interval(3, 0, ESTIMATED), interval(4, 0)]


def test_a_register_of_two_channels_needs_both() -> None:
    channels = {"a": [slot(0, 1), slot(1, 2)], "b": [slot(1, 10), slot(2, 5)], "c": [slot(9, 1)]}
    assert validate(channels, {"import_wh": ("a", "b")}, Q) == [
        lapse(0, 1, Cause.GAP),
        interval(1, 12),
        lapse(2, 3, Cause.GAP),
    ]


def test_a_channel_that_the_file_has_not_is_named_as_such() -> None:
    with pytest.raises(MalformedInput) as refused:
        validate({"a": []}, {"import_wh": ("b",)}, Q)
    assert refused.value.metadata["fault"] == "register"


@given(
    st.lists(
        st.builds(
            slot,
            st.integers(0, 40),
            st.integers(-1, 200_000).map(float),
            st.sampled_from([Q, 300, 450]),
            st.sampled_from(Grade),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_whatever_a_file_says_every_window_is_told_once_and_in_order(slots: list[Slot]) -> None:
    found = made(*slots)
    ends = [one.end if isinstance(one, Lapse) else one.start + Q for one in found]
    assert [one.start for one in found[1:]] == ends[:-1]
    measured = {one.start for one in slots if one.grade is MEASURED}
    for one in found:
        if isinstance(one, Interval) and one.quality is Quality.VALIDATED:
            assert one.start in measured
            assert 0 <= one.values["import_wh"] <= 100_000


@pytest.mark.parametrize(
    ("day", "windows"), [("2026-03-29", 92), ("2026-10-25", 100), ("2026-05-04", 96)]
)
def test_a_local_day_of_any_length_is_whole(day: str, windows: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    starts = windows_of(date.fromisoformat(day), zone, Q)
    found = made(*(Slot(start, Q, MICRO, MEASURED) for start in starts))
    assert days(found, zone, Q) == [Day(date.fromisoformat(day), windows, windows)]
    assert days(found[:-1], zone, Q)[0].validated == windows - 1


def test_a_value_that_is_the_same_for_a_day_is_told_from_then_on_and_stays() -> None:
    found = made(*(slot(at, 7) for at in range(98)), slot(98, 8), slot(99, 8))
    still = [at for at, one in enumerate(found) if isinstance(one, Interval) and one.still]
    assert still == [95, 96, 97]
    assert summarize(found, Q).validated == 100
    assert summarize(found, Q).still == {"import_wh": 3}


def test_a_gap_begins_the_day_of_a_register_that_stands_still_anew() -> None:
    found = made(*(slot(at, 7) for at in range(150) if at != 80))
    assert summarize(found, Q).still == {}


def test_nothing_drawn_for_a_day_is_told_only_if_another_register_counted() -> None:
    def after_a_day(values: dict[str, int]) -> frozenset[str]:
        runs, still = watch({}, values, Q)
        for _ in range(95):
            assert not still
            runs, still = watch(runs, values, Q)
        return still

    assert after_a_day({"import_wh": 0, "export_wh": 0}) == set()
    assert after_a_day({"import_wh": 0, "export_wh": 5}) == {"import_wh", "export_wh"}
    assert after_a_day({"import_wh": 3, "export_wh": 0}) == {"import_wh"}


def test_only_what_was_measured_is_replayed_as_what_is_drawn_less_what_is_fed_in() -> None:
    channels = {
        "in": [slot(0, 5), slot(1, 6, grade=Grade.ESTIMATED), slot(3, 1)],
        "out": [slot(0, 7), slot(1, 0), slot(3, 0)],
    }
    found = validate(channels, {"import_wh": ("in",), "export_wh": ("out",)}, Q)
    assert list(replay_rows({"m": found})) == [
        ("meter_id", "timestamp", "wh"),
        ("m", "2026-01-01T00:00:00Z", "-2"),
        ("m", "2026-01-01T00:45:00Z", "1"),
    ]


def test_registers_that_a_replay_has_no_place_for_are_refused() -> None:
    found = validate({"in": [slot(0, 5)]}, {"reactive_varh": ("in",)}, Q)
    with pytest.raises(MalformedInput, match="nothing else"):
        list(replay_rows({"m": found}))
