"""What an attacker gets from lanes that it makes fail: some passes and failures, and no more.

Whether a lane opens is an answer about the secret key, or about what the attacker cannot see. It
gets at most five failures out of the keys of an epoch, in whatever way it asks.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from gridveil.protocol.errors import Reason
from tests.adversary.city import BUDGET, DECRYPTED, LANES, LENGTH, RELEASED, AttackedCity
from tests.adversary.forging import scaled, sums_of, with_sums
from tests.support.reports import BuiltRelease

ONCE = dict.fromkeys(range(LANES), 1)


def spoiled(city: AttackedCity, window: int, lanes: Collection[int]) -> BuiltRelease:
    """The release of a window in which some lanes do not open."""
    honest = city.built(city.reports(window))
    sums = sums_of(honest)
    return with_sums(honest, {lane: scaled(city.parameters, sums[lane], 2) for lane in lanes})


def is_destroyed(city: AttackedCity) -> bool:
    """Whether the epoch's keys are gone."""
    return city.keyholder.ring.by_digest(city.parameters.digest) is None


@pytest.mark.parametrize("spoiled_lanes", [1, 2, 3, 4])
def test_lanes_left_out_never_make_the_cohort_smaller_than_it_may_be(
    city: AttackedCity, spoiled_lanes: int
) -> None:
    """Spoiling the lanes around the victim's gains nothing: what is left must be a cohort too."""
    window = city.window()
    reports = city.reports(window)
    others = [lane for lane in range(LANES) if lane != city.lane(reports[0])]
    city.assert_gains_nothing(spoiled(city, window, others[:spoiled_lanes]), reports)


def test_a_spoiled_lane_is_decrypted_once(city: AttackedCity) -> None:
    """Asking again, with the lane spoiled in another way or made good, gets no other answer."""
    window = city.window()
    city.release(spoiled(city, window, [3]))
    for again in ([], [1], [1, 3]):
        city.assert_pinned(spoiled(city, window, again))
    assert city.decrypted(window) == ONCE, DECRYPTED
    city.restart()
    assert city.release(spoiled(city, window, [3])).receipt
    assert city.decrypted(window) == {}, DECRYPTED
    assert city.total(window).left_out == (3,), RELEASED


def test_lanes_after_the_failure_that_spends_the_budget_stay_closed(city: AttackedCity) -> None:
    """One release with all lanes spoiled after some failures gets just those that are left."""
    first, second = city.window(), city.window()
    city.assert_refused(spoiled(city, first, [0, 1, 2]), city.reports(first))
    city.release(spoiled(city, second, [1, 2, 3, 4]))
    assert city.decrypted(second) == {0: 1, 1: 1, 2: 1}, DECRYPTED
    assert is_destroyed(city)
    assert city.failures() == BUDGET


def test_an_epoch_gives_an_attacker_its_budget_of_failures_and_then_nothing(
    city: AttackedCity,
) -> None:
    """One spoiled lane a window: five totals without it, and then no answer at all."""
    windows = [city.window() for _ in range(BUDGET + 3)]
    for window in windows[:BUDGET]:
        city.assert_gains_nothing(spoiled(city, window, [4]), city.reports(window))
    assert is_destroyed(city), DECRYPTED
    for window in windows[BUDGET:]:
        for release in (spoiled(city, window, [4]), city.built(city.reports(window))):
            answer = city.release(release)
            assert answer.receipt is None, DECRYPTED
            assert answer.reason == Reason.WINDOW_EXPIRED
        assert city.decrypted(window) == {}, DECRYPTED
        assert city.events(window) == ["expired"], DECRYPTED
    assert city.failures() == BUDGET


def test_a_restart_gives_no_new_failures(city: AttackedCity) -> None:
    """Making the key-holder start again between attempts does not start the count again."""
    windows = [city.window() for _ in range(3)]
    for window in windows[:2]:
        city.assert_refused(spoiled(city, window, [0, 1, 2]), city.reports(window))
        city.restart()
    # Three failures, and the two that were left: the keys are gone.
    assert city.failures() == BUDGET, DECRYPTED
    assert is_destroyed(city), DECRYPTED
    # What is left of the day under these keys is lost; whoever asks is told nothing.
    answer = city.release(city.built(city.reports(windows[2])))
    assert answer.receipt is None, RELEASED
    assert answer.reason in {Reason.REFUSED, Reason.WINDOW_EXPIRED}


@pytest.mark.parametrize("lanes", [[0], [4], [0, 1, 2], [0, 1, 2, 3, 4]])
def test_what_failed_is_not_said_to_the_one_who_asks(city: AttackedCity, lanes: list[int]) -> None:
    """The answer to a release names no lane: a receipt, or the one refusal there is."""
    window = city.window()
    answer = city.release(spoiled(city, window, lanes))
    if answer.receipt is None:
        city.assert_is_the_refusal(answer)
    else:
        honest = city.release(city.built(city.reports(window + LENGTH)))
        assert honest.receipt
        assert len(answer.raw) == len(honest.raw)
