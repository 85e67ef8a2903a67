"""The controller's decisions: a fold over totals and time, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil_services.controller.core import (
    Basis,
    Cause,
    Event,
    Gap,
    Settled,
    Signal,
    State,
    Tick,
    fold,
    next_tick,
    step,
)
from gridveil_services.controller.rules import ControlRules

L = 900
START = 1_765_000_800 // L * L
RULES = ControlRules(capacity_w=1_000_000, hysteresis_w=30_000, ramp_limit_w=200_000, hold_s=1_800)


def settled(at_window: int, power_w: int, count: int = 100, enrolled: int = 100) -> Settled:
    window = START + at_window * L
    return Settled(window + L + 60, window, power_w * L // 3600, count, enrolled)


def gap(at_window: int, reason: str = "REFUSED") -> Gap:
    window = START + at_window * L
    return Gap(window + L + 60, window, reason)


def run(*events: Event, rules: ControlRules = RULES) -> list[Signal]:
    return list(fold(rules, events))


def levels(*events: Event) -> list[int]:
    return [signal.level for signal in run(*events)]


def test_levels_begin_at_their_shares_of_the_capacity() -> None:
    for power, level in ((849_996, 0), (850_000, 1), (920_000, 2), (999_996, 2), (1_000_000, 3)):
        assert levels(settled(0, power)) == [level], power


def test_a_level_rises_at_once_and_falls_only_after_its_hold_time() -> None:
    signals = run(*(settled(n, p) for n, p in enumerate((1_000_000, 800_000, 800_000, 800_000))))
    assert [s.level for s in signals] == [3, 3, 0, 0]
    assert signals[1].cause is Cause.HOLD_TIME


def test_just_below_a_threshold_the_level_stays() -> None:
    signals = run(*(settled(n, p) for n, p in enumerate((860_000, *[830_000] * 3, 819_000))))
    assert [s.level for s in signals] == [1, 1, 1, 1, 0]
    assert signals[3].cause is Cause.HYSTERESIS


def test_a_steep_rise_is_level_one_though_the_capacity_is_far() -> None:
    low, high = run(settled(0, 300_000), settled(1, 500_000))
    assert (low.level, high.level, high.cause, high.ramp_w) == (0, 1, Cause.RAMP, 200_000)


def test_no_ramp_is_taken_over_a_window_that_is_missing() -> None:
    signals = run(settled(0, 300_000), gap(1), settled(2, 700_000))
    assert [s.ramp_w for s in signals] == [None, None, None]
    assert signals[-1].level == 0


def test_missing_meters_are_scaled_up_and_said_to_be_estimated() -> None:
    (signal,) = run(settled(0, 800_000, count=80))
    assert signal.basis is Basis.ESTIMATED
    assert (signal.measured_w, signal.estimated_w, signal.level) == (800_000, 1_000_000, 3)


def test_a_total_of_every_meter_has_no_estimate() -> None:
    (signal,) = run(settled(0, 800_000))
    assert (signal.basis, signal.estimated_w) == (Basis.MEASURED, None)


def test_too_few_meters_are_as_good_as_no_total() -> None:
    signals = run(settled(0, 930_000), settled(1, 100_000, count=79))
    assert signals[1].level == 2
    assert (signals[1].basis, signals[1].cause) == (Basis.HELD, Cause.COVERAGE)
    assert signals[1].measured_w is signals[1].estimated_w is None


@pytest.mark.parametrize("reason", ["REFUSED", "EXPIRED", "BUDGET_EXHAUSTED"])
def test_a_window_that_was_not_released_holds_the_signal_and_has_no_figure(reason: str) -> None:
    held = run(settled(0, 930_000), gap(1, reason))[1]
    assert (held.level, held.basis, held.cause) == (2, Basis.HELD, Cause.NOT_RELEASED)
    assert (held.reason, held.measured_w, held.estimated_w) == (reason, None, None)


def test_without_totals_the_signal_is_held_for_its_time_and_then_neutral() -> None:
    first = settled(0, 930_000)
    stale = first.window_start + L + RULES.stale_after_s
    neutral = stale + RULES.hold_safe_s
    signals = run(first, *map(Tick, (stale - 1, stale, neutral - 1, neutral)))
    assert [(s.level, s.basis, s.cause) for s in signals[1:]] == [
        (2, Basis.HELD, Cause.WAITING),
        (2, Basis.HELD, Cause.STALE),
        (2, Basis.HELD, Cause.STALE),
        (0, Basis.NEUTRAL, Cause.STALE),
    ]


def test_gaps_do_not_keep_an_old_signal_alive() -> None:
    signals = run(settled(0, 930_000), *(gap(n) for n in range(1, 12)))
    assert signals[-1].level == 0
    assert signals[-1].basis is Basis.NEUTRAL


def test_before_the_first_total_the_signal_is_neutral() -> None:
    assert [(s.level, s.basis, s.cause) for s in run(Tick(START), gap(0))] == [
        (0, Basis.NEUTRAL, Cause.NO_TOTAL),
        (0, Basis.NEUTRAL, Cause.NOT_RELEASED),
    ]


def test_a_total_that_comes_late_or_out_of_order_is_not_acted_on() -> None:
    old = Settled(START + 3 * L, START, 900_000, 100, 100)
    assert run(old)[0].cause is Cause.LATE
    newer = settled(3, 100_000)
    behind = Settled(newer.at, START + 2 * L, 900_000, 100, 100)
    assert [(s.level, s.cause) for s in run(newer, behind)][1] == (0, Cause.LATE)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Settled(START + L, START + 1, 0, 1, 1), Reason.WINDOW_MISALIGNED),
        (Settled(START + L - 1, START, 0, 1, 1), Reason.RANGE_INVALID),
        (Settled(START + L, START, 0, 0, 1), Reason.RANGE_INVALID),
        (Settled(START + L, START, 0, 2, 1), Reason.RANGE_INVALID),
        (Tick(-1), Reason.RANGE_INVALID),
    ],
)
def test_impossible_events_are_refused(event: Event, reason: Reason) -> None:
    with pytest.raises(GridveilError) as refused:
        step(RULES, State(), event)
    assert refused.value.reason is reason


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """A day at most: totals, gaps, silence, delays; in order of time."""
    events: list[Event] = []
    at = START
    for n in range(draw(st.integers(1, 40))):
        window = START + n * L
        at = max(at, window + L) + draw(st.sampled_from([0, 60, 60, 900, 4_000]))
        kind = draw(st.sampled_from("sssgt"))
        if kind == "s":
            energy = draw(st.integers(-1_000, 300_000))
            events.append(Settled(at, window, energy, draw(st.integers(70, 100)), 100))
        elif kind == "g":
            events.append(Gap(at, window, "REFUSED"))
        else:
            events.append(Tick(at))
    return events


@given(histories())
def test_no_level_falls_within_the_hold_time_of_a_change(events: list[Event]) -> None:
    changed_at, level = None, 0
    for signal in run(*events):
        if signal.level < level:
            assert changed_at is not None
            assert signal.at >= changed_at + RULES.hold_s
        if signal.level != level:
            changed_at, level = signal.at, signal.level


@given(histories(), st.integers(0, 300_000), st.integers(0, 300_000))
def test_more_demand_never_means_a_lower_level(events: list[Event], one: int, other: int) -> None:
    state = State()
    for event in events:
        state, _ = step(RULES, state, event)
    window = (state.at // L + 1) * L
    found = [
        step(RULES, state, Settled(window + L, window, energy, 100, 100))[1].level
        for energy in sorted((one, other))
    ]
    assert found == sorted(found)


@given(histories(), st.integers(0, 10**6))
def test_silence_ends_in_the_neutral_signal(events: list[Event], longer: int) -> None:
    last = RULES.stale_after_s + RULES.hold_safe_s + L + longer
    signal = run(*events, Tick(events[-1].at + last))[-1]
    assert (signal.level, signal.basis) == (0, Basis.NEUTRAL)


@given(histories(), st.integers(0, 9), st.data())
def test_between_two_ticks_that_are_due_time_decides_nothing(
    events: list[Event], ticks: int, data: Any
) -> None:
    state = State()
    for event in events:
        state, _ = step(RULES, state, event)
    for _ in range(ticks):
        state, _ = step(RULES, state, Tick(next_tick(RULES, state)))
    due = next_tick(RULES, state)
    assert state.at < due <= state.at + L

    between = data.draw(st.integers(state.at, due - 1))

    (first, then) = (step(RULES, state, Tick(at))[1] for at in (state.at, between))
    assert (then.level, then.basis, then.cause) == (first.level, first.basis, first.cause)


@given(histories(), st.data())
def test_a_replay_from_any_prefix_is_the_same_to_the_byte(events: list[Event], data: Any) -> None:
    cut = data.draw(st.integers(0, len(events)))
    whole = b"\n".join(signal.encode() for signal in fold(RULES, events))
    state, before = State(), []
    for event in events[:cut]:
        state, signal = step(RULES, state, event)
        before.append(signal.encode())
    restored = msgspec.json.decode(msgspec.json.encode(state), type=State)
    after = [signal.encode() for signal in fold(RULES, events[cut:], restored)]
    assert b"\n".join([*before, *after]) == whole


TOML = "capacity_w = 1000000\nhysteresis_w = 30000\nramp_limit_w = 200000\n"


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "control.toml"
    path.write_text(TOML)
    assert ControlRules.load(path) == RULES


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("capacity = 1", "capacity"),
        ("window_length = 59", "window_length"),
        ("levels_percent = [92, 85, 100]", "levels_percent"),
        ("levels_percent = [85, 92]", "levels_percent"),
        ("hold_s = 3601", "hold_s"),
        ("stale_after_s = 0", "stale_after_s"),
        ("min_coverage_percent = 0", "min_coverage_percent"),
        ("register = 1", "register"),
        ("sites_w = { works = 5 }", "sites_share_w"),
        ("sites_share_w = 1000001", "sites_share_w"),
        ("sites_share_w = 9\nsites_w = { works = 0 }", "sites_w"),
    ],
)
def test_wrong_rules_are_refused_by_name(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "control.toml"
    path.write_text(TOML + line + "\n")
    with pytest.raises(MalformedInput) as refused:
        ControlRules.load(path)
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert named in refused.value.message
