"""What a load test sends, and when: decided before anything is sent."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gridveil.clock import ManualClock, ScaledClock, SystemClock
from gridveil.loadtest.load import BAD, Kind, Load, Mixture, Slot, share_of
from gridveil.loadtest.pool import LEAST_POOL, PoolPlan, made_up_values, pool_size
from gridveil.loadtest.run import check, plan_windows
from gridveil.loadtest.schedule import OpenLoop, begins
from gridveil.loadtest.totals import expected_sums
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil.protocol.windows import lane_count
from gridveil_services.loadtest.local import window_seconds
from tests.support.epochs import city_keys

POLICY = replace(city_keys().parameters.policy, development=True)
NOISE = NoisePolicy(Noise(Mechanism.LAPLACE, 500_000), 48_000_000)
MIXED = Load(meters=1_000, windows=3, processes=3, mixture=Mixture(0.05, 0.02, 0.03))


def all_slots(load: Load, number: int) -> list[Slot]:
    shares = [share_of(load, number, process) for process in range(load.processes)]
    return [slot for share in shares for slot in (*share.timely, *share.late)]


def test_every_meter_has_one_report_and_the_rest_is_as_many_as_asked_for() -> None:
    for number in range(3):
        slots = all_slots(MIXED, number)
        kinds = Counter(slot.kind for slot in slots)
        assert kinds == {
            **{Kind.ON_TIME: 980, Kind.LATE: 20, Kind.RESENT: 50},
            **dict.fromkeys(BAD, 10),
        }
        own = [slot.place for slot in slots if slot.kind in (Kind.ON_TIME, Kind.LATE)]
        assert sorted(own) == list(range(1_000))
        timely = sum(count for kind, count in kinds.items() if kind is not Kind.LATE)
        assert (MIXED.timely, MIXED.refused) == (timely, 50)


def test_a_report_is_sent_again_only_after_the_first_time_and_by_the_same_process() -> None:
    for process in range(3):
        timely = share_of(MIXED, 0, process).timely
        assert all(slot.place % 3 == process for slot in timely)
        for at, slot in enumerate(timely):
            if slot.kind is Kind.RESENT:
                assert Slot(Kind.ON_TIME, slot.place) in timely[:at]


def test_which_reports_go_wrong_follows_from_seed_and_window() -> None:
    assert all_slots(MIXED, 1) == all_slots(MIXED, 1)
    assert all_slots(MIXED, 1) != all_slots(MIXED, 2)
    assert all_slots(MIXED, 1) != all_slots(replace(MIXED, seed=1), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"meters": 99}, {"windows": 0}, {"windows": None}, {"duration_s": 9.0}),
        *({"rate": 0.0}, {"rate": float("nan")}, {"rate": float("inf")}, {"rate": -1.0}),
        *({"processes": 0}, {"batch": 0}, {"in_flight": 0}),
    ],
)
def test_a_load_outside_its_limits_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput) as refused:
        replace(MIXED, **wrong)
    assert refused.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("shares", [(1.01, 0, 0), (0, 0.21, 0), (0, 0, -0.1)])
def test_a_share_outside_its_limits_is_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(MalformedInput, match="% to "):
        Mixture(*shares)


def test_calls_of_all_processes_together_come_at_the_rate() -> None:
    loop = OpenLoop(begin=100.0, rate=640.0, batch=32, processes=3)
    times = sorted(loop.intended(process, call) for process in range(3) for call in range(50))
    assert times == pytest.approx([100.0 + at * 0.05 for at in range(150)])


def test_a_server_that_stands_still_shows_in_every_report_that_was_meant_to_be_sent() -> None:
    clock, loop = ManualClock(0.0), OpenLoop(begin=0.0, rate=100.0, batch=1, processes=1)
    latencies, free_at = [], 0.0
    for call in range(400):
        clock.move_to(clock.now() + loop.wait(0, call, clock.now()))
        assert clock.now() == pytest.approx(loop.intended(0, call))
        stopped = 1.0 <= max(clock.now(), free_at) < 2.0
        free_at = (2.0 if stopped else max(clock.now(), free_at)) + 0.001
        latencies.append(free_at - loop.intended(0, call))
    # Those meant for the first half of that second waited for more than half a second.
    assert sum(latency > 0.5 for latency in latencies) == pytest.approx(50 + 50 / 9, abs=2)


def test_a_call_that_is_late_is_sent_at_once_and_moves_no_other() -> None:
    loop = OpenLoop(begin=0.0, rate=100.0, batch=10, processes=2)
    assert loop.wait(1, 3, now=5.0) == 0.0
    assert loop.intended(1, 4) - loop.intended(1, 3) == pytest.approx(0.2)


def test_windows_begin_when_they_have_ended_and_the_one_before_was_sent() -> None:
    assert begins([10.0, 14.0, 18.0], 0.0) == [10.0, 14.0, 18.0]
    assert begins([10.0, 14.0, 18.0], 3.0) == [10.0, 14.0, 18.0]
    assert begins([10.0, 14.0, 18.0], 5.0) == [10.0, 15.0, 20.0]


def test_the_first_window_ends_when_its_reports_can_be_ready() -> None:
    parameters = city_keys().parameters
    length = parameters.policy.window_length
    begin = parameters.epoch.first_window
    clock = ScaledClock(begin + length - 1, time.time(), 1.0)
    windows = plan_windows(MIXED, parameters, clock, steady=50.0)
    assert [window.start for window in windows] == [begin + at * length for at in (1, 2, 3)]
    assert windows[0].begin == pytest.approx(50.0 + length + 1, abs=0.5)
    assert windows[0].closes == begin + 2 * length + parameters.policy.grace


def test_windows_of_two_epochs_are_refused() -> None:
    parameters = city_keys().parameters
    last = parameters.epoch.end_window - parameters.policy.window_length
    clock = ScaledClock(last, time.time(), 1.0)
    with pytest.raises(MalformedInput, match="one epoch"):
        plan_windows(MIXED, parameters, clock, steady=0.0)


@pytest.mark.parametrize("meters", [100, 1_000, 20_000, 200_000, 240_000])
def test_repeated_ciphertexts_are_no_noisier_than_a_full_lane(meters: int) -> None:
    size, slots = pool_size(meters, POLICY), POLICY.layout.slots
    most = POLICY.crypto.meters_per_lane(slots)
    in_lane = meters / lane_count(meters, POLICY.crypto, slots)
    assert size == meters or in_lane * (1 + in_lane / size) <= most
    assert min(meters, LEAST_POOL) <= size <= meters


def test_expected_sums_are_those_of_the_meters_own_readings() -> None:
    plan = PoolPlan.of(MIXED, POLICY)
    by_hand = [0] * len(POLICY.registers)
    for place in (0, 1, 2, 999):
        index = (place // 3 + 5) % plan.each
        for at, value in enumerate(made_up_values(POLICY, place % 3 + 3 * index)):
            by_hand[at] += value
    found = expected_sums(POLICY, plan, 5, {0, 1, 2, 999})
    assert found == dict(zip(POLICY.register_names, by_hand, strict=True))
    assert set(expected_sums(POLICY, plan, 5, set()).values()) == {0}


def test_no_made_up_reading_is_zero_or_beyond_its_bound() -> None:
    for number in range(0, 10_000, 7):
        values = made_up_values(POLICY, number)
        assert all(0 < value <= bound for value, bound in zip(values, POLICY.bounds, strict=True))


def test_a_local_citys_windows_are_as_long_as_their_reports_take() -> None:
    few, many = Load(meters=200, windows=1), Load(meters=50_000, windows=1)
    assert window_seconds(few, start_s=1.0) < window_seconds(many, start_s=1.0)
    assert window_seconds(many, start_s=1.0) < window_seconds(many, start_s=6.0)
    slow = replace(few, rate=10.0)
    assert window_seconds(slow, start_s=1.0) == 20.0
    assert Load(meters=200, duration_s=60).windows_at(8.0) == 8
    assert Load(meters=200, duration_s=1).windows_at(8.0) == 1


@pytest.mark.parametrize(
    ("policy", "load", "told"),
    [
        (replace(POLICY, development=False), MIXED, "must be a development city"),
        (replace(POLICY, noise=NOISE), MIXED, "have noise"),
        (POLICY, replace(MIXED, meters=1_001), "holds 1000 meters"),
        (replace(POLICY, min_cohort=981), MIXED, "over fewer than 981"),
        (POLICY, replace(MIXED, batch=POLICY.batch_limit + 1), "--batch is at most"),
        (POLICY, replace(MIXED, rate=1.0), "fewer --meters, or a higher --rate"),
    ],
)
def test_a_load_is_refused_by_a_city_that_it_does_not_fit(
    policy: CityPolicy, load: Load, told: str
) -> None:
    with pytest.raises(MalformedInput, match=told) as refused:
        check(load, policy, 1_000, SystemClock())
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_a_city_takes_a_load_that_fits() -> None:
    check(MIXED, POLICY, 1_000, SystemClock())
    check(replace(MIXED, rate=1_080 / 300), replace(POLICY, grace=300), 1_000, SystemClock())
