"""An aggregator that has entries checked ahead of a release, and then releases something else.

What the key-holder keeps of a precheck shortens its work and decides nothing: each attack ends as
it does without one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gridveil.protocol.errors import Reason
from gridveil.protocol.report import Report
from gridveil_services.keyholder.precheck import windows_held
from tests.adversary import test_cohorts, test_commitments, test_sums
from tests.adversary.city import LENGTH, RELEASED, AttackedCity
from tests.adversary.forging import split, sums_of, with_sums
from tests.support.reports import BuiltRelease, MeterKeys, build_report

Forge = Callable[[AttackedCity, MeterKeys, int, Report], Report]


def prechecked(city: AttackedCity, *releases: BuiltRelease) -> None:
    """Hand over the entries of some releases ahead, the first one's last, as it may be honest.

    Those that it does not hold come one by one: one that is refused spoils no other.
    """
    first, *others = releases
    known = set(split(first))
    for entry in dict.fromkeys(e for release in others for e in split(release) if e not in known):
        city.precheck(first.header, entry)
    city.precheck(first.header, first.entries)


def stored(city: AttackedCity) -> dict[str, bytes]:
    """Every durable byte."""
    folders = city.config.state, city.config.published
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", test_cohorts.ATTACKS)
def test_a_precheck_lets_no_other_cohort_in(city: AttackedCity, name: str) -> None:
    """The attacker gains nothing by having true and false entries checked ahead."""
    attack, reason = test_cohorts.ATTACKS[name]
    window = city.window()
    reports = city.reports(window)
    honest = city.built(reports)
    attacked = attack(city, reports, honest)
    prechecked(city, honest, attacked)
    city.assert_turned_away(attacked, reason)
    city.assert_released(honest, city.truth(window))


@pytest.mark.parametrize("name", test_sums.ATTACKS)
def test_a_precheck_opens_no_other_sum(city: AttackedCity, name: str) -> None:
    """The attacker gains nothing: the commitments that were opened ahead are the meters' own."""
    window = city.window()
    reports = city.reports(window)
    honest = city.built(reports)
    prechecked(city, honest)
    attacked = with_sums(honest, test_sums.ATTACKS[name](city, reports, sums_of(honest)))
    city.assert_gains_nothing(attacked, reports)


@pytest.mark.parametrize(
    "forge",
    [
        test_commitments.another_h,
        test_commitments.unsealed,
        test_commitments.sealed_to_another_key,
        test_commitments.identity,
    ],
)
def test_a_prechecked_commitment_that_is_not_sealed_as_it_must_be_is_left_out(
    city: AttackedCity, forge: Forge
) -> None:
    """The attacker gains nothing and is told nothing: what does not open is held like all others.

    The lane is left out without being decrypted, as if nothing had been prechecked.
    """
    window = city.window()
    reports = city.reports(window)
    made = forge(city, city.day.meters[-1], window, reports[-1])
    attacked = city.built([*reports[:-1], made])
    assert city.precheck(attacked.header, attacked.entries) == (len(reports), "")
    city.assert_gains_nothing(attacked, reports, decrypted=False)


def test_another_report_than_the_prechecked_one_counts_as_itself(city: AttackedCity) -> None:
    """A meter that signs two reports gains nothing: the total is that of the one released."""
    window = city.window()
    reports = city.reports(window)
    prechecked(city, city.built(reports))
    meter = city.day.meters[3]
    (reading, _), *_ = city.readings(window, 4)[3:]
    other = build_report(city.parameters, meter, window, [reading + 1000, 0])
    release = city.built([*reports[:3], other, *reports[4:]])
    city.assert_released(release, city.truth(window) + 1000)


def test_meters_that_were_prechecked_and_not_released_are_not_counted(city: AttackedCity) -> None:
    """Leaving prechecked meters out gains nothing but a total without them."""
    window = city.window()
    reports = city.reports(window)
    prechecked(city, city.built(reports))
    fewer = city.built(reports[:-40])
    left_out = sum(reading for reading, _ in city.readings(window, len(reports))[-40:])
    city.assert_released(fewer, city.truth(window) - left_out)
    assert city.total(window).count == len(reports) - 40, RELEASED


def test_a_cohort_that_is_too_small_is_no_larger_for_what_was_prechecked(
    city: AttackedCity,
) -> None:
    """Prechecking everybody and releasing few gains nothing."""
    window = city.window()
    reports = city.reports(window)
    honest = city.built(reports)
    prechecked(city, honest)
    city.assert_turned_away(city.built(reports[:1]), Reason.COHORT_TOO_SMALL)
    city.assert_released(honest, city.truth(window))


def test_a_precheck_leaves_nothing_behind(city: AttackedCity) -> None:
    """Nothing durable changes, whatever is handed over ahead, and a restart forgets it."""
    window = city.window()
    honest = city.built(city.reports(window))
    before = stored(city)
    assert city.precheck(honest.header, honest.entries) == (honest.header.count, "")
    assert stored(city) == before
    city.restart()
    assert city.keyholder.releases.prechecks.windows() == []
    city.assert_released(honest, city.truth(window))


def test_the_newest_windows_are_held_up_to_a_bound(city: AttackedCity) -> None:
    """A flood of windows gains nothing: memory is bounded, and honest releases go through.

    Not even a release that was begun keeps what was held of an older window.
    """
    most = windows_held(city.parameters.policy.rules)
    windows = [city.window() for _ in range(most + 1)]
    releases = [city.built(city.reports(window)) for window in windows]
    prechecks, first = city.keyholder.releases.prechecks, releases[0]
    for release in releases:
        assert city.precheck(release.header, release.entries)[1] == ""
        held = prechecks.of(release.header)
        assert held is not None
        if release is first:
            oldest = held
        assert not city.release_messages([release.header_message()]).receipt
    assert prechecks.windows() == windows[1:]
    assert len(oldest._slots) == 0, "the memory of an older window is not free"
    assert city.precheck(first.header, first.entries) == (0, Reason.OVERLOADED)
    for window, release in zip(windows, releases, strict=True):
        city.assert_released(release, city.truth(window))
    assert prechecks.windows() == []


def test_a_settled_window_is_not_prechecked(city: AttackedCity) -> None:
    """Neither a released nor a refused window takes entries again."""
    window, other = city.window(), city.window()
    honest, refused = city.built(city.reports(window)), city.built(city.reports(other))
    city.assert_released(honest, city.truth(window))
    assert city.precheck(honest.header, honest.entries) == (0, Reason.WINDOW_PINNED)
    sums = sums_of(refused)
    spoilt = with_sums(refused, {lane: sums[(lane + 1) % len(sums)] for lane in sums})
    city.assert_refused(spoilt, city.reports(other), decryptions=1)
    assert city.precheck(refused.header, refused.entries) == (0, Reason.WINDOW_PINNED)


def test_entries_of_another_window_are_not_prechecked(city: AttackedCity) -> None:
    """Last window's entries gain nothing in this one, whose signatures they lack."""
    before, window = city.window(), city.window()
    stale, honest = city.built(city.reports(before)), city.built(city.reports(window))
    assert before == window - LENGTH
    assert city.precheck(honest.header, stale.entries) == (0, Reason.SIGNATURE_INVALID)
