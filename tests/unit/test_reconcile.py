"""Totals against a feeder: what is lost, what is estimated, and what is not known."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.days import windows_of
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise
from gridveil.reconcile import (
    Basis,
    Comparison,
    Missing,
    Reconciliation,
    Terms,
    Verdict,
    reconcile,
)
from gridveil.settlements import NotReleasedReason
from gridveil.totals_file import Settled
from tests.support.exported import gap, settled
from tests.support.reports import WINDOW

UTC = Terms(ZoneInfo("UTC"), losses_percent=5)
NOISE = Noise(Mechanism.LAPLACE, 500_000)


def at(number: int) -> int:
    return WINDOW + number * 900


def one(total: Settled, feeder: int, terms: Terms = UTC) -> Comparison:
    found = reconcile([total], {at(0): feeder}, terms)
    (window,) = found.windows
    assert window.compared is not None
    assert found.days[0].comparison == window.compared
    return window.compared


def missing(found: Reconciliation) -> list[Missing | None]:
    return [window.missing for window in found.windows]


def test_what_is_lost_is_the_feeder_less_import_and_export() -> None:
    found = one(settled(0, 10_000, 400), 10_000)
    assert (found.city_wh, found.difference_wh, found.percent) == (9_600, 400, 4.0)
    assert (found.basis, found.verdict, found.within_noise) == (
        Basis.MEASURED,
        Verdict.WITHIN,
        False,
    )


@pytest.mark.parametrize(
    ("metered", "verdict"),
    [
        (9_499, Verdict.ABOVE),
        (9_500, Verdict.WITHIN),
        (10_000, Verdict.WITHIN),
        (10_001, Verdict.BELOW),
    ],
)
def test_losses_beyond_those_expected_are_told_either_way(metered: int, verdict: Verdict) -> None:
    assert one(settled(0, metered), 10_000).verdict is verdict


def test_without_expected_losses_nothing_is_judged() -> None:
    found = reconcile([settled(0, 1)], {at(0): 10_000}, Terms(ZoneInfo("UTC")))
    assert found.windows[0].compared is not None
    assert found.windows[0].compared.verdict is None
    assert not found.beyond


def test_meters_that_did_not_report_are_no_loss_but_an_estimate() -> None:
    found = one(settled(0, 9_000, count=90, enrolled=100), 10_000)
    assert (found.basis, found.city_wh, found.difference_wh) == (Basis.ESTIMATED, 10_000, 0)


def test_too_few_meters_are_not_scaled() -> None:
    found = reconcile([settled(0, 7_900, count=79, enrolled=100)], {at(0): 10_000}, UTC)
    assert missing(found) == [Missing.COVERAGE]
    assert found.windows[0].coverage == 0.79
    assert found.empty


@pytest.mark.parametrize("reason", list(NotReleasedReason))
def test_a_window_without_a_total_is_listed_and_never_zero(reason: NotReleasedReason) -> None:
    found = reconcile([settled(0, 9_900), gap(1, reason)], {at(0): 10_000, at(1): 10_000}, UTC)
    assert missing(found) == [None, Missing(reason.value)]
    (day,) = found.days
    assert (day.compared, day.windows) == (1, 96)
    assert day.comparison is not None
    assert (day.comparison.feeder_wh, day.comparison.difference_wh) == (10_000, 100)


def test_a_window_that_one_side_lacks_is_listed() -> None:
    found = reconcile([settled(0, 100)], {at(1): 100}, UTC)
    assert missing(found) == [Missing.NO_FEEDER, Missing.NOT_SETTLED]
    assert found.days[0].comparison is None
    assert not found.beyond


def test_a_day_with_an_estimated_window_is_estimated_and_says_how_many() -> None:
    rows = [settled(0, 100), settled(1, 90, count=90, enrolled=100)]
    (day,) = reconcile(rows, {at(0): 100, at(1): 100}, UTC).days
    assert (day.compared, day.estimated) == (2, 1)
    assert day.comparison is not None
    assert (day.comparison.basis, day.comparison.city_wh) == (Basis.ESTIMATED, 200)


def test_a_difference_that_noise_may_make_is_said_to_be_within_it() -> None:
    deviations = {"import_wh": 300.0, "export_wh": 400.0}
    near, far = (
        one(settled(0, wh, noise=NOISE, deviations=deviations), 10_000) for wh in (9_000, 8_400)
    )
    assert (near.noise_wh, near.within_noise, near.verdict) == (500.0, True, Verdict.WITHIN)
    assert (far.within_noise, far.verdict) == (False, Verdict.ABOVE)


def test_noise_is_scaled_with_an_estimate_and_adds_up_in_squares_over_a_day() -> None:
    noisy = {"import_wh": 300.0, "export_wh": 400.0}
    rows = [settled(n, 500, noise=NOISE, deviations=noisy, enrolled=125) for n in range(4)]
    found = reconcile(rows, {at(n): 600 for n in range(4)}, UTC)
    assert found.windows[0].compared is not None
    assert found.windows[0].compared.noise_wh == 625.0
    assert found.days[0].comparison is not None
    assert found.days[0].comparison.noise_wh == pytest.approx(1_250.0)


def test_noise_of_which_nothing_is_known_is_not_compared() -> None:
    found = reconcile([settled(0, 100, noise=NOISE)], {at(0): 100}, UTC)
    assert missing(found) == [Missing.NOISE_UNKNOWN]


def test_more_came_back_than_went_out() -> None:
    found = one(settled(0, 0, 10_000), -9_800)
    assert (found.city_wh, found.difference_wh) == (-10_000, 200)
    assert found.percent == pytest.approx(2.04, abs=0.01)
    assert found.verdict is Verdict.WITHIN


def test_of_nothing_there_is_no_share() -> None:
    assert one(settled(0, 0), 0).percent is None


@pytest.mark.parametrize(
    ("day", "windows"), [("2026-03-29", 92), ("2026-03-30", 96), ("2026-10-25", 100)]
)
def test_days_are_local_and_have_92_96_or_100_quarter_hours(day: str, windows: int) -> None:
    zone = ZoneInfo("Europe/Zurich")
    starts = list(windows_of(date.fromisoformat(day), zone, 900))
    rows = [settled(0, 99, start=start) for start in starts]
    around = dict.fromkeys((starts[0] - 900, *starts, starts[-1] + 900), 100)
    found = reconcile(rows, around, Terms(zone))
    before, whole, after = found.days
    assert (whole.day.isoformat(), whole.windows, whole.compared) == (day, windows, windows)
    assert whole.comparison is not None
    assert whole.comparison.difference_wh == windows
    assert (before.comparison, after.comparison) == (None, None)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(80, 100)), min_size=1
    )
)
def test_a_day_is_the_sum_of_its_windows(figures: list[tuple[int, int, int]]) -> None:
    rows = [settled(n, wh, count=count, enrolled=100) for n, (wh, _, count) in enumerate(figures)]
    feeder = {at(n): wh for n, (_, wh, _) in enumerate(figures)}
    found = reconcile(rows, feeder, UTC)
    windows = [window.compared for window in found.windows if window.compared]
    days = [day.comparison for day in found.days if day.comparison]
    assert len(windows) == len(figures)
    assert sum(one.difference_wh for one in windows) == sum(one.difference_wh for one in days)
    assert reconcile(rows[::-1], dict(reversed(feeder.items())), UTC) == found


def test_a_city_without_feed_in_is_compared_by_import_alone() -> None:
    assert one(settled(0, 95, None), 100).difference_wh == 5


@pytest.mark.parametrize(
    "rows",
    [
        [settled(0, 100, unit="kWh")],
        [settled(0, 100), settled(1, 100, start=WINDOW + 900, length=300)],
        [settled(0, 100, length=0)],
    ],
)
def test_totals_that_cannot_be_compared_are_refused(rows: list[Settled]) -> None:
    with pytest.raises(MalformedInput) as raised:
        reconcile(rows, {at(0): 100}, UTC)
    assert raised.value.reason is Reason.CONFIG_INVALID
