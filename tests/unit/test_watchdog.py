"""What the watchdog finds in a city, and what it leaves alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.reconcile import Terms, reconcile
from gridveil.settlements import NotReleasedReason
from gridveil.watchdog.detector import Finding, Watchdog, replay, step
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Observation, observations
from gridveil.watchdog.watchers import Kind
from tests.support.exported import gap, settled
from tests.support.watching import (
    DAY,
    ENROLLED,
    LENGTH,
    START,
    all_of,
    calm,
    disturbed,
    found,
    frozen,
    scaled,
    told,
    with_counted,
)

DAYS = 25
AT = 20 * DAY + 40
"""A late morning, after three weeks."""


@pytest.fixture(scope="module")
def city() -> list[Observation]:
    return calm(DAYS)


def only(kind: Kind, seen: list[Observation], limits: Limits | None = None) -> int:
    """The window of the only finding there is."""
    ((told_kind, at),) = found(seen, limits)
    assert told_kind is kind
    return at


@pytest.mark.parametrize("seed", range(3))
def test_in_a_calm_city_nothing_is_found(seed: int) -> None:
    assert found(calm(40, seed=seed)) == []


def test_a_gateway_that_is_away_is_a_drop_of_coverage(city: list[Observation]) -> None:
    away = disturbed(city, AT, AT + 8, lambda one: with_counted(one, count=900))
    assert only(Kind.COVERAGE_DROP, away) == AT


def test_a_small_drop_is_told_once_it_lasts_and_a_blip_is_not(city: list[Observation]) -> None:
    small = disturbed(city, AT, AT + 8, lambda one: with_counted(one, count=960))
    assert only(Kind.COVERAGE_DROP, small) == AT + 1
    blip = disturbed(city, AT, AT + 1, lambda one: with_counted(one, count=960))
    assert found(blip) == []


def test_meters_that_stay_away_become_what_is_usual(city: list[Observation]) -> None:
    seen = disturbed(city, AT, len(city), lambda one: with_counted(one, count=900))
    assert only(Kind.COVERAGE_DROP, seen) == AT
    later = disturbed(
        seen, AT + 4 * DAY, AT + 4 * DAY + 4, lambda one: with_counted(one, count=800)
    )
    assert found(later) == [(Kind.COVERAGE_DROP, AT), (Kind.COVERAGE_DROP, AT + 4 * DAY)]


def test_a_lane_that_did_not_open_is_told_and_is_no_drop_of_coverage(
    city: list[Observation],
) -> None:
    closed = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=742, left_out=(2,)))
    (one,) = all_of(closed)
    assert (one.kind, one.lane) == (Kind.LANE_LEFT_OUT, "2")


def test_a_lane_with_too_few_reports_is_named(city: list[Observation]) -> None:
    lanes = {"0": 250.0, "1": 120.0, "2": 246.0, "3": 251.0}
    (one,) = all_of(disturbed(city, AT, AT + 4, lambda seen: told(seen, lane_reports=lanes)))
    assert (one.kind, one.lane, one.observed) == (Kind.LANE_DROP, "1", 120)
    assert one.expected == pytest.approx(249)


def test_meters_that_go_wrong_one_after_another_are_a_drift_against_the_feeder(
    city: list[Observation],
) -> None:
    seen = list(city)
    for at in range(18 * DAY, len(seen)):
        counted = seen[at].counted
        assert counted is not None
        lost = min(0.02, 0.005 * (at // DAY - 17))
        seen[at] = with_counted(seen[at], city_wh=round(counted.city_wh * (1 - lost)))
    (one,) = all_of(seen)
    assert one.kind is Kind.FEEDER_DRIFT
    assert 18 * DAY < (one.window_start - START) // LENGTH <= 22 * DAY
    assert one.observed > one.expected == pytest.approx(4, abs=0.1)


def test_losses_that_grow_with_the_load_are_no_drift() -> None:
    seen = []
    for at, one in enumerate(calm(35)):
        colder = 1 + 0.6 * (at // DAY) / 35
        assert one.counted is not None
        city = round(one.counted.city_wh * colder)
        fed = round(city / (1 - 0.02 - 0.02 * city / 100_000))
        seen.append(replace(with_counted(one, city_wh=city, sums=(city, 0)), feeder_wh=fed))
    assert found(seen) == []


def test_without_a_feeder_nothing_is_said_of_losses(city: list[Observation]) -> None:
    seen = [replace(one, feeder_wh=None) for one in city]
    stolen = disturbed(
        seen, 18 * DAY, len(seen), lambda one: with_counted(one, city_wh=90_000, sums=(90_000, 0))
    )
    assert Kind.FEEDER_DRIFT not in {kind for kind, _ in found(stolen)}


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_demand_that_jumps_as_on_no_day_of_the_week_is_a_step(
    city: list[Observation], factor: float
) -> None:
    at = only(
        Kind.DEMAND_STEP, disturbed(city, AT, AT + DAY, lambda one: scaled(one, factor))[: AT + 40]
    )
    assert AT <= at <= AT + 2


def test_a_jump_of_every_morning_is_no_step(city: list[Observation]) -> None:
    seen = [scaled(one, 1.6) if at % DAY >= 40 else one for at, one in enumerate(city)]
    assert found(seen) == []


def test_a_slow_rise_is_no_step(city: list[Observation]) -> None:
    seen = [scaled(one, 1 + at / len(city)) for at, one in enumerate(city)]
    assert found(seen) == []


@pytest.mark.parametrize("day", [(2026, 3, 29), (2026, 10, 25)])
def test_clocks_that_are_set_are_no_step(day: tuple[int, int, int]) -> None:
    zone = ZoneInfo("Europe/Berlin")
    start = int(datetime(*day, tzinfo=UTC).timestamp()) - 20 * 86_400
    local = []
    for one in calm(25, start=start):
        hour = datetime.fromtimestamp(one.window_start, zone).hour
        local.append(scaled(one, 0.4 if 3 <= hour < 5 else 1))
    assert found(local, Limits(zone="Europe/Berlin")) == []


def test_no_step_is_taken_over_a_gap(city: list[Observation]) -> None:
    lost = disturbed(city, AT, AT + 1, lambda one: replace(one, counted=None))
    seen = disturbed(lost, AT + 1, len(city), lambda one: scaled(one, 1.5))
    assert [kind for kind, at in found(seen) if at < AT + DAY] == []


def test_windows_without_a_total_are_told_from_the_third_in_a_day_on(
    city: list[Observation],
) -> None:
    seen = list(city)
    for at in (AT, AT + 5, AT + 30, AT + 60):
        seen[at] = replace(seen[at], counted=None, refused=NotReleasedReason.REFUSED)
    assert only(Kind.REFUSED_WINDOWS, seen) == AT + 30
    for at in (AT + 5, AT + 60):
        seen[at] = city[at]
    assert found(seen) == []


def test_a_window_that_is_not_settled_is_not_taken_for_refused(city: list[Observation]) -> None:
    assert found(disturbed(city, AT, AT + 40, lambda one: replace(one, counted=None))) == []


def test_a_burst_of_refused_reports_is_told_once(city: list[Observation]) -> None:
    burst = disturbed(city, AT, AT + 3, lambda one: told(one, refused_reports=90.0))
    assert only(Kind.REFUSED_REPORTS, burst) == AT


def test_calls_that_are_slow_for_two_windows_are_told(city: list[Observation]) -> None:
    assert found(disturbed(city, AT, AT + 1, lambda one: told(one, latency_s=0.5))) == []
    slow = disturbed(city, AT, AT + 5, lambda one: told(one, latency_s=0.5))
    assert only(Kind.LATENCY_RISE, slow) == AT + 1


def test_the_very_same_sums_for_three_windows_are_a_frozen_total(city: list[Observation]) -> None:
    assert only(Kind.FROZEN_TOTAL, frozen(city, AT, AT + 6)) == AT + 2
    assert found(frozen(city, AT, AT + 2)) == []


def test_a_frozen_total_is_no_loss_as_well(city: list[Observation]) -> None:
    assert only(Kind.FROZEN_TOTAL, frozen(city, AT, AT + 14)) == AT + 2


def test_a_gap_does_not_end_a_run_of_frozen_totals(city: list[Observation]) -> None:
    seen = frozen(city, AT, AT + 4)
    seen[AT + 1] = replace(seen[AT + 1], counted=None)
    assert only(Kind.FROZEN_TOTAL, seen) == AT + 3


def test_what_ends_and_comes_again_is_told_again(city: list[Observation]) -> None:
    seen = disturbed(city, AT, AT + 2, lambda one: with_counted(one, count=900))
    near = disturbed(seen, AT + 5, AT + 7, lambda one: with_counted(one, count=900))
    assert found(near) == [(Kind.COVERAGE_DROP, AT)]
    far = disturbed(seen, AT + 12, AT + 14, lambda one: with_counted(one, count=900))
    assert found(far) == [(Kind.COVERAGE_DROP, AT), (Kind.COVERAGE_DROP, AT + 12)]


def test_a_step_leaves_the_state_before_it_as_it_was(city: list[Observation]) -> None:
    """One step after the other finds what a replay does, and each can be taken again."""
    seen = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=900))
    seen = disturbed(seen, AT + 30, AT + 36, lambda one: scaled(one, 1.6))
    watchdog, told_so_far = Watchdog(Limits(), LENGTH), list[Finding]()
    for at, one in enumerate(seen):
        after, findings = step(watchdog, one)
        if at % 97 == 0 or findings:
            again, same = step(watchdog, one)
            assert same == findings
            assert step(again, seen[min(at + 1, len(seen) - 1)])[1] == (
                step(after, seen[at + 1])[1] if at + 1 < len(seen) else ()
            )
        watchdog, told_so_far = after, [*told_so_far, *findings]
    assert told_so_far == all_of(seen)
    assert [one.kind for one in told_so_far] == [Kind.COVERAGE_DROP, Kind.DEMAND_STEP]


@pytest.mark.parametrize("later", [-1, 0])
def test_windows_are_shown_in_order_or_refused(city: list[Observation], later: int) -> None:
    watchdog, _ = step(Watchdog(Limits(), LENGTH), city[5])
    with pytest.raises(MalformedInput) as raised:
        step(watchdog, city[5 + later])
    assert raised.value.reason is Reason.RANGE_INVALID


@pytest.mark.parametrize(
    "text",
    [
        "unknown = 1",
        "step_percent = 0",
        "step_percent = 'much'",
        "frozen_windows = 1",
        "lane_deviations = nan",
        "drift_days = 0",
    ],
)
def test_limits_that_mean_nothing_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "watchdog.toml"
    path.write_text(text + "\n")
    with pytest.raises(MalformedInput) as raised:
        Limits.load(path)
    assert raised.value.reason is Reason.CONFIG_INVALID


def test_a_zone_that_there_is_not_is_refused() -> None:
    with pytest.raises(MalformedInput) as raised:
        Watchdog(Limits(zone="Nowhere/Town"), LENGTH)
    assert raised.value.reason is Reason.CONFIG_INVALID


def test_a_city_is_watched_by_its_own_limits(city: list[Observation]) -> None:
    away = disturbed(city, AT, AT + 8, lambda one: with_counted(one, count=900))
    assert found(away, Limits(coverage_drop_percent=15)) == []


def test_totals_become_windows_with_gaps_as_gaps() -> None:
    rows = [settled(0, 9_000, 900, count=90, enrolled=100), gap(1), settled(4, 100)]
    first = rows[0].outcome.window_start
    seen = observations(rows, {first: 10_000})
    assert [one.window_start for one in seen] == [first + n * LENGTH for n in range(5)]
    assert seen[0].counted is not None
    assert (seen[0].counted.sums, seen[0].counted.city_wh) == ((9_000, 900), 9_000)
    assert (seen[0].counted.coverage, seen[0].feeder_wh) == (0.9, 10_000)
    assert [one.refused for one in seen] == [None, NotReleasedReason.REFUSED, None, None, None]
    assert [one.counted is None for one in seen] == [False, True, True, True, False]
    assert observations([]) == []


def test_coverage_is_of_the_lanes_that_opened() -> None:
    (one,) = observations([settled(0, 1, count=750, enrolled=ENROLLED, lanes=4, left_out=(1,))])
    assert one.counted is not None
    assert one.counted.coverage == 1.0


def test_more_windows_than_anybody_keeps_are_refused() -> None:
    with pytest.raises(MalformedInput) as raised:
        observations([settled(0, 1), settled(1_000_001, 1)])
    assert raised.value.reason is Reason.RANGE_INVALID


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**37),
            st.integers(0, 2**62),
            st.integers(1, 2**64 - 1),
            st.integers(1, 2**64 - 1),
            st.sampled_from([0, 1, 900, 2**32 - 1]),
            st.sampled_from([(0, ()), (1, (0,)), (2, (1,)), (2**32 - 1, ())]),
        ),
        max_size=4,
    ),
    st.dictionaries(st.integers(0, 2**37), st.integers(-(10**15), 10**15), max_size=4),
)
def test_totals_that_no_key_holder_would_sign_are_judged_or_refused_and_no_defect(
    figures: list[tuple[int, int, int, int, int, tuple[int, tuple[int, ...]]]],
    feeder: dict[int, int],
) -> None:
    """A file without a profile may say anything."""
    rows = {
        at: settled(
            0,
            wh,
            count=min(count, enrolled),
            enrolled=max(count, enrolled),
            length=length,
            lanes=lanes,
            left_out=left_out,
            start=at,
        )
        for at, wh, count, enrolled, length, (lanes, left_out) in figures
    }
    measured = feeder | dict.fromkeys(rows, 1)
    with suppress(MalformedInput):
        replay(Limits(), observations(list(rows.values()), measured))
    with suppress(MalformedInput):
        reconcile(list(rows.values()), measured, Terms(ZoneInfo("Europe/Zurich"), 5.0))


@pytest.mark.parametrize(("lanes", "left_out"), [(0, ()), (1, (0,)), (2, (0, 1))])
def test_a_total_of_no_lane_that_opened_is_refused(lanes: int, left_out: tuple[int, ...]) -> None:
    with pytest.raises(MalformedInput) as raised:
        observations([settled(0, 1, lanes=lanes, left_out=left_out)])
    assert raised.value.reason is Reason.MALFORMED_MESSAGE
