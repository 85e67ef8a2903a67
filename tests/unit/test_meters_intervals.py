"""Readings of registers become windows' energy: exactly, once, and never a guess for a fact."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.days import windows_of
from gridveil.meters.intervals import (
    Cause,
    Finding,
    Ignored,
    Interval,
    Lapse,
    Quality,
    Rules,
    Track,
    follow,
)
from gridveil.meters.registers import MODULUS, Reading, RegisterMap, advance, parse_registers
from gridveil.protocol.errors import MalformedInput

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
CODE = "1-0:1.8.0"
MAP = RegisterMap({"import_wh": (CODE,)})
RULES = Rules(900, MAP)
START = 1_767_225_600
Q = 900


def read(after: float, wh: int, *, meter: str = "a", heard: float | None = None) -> Reading:
    return Reading(meter, START + int(after), {CODE: wh % MODULUS}, heard)


def play(
    readings: Iterable[Reading], track: Track | None = None
) -> tuple[list[Finding], list[Ignored], Track]:
    findings: list[Finding] = []
    ignored = []
    for reading in readings:
        step = follow(track, reading, RULES)
        track = step.track
        findings += step.findings
        ignored += [step.ignored] if step.ignored else []
    assert track is not None
    return findings, ignored, track


def interval(window: int, wh: int, quality: Quality = Quality.VALIDATED) -> Interval:
    return Interval(START + window * Q, {"import_wh": wh}, quality)


def lapse(first: int, end: int, cause: Cause) -> Lapse:
    return Lapse(START + first * Q, START + end * Q, cause)


ESTIMATED = Quality.ESTIMATED


def test_a_window_is_what_the_register_counted_between_its_ends() -> None:
    found, _, _ = play([read(0, 100), read(450, 130), read(Q, 150), read(2 * Q, 150)])
    assert found == [interval(0, 50), interval(1, 0)]


def test_a_reading_within_the_tolerance_is_the_boundarys_and_no_energy_is_lost() -> None:
    found, _, _ = play([read(5, 100), read(Q - 5, 148), read(Q + 30, 155), read(2 * Q + 1, 170)])
    assert found == [interval(0, 55), interval(1, 15)]


def test_the_first_window_that_was_not_seen_from_its_start_is_missing() -> None:
    found, _, _ = play([read(31, 100), read(Q, 150), read(2 * Q, 170)])
    assert found == [lapse(0, 1, Cause.STARTED), interval(1, 20)]


def test_a_gap_over_a_boundary_is_estimated_on_both_sides_and_never_validated() -> None:
    found, _, _ = play([read(0, 0), read(600, 600), read(1200, 1200), read(2 * Q, 1800)])
    assert found == [interval(0, 900, ESTIMATED), interval(1, 900, ESTIMATED)]


def test_a_gap_of_whole_windows_ends_at_the_boundary_that_was_read() -> None:
    found, _, _ = play([read(0, 0), read(600, 600), read(4 * Q, 3600), read(5 * Q, 3700)])
    assert found[:4] == [interval(at, 900, ESTIMATED) for at in range(4)]
    assert found[4:] == [interval(4, 100)]


def test_a_gap_within_a_window_hides_nothing() -> None:
    found, _, _ = play([read(0, 0), read(1, 0), read(Q, 70)])
    assert found == [interval(0, 70)]


def test_a_gap_of_more_than_a_day_is_missing_in_one_piece_and_costs_nothing() -> None:
    found, _, _ = play([read(0, 0), read(10_000 * Q, 500), read(10_001 * Q, 600)])
    assert found == [lapse(0, 10_000, Cause.GAP), interval(10_000, 100)]


def test_a_register_that_starts_again_from_zero_counts_on() -> None:
    found, _, _ = play([read(0, MODULUS - 20), read(Q, 30)])
    assert found == [interval(0, 50)]


def test_a_register_that_was_reset_is_no_rollover() -> None:
    found, _, _ = play([read(0, 5_000_000), read(Q, 10), read(2 * Q, 40)])
    assert found == [lapse(0, 1, Cause.REGISTER_SET), interval(1, 30)]


def test_more_than_a_home_can_draw_is_not_believed() -> None:
    found, _, _ = play([read(0, 0), read(450, 500_000), read(Q, 500_001), read(2 * Q, 500_002)])
    assert found == [lapse(0, 1, Cause.REGISTER_SET), interval(1, 1)]


def test_another_meters_register_is_never_subtracted() -> None:
    found, _, _ = play(
        [read(0, 100), read(450, 150), read(600, 160, meter="b"), read(Q, 170, meter="b")]
    )
    assert found == [lapse(0, 1, Cause.REPLACED)]
    found, _, _ = play([read(0, 100), read(Q + 3, 0, meter="b"), read(2 * Q, 9, meter="b")])
    assert found == [lapse(0, 1, Cause.REPLACED), interval(1, 9)]


def test_a_replacement_in_the_first_seconds_of_a_window_does_not_begin_it_again() -> None:
    found, _, _ = play(
        [read(0, 100), read(Q, 150), read(Q + 9, 0, meter="b"), read(2 * Q, 5, meter="b")]
    )
    assert found == [interval(0, 50), lapse(1, 2, Cause.REPLACED)]


@pytest.mark.parametrize("to", [Q - 100, -Q - 100])
def test_a_clock_that_is_set_back_says_no_window_twice(to: int) -> None:
    before = [read(at, at, heard=at) for at in (0, Q, 2 * Q, 2 * Q + 60)]
    after = [
        read(to + passed, 2 * Q + 60 + passed, heard=2 * Q + 60 + passed)
        for passed in range(10, 5 * Q, 10)
    ]
    found, _, _ = play([*before, *after])
    starts = [one.start for one in found if isinstance(one, Interval)]
    assert len(starts) == len(set(starts))
    assert found[:2] == [interval(0, Q), interval(1, Q)]
    later = [one for one in found[2:] if isinstance(one, Interval)]
    assert later
    for one in later:
        assert (one.values, one.quality) == ({"import_wh": Q}, Quality.VALIDATED)


def test_a_clock_that_is_set_back_shows_without_a_second_clock_by_what_is_counted() -> None:
    found, ignored, track = play([read(0, 0), read(Q, 100), read(300, 130), read(310, 131)])
    assert (found, ignored) == ([interval(0, 100)], [])
    found, _, _ = play([read(Q + 3, 140), read(2 * Q, 150)], track)
    assert found == [interval(1, 10)]


def test_a_clock_that_is_set_forward_makes_its_windows_missing() -> None:
    found, _, _ = play(
        [
            read(0, 0, heard=0),
            read(300, 10, heard=300),
            read(600, 11, heard=310),
            read(Q, 20, heard=610),
            read(2 * Q, 30, heard=1510),
        ]
    )
    assert found == [lapse(0, 1, Cause.CLOCK_SET), interval(1, 10)]


def test_duplicates_contradictions_and_what_is_out_of_order_change_nothing() -> None:
    found, ignored, _ = play(
        [read(0, 0), read(60, 5), read(60, 5), read(60, 6), read(30, 2), read(Q, 9)]
    )
    assert ignored == [Ignored.DUPLICATE, Ignored.CONTRADICTION, Ignored.OUT_OF_ORDER]
    assert found == [interval(0, 9)]


def test_named_registers_are_sums_and_each_rolls_over_by_itself() -> None:
    both = parse_registers(["import_wh=1-0:1.8.1+1-0:1.8.2", "reactive_varh=1-0:3.8.0"])
    rules = Rules(Q, both)
    codes = both.codes
    first = Reading("a", START, dict(zip(codes, (MODULUS - 1, 7, 3), strict=True)))
    second = Reading("a", START + Q, dict(zip(codes, (4, 10, 3), strict=True)))
    (found,) = follow(follow(None, first, rules).track, second, rules).findings
    assert isinstance(found, Interval)
    assert found.values == {"import_wh": 8, "reactive_varh": 0}


@pytest.mark.parametrize(
    ("day", "windows"),
    [(date(2026, 3, 29), 92), (date(2026, 6, 1), 96), (date(2026, 10, 25), 100)],
)
def test_a_day_has_as_many_windows_as_its_clock_says(day: date, windows: int) -> None:
    starts = windows_of(day, AMSTERDAM, Q)
    assert len(starts) == windows
    assert datetime.fromtimestamp(starts[0], AMSTERDAM).isoformat().startswith(f"{day}T00:00:00")
    readings = [Reading("a", at, {CODE: at - starts[0]}) for at in (*starts, starts.stop)]
    found, _, _ = play(readings)
    assert [one.start for one in found] == list(starts)
    assert {one.quality for one in found if isinstance(one, Interval)} == {Quality.VALIDATED}


def test_advance_tells_a_rollover_from_a_step_back() -> None:
    assert advance(MODULUS - 1, 1, 900) == 2
    assert advance(10, 9, 900) is None
    assert advance(0, 400_001, 3600) is None
    assert advance(0, 800_000, 7200) == 800_000


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["import_wh"], "NAME=CODE"),
        (["Import=1-0:1.8.0"], "NAME=CODE"),
        (["a=1.8.0"], "OBIS code"),
        (["a=1-0:1.7.0"], "no cumulative register"),
        (["a=1-0:1.8.0+1-0:1.8.0"], "twice"),
        (["a=1-0:1.8.0", "a=1-0:1.8.1"], "twice"),
        (["a=1-0:1.8.0", "b=1-0:1.8.0"], "twice"),
    ],
)
def test_a_register_map_that_would_miscount_is_refused(texts: list[str], told: str) -> None:
    with pytest.raises(MalformedInput, match=told):
        parse_registers(texts)


STEPS = st.lists(
    st.tuples(st.integers(-2000, 4000), st.integers(0, 2000), st.booleans()), max_size=40
)


@given(STEPS, st.booleans())
def test_whatever_comes_no_window_is_concluded_twice_and_no_energy_is_made_up(
    steps: list[tuple[int, int, bool]], two_clocks: bool
) -> None:
    at, wh, meter, real, energy = 0, 0, 0, 0.0, 0
    readings = []
    for passed, used, replaced in steps:
        at, wh, real, energy = at + passed, wh + used, real + abs(passed), energy + used
        meter += replaced and passed % 7 == 0
        heard = real if two_clocks else None
        readings.append(read(at, wh, meter=str(meter), heard=heard))
    if not readings:
        return
    found, _, _ = play(readings)
    ends = START - 10**9
    for one in found:
        assert one.start >= ends
        ends = one.end if isinstance(one, Lapse) else one.start + Q
        assert one.start < ends
    said = sum(one.values["import_wh"] for one in found if isinstance(one, Interval))
    assert said <= energy


@given(st.lists(st.tuples(st.integers(1, 1500), st.integers(0, 2000)), min_size=2, max_size=40))
def test_validated_windows_are_those_and_the_values_that_a_plain_look_at_all_readings_finds(
    steps: list[tuple[int, int]],
) -> None:
    at, wh = 0, MODULUS - 5_000
    counted = {}
    for passed, used in steps:
        at, wh = at + passed, wh + used
        counted[at] = wh
    at_boundary = {}
    for boundary in range(0, at + 1, Q):
        after = [moment for moment in sorted(counted) if moment >= boundary]
        if after and after[0] - boundary <= RULES.tolerance:
            at_boundary[boundary] = counted[after[0]]
    wanted = {
        START + boundary: {"import_wh": at_boundary[boundary + Q] - value}
        for boundary, value in at_boundary.items()
        if boundary + Q in at_boundary
    }
    found, _, _ = play(read(moment, value) for moment, value in counted.items())
    validated = {
        one.start: one.values
        for one in found
        if isinstance(one, Interval) and one.quality is Quality.VALIDATED
    }
    assert validated == wanted
