"""An aggregator that probes: every release that is refused teaches it something, however little.

What a probe teaches does not matter here. It gets so many refusals as the budget of a day has, and
then no answer of the key-holder at all until a person has looked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gridveil.protocol.errors import Reason
from tests.adversary.city import DECRYPTED, PROBED, RELEASED, AttackedCity
from tests.adversary.forging import resigned, scaled, sums_of, with_sums
from tests.support.reports import BuiltRelease

ALLOWED = 3
"""Refusals a day in this city."""


@pytest.fixture
def strict(city: AttackedCity) -> Iterator[AttackedCity]:
    """The city with a budget of refusals that can be spent."""
    usual = city.config
    city.config = replace(usual, refusals_per_day=ALLOWED)
    city.restart()
    yield city
    city.config = usual


def unopened_probe(city: AttackedCity) -> BuiltRelease:
    """Refused before anything is decrypted, with three corrupted meters: it spends no lane."""
    window = city.window()
    reports = city.reports(window)
    for lane in range(3):
        at = next(at for at, report in enumerate(reports) if at and city.lane(report) == lane)
        reports[at] = resigned(reports[at], city.day.meters[at], sealed_commitment=bytes(48))
    return city.built(reports)


def opened_probe(city: AttackedCity) -> BuiltRelease:
    """Refused after decrypting, with nobody's help: three lanes that do not open."""
    honest = city.built(city.reports(city.window()))
    sums = sums_of(honest)
    return with_sums(honest, {lane: scaled(city.parameters, sums[lane], 2) for lane in range(3)})


PROBES = {"unopened": unopened_probe, "opened": opened_probe}


def spend(city: AttackedCity, kind: str, count: int = ALLOWED) -> None:
    """Probe; only the last in the way that is asked for, or the epoch ends before the budget."""
    for left in reversed(range(count)):
        probe = unopened_probe if left else PROBES[kind]
        city.assert_is_the_refusal(city.release(probe(city)))


def assert_silent(city: AttackedCity, kind: str) -> None:
    """Neither a probe nor an honest release claims a window or is decrypted."""
    for release in (PROBES[kind](city), city.built(city.reports(city.window()))):
        window = release.header.window_start
        answer = city.release(release)
        assert answer.receipt is None, RELEASED
        assert answer.reason == Reason.KEYHOLDER_LOCKED, PROBED
        assert city.events(window) == [], PROBED
        assert city.decrypted(window) == {}, DECRYPTED


@pytest.mark.parametrize("kind", PROBES)
def test_probing_gets_the_budget_of_refusals_and_then_nothing(
    strict: AttackedCity, kind: str
) -> None:
    """Whatever makes a release refused: the last refusal of the budget is the last answer."""
    spend(strict, kind)
    for _ in range(3):
        assert_silent(strict, kind)


def test_restarts_between_probes_give_no_more_of_them(strict: AttackedCity) -> None:
    """Who can make the key-holder start again, by a crash or a power cut, gains no probe."""
    for _ in range(ALLOWED):
        spend(strict, "unopened", 1)
        strict.restart()
    for _ in range(2):
        assert_silent(strict, "unopened")
        strict.restart()


def test_a_larger_budget_tomorrow_opens_no_lock_of_today(strict: AttackedCity) -> None:
    """Who may edit the configuration cannot unlock without a record in the log that says so."""
    spend(strict, "unopened")
    strict.config = replace(strict.config, refusals_per_day=96)
    strict.restart()
    assert_silent(strict, "unopened")


def test_honest_windows_between_the_probes_hide_none_of_them(strict: AttackedCity) -> None:
    """Releases that go through do not make up for those that were refused."""
    for _ in range(ALLOWED):
        window = strict.window()
        strict.assert_released(strict.built(strict.reports(window)), strict.truth(window))
        spend(strict, "unopened", 1)
    assert_silent(strict, "unopened")


def test_asking_again_about_a_probe_gives_the_same_answer_and_no_new_one(
    strict: AttackedCity,
) -> None:
    """A locked key-holder repeats what it said, from its log."""
    probes = [unopened_probe(strict) for _ in range(ALLOWED)]
    for probe in probes:
        strict.assert_is_the_refusal(strict.release(probe))
    assert_silent(strict, "unopened")
    for probe in probes:
        strict.assert_is_the_refusal(strict.release(probe))
        window = probe.header.window_start
        strict.assert_pinned(strict.built(strict.reports(window)))
        assert strict.events(window) == ["intent", "refused"]
