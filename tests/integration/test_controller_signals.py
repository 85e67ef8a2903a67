"""What a running controller signals, with a real totals service, for every kind of window."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.control import Basis
from tests.support.city import MIDNIGHT
from tests.support.controllers import LENGTH, SETTLE_S, ControlledCity
from tests.support.totals import expired, publish, refused

LATE_S = LENGTH + 1_800
"""From a window's start until its total is stale."""


@pytest.fixture
def city(tmp_path: Path) -> Iterator[ControlledCity]:
    with ControlledCity.create(tmp_path) as made:
        yield made


def test_a_fresh_total_is_signalled_as_measured(city: ControlledCity) -> None:
    city.release(0, 930_000)

    signal = city.until(lambda signal: signal.basis is Basis.MEASURED)

    assert (signal.level, signal.cause) == (2, "CAPACITY")
    assert signal.window_start == city.window(0)
    assert (signal.measured_w, signal.estimated_w, signal.ramp_w) == (930_000, None, None)
    assert signal.at == city.clock.now()


def test_a_total_of_most_meters_is_signalled_as_an_estimate(city: ControlledCity) -> None:
    city.release(0, 800_000, count=80)

    signal = city.until(lambda signal: signal.basis is Basis.ESTIMATED)

    assert (signal.level, signal.measured_w, signal.estimated_w) == (3, 800_000, 1_000_000)


def test_a_total_of_too_few_meters_holds_the_last_signal(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)

    city.release(1, 300_000, count=79)

    signal = city.until(lambda signal: signal.cause == "COVERAGE")
    assert (signal.level, signal.basis, signal.measured_w) == (2, Basis.HELD, None)


@pytest.mark.parametrize("kind", ["REFUSED", "EXPIRED"])
def test_a_window_without_a_total_holds_the_last_signal_and_says_why(
    city: ControlledCity, kind: str
) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    city.settle(1)
    publish(city.paths, refused(city.window(1)) if kind == "REFUSED" else expired(city.window(1)))

    signal = city.until(lambda signal: signal.cause == "NOT_RELEASED")

    assert (signal.level, signal.basis, signal.reason) == (2, Basis.HELD, kind)
    assert signal.window_start == city.window(1)
    assert (signal.measured_w, signal.estimated_w, signal.ramp_w) == (None, None, None)


def test_a_refused_window_does_not_keep_an_old_signal_alive(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.level == 2)
    for at in range(1, 7):
        city.settle(at)
        publish(city.paths, refused(city.window(at)))
        city.until_window(at)

    signal = city.until(lambda signal: signal.basis is Basis.NEUTRAL)

    assert (signal.level, signal.cause, signal.reason) == (0, "NOT_RELEASED", "REFUSED")


def test_a_missing_window_is_waited_for_held_and_then_neutral(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    stale_at = city.window(0) + LATE_S

    city.pass_to(stale_at + 3_600)

    told = [(s.at, s.level, s.basis.value, s.cause) for s in city.signals() if s.window_start]
    assert told == [
        (city.window(1) + SETTLE_S, 2, "MEASURED", "CAPACITY"),
        (city.window(2), 2, "HELD", "WAITING"),
        (city.window(3), 2, "HELD", "STALE"),
        (city.window(4), 2, "HELD", "STALE"),
        (city.window(5), 2, "HELD", "STALE"),
        (city.window(6), 2, "HELD", "STALE"),
        (city.window(7), 0, "NEUTRAL", "STALE"),
    ]
    assert stale_at == city.window(3)


def test_a_stale_total_is_not_acted_on(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    city.pass_to(city.window(1) + LATE_S)

    city.release(1, 1_200_000, settle=False)

    signal = city.until(lambda signal: signal.cause == "LATE")
    assert (signal.level, signal.basis, signal.measured_w) == (2, Basis.HELD, None)


def test_totals_service_away_holds_the_signal_and_then_ends_it(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    city.stop_totals()

    city.pass_to(city.window(0) + LATE_S)
    held = city.until(lambda signal: signal.cause == "STALE")
    city.pass_to(city.window(0) + LATE_S + 3_600)
    ended = city.until(lambda signal: signal.basis is Basis.NEUTRAL)

    assert (held.level, held.basis) == (2, Basis.HELD)
    assert (ended.level, ended.cause) == (0, "STALE")


def test_totals_service_back_again_is_followed_from_where_it_left_off(
    city: ControlledCity,
) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    city.stop_totals()
    publish(city.paths, city.record(1, 860_000), city.record(2, 1_010_000))
    city.pass_to(city.window(3) + SETTLE_S)

    city.start_totals()

    city.until_window(2)
    told = [(s.window_start, s.level, s.basis) for s in city.signals() if s.measured_w]
    assert told == [
        (city.window(0), 2, Basis.MEASURED),
        (city.window(1), 1, Basis.MEASURED),
        (city.window(2), 3, Basis.MEASURED),
    ]


def test_before_any_total_nothing_is_asked_of_the_grid(city: ControlledCity) -> None:
    first = city.until(lambda signal: signal.number == 1)

    assert (first.level, first.basis, first.cause) == (0, Basis.NEUTRAL, "NO_TOTAL")
    assert first.window_start is None


def test_totals_from_before_the_first_start_signal_nothing(tmp_path: Path) -> None:
    with ControlledCity.create(tmp_path, now=MIDNIGHT + 5 * LENGTH, start=False) as city:
        city.start_totals()
        publish(city.paths, *(city.record(at, 1_100_000) for at in range(4)))
        city.start_controller()
        city.release(4, 1_100_000)
        city.release(5, 930_000)

        city.until(lambda signal: signal.basis is Basis.MEASURED)

        assert {s.window_start for s in city.signals()} == {None, city.window(5)}


def test_a_log_that_was_replaced_is_not_acted_on(
    city: ControlledCity, capfd: pytest.CaptureFixture[str]
) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    assert city.controller is not None
    city.stop_totals()
    shutil.rmtree(city.paths.published / "log")
    publish(city.paths, city.record(0, 930_000), city.record(1, 1_100_000))
    city.start_totals()
    told, deadline = "", time.monotonic() + 20
    while "LOG_FORKED" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        told += capfd.readouterr().err

    city.pass_to(city.window(0) + LATE_S)

    assert [s.level for s in city.signals() if s.window_start] == [2, 2, 2]
    assert not city.controller.server.conditions()["totals"]
