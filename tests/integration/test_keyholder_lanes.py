"""A lane that does not open costs its own meters the window, and nobody else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gridveil.protocol.city import FailingLanes
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.release import OPENED_ENTRY_BYTES
from gridveil.verification import verify_total
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import refusal_of, unpublishable
from tests.support.lanes import LANES, METERS, LaneCity, decrypted, prepare_lanes, window_at
from tests.support.reports import BuiltRelease, build_report

ONCE = dict.fromkeys(range(LANES), 1)
ALL_BUT_ONE = [0, 1, 3, 4]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> LaneCity:
    return prepare_lanes(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: LaneCity, tmp_path: Path) -> LaneCity:
    return prepared.copy(tmp_path / "city")


def released(keyholder: KeyHolder, release: BuiltRelease) -> None:
    assert not keyholder.releases.release(release.messages()).replayed


def assert_refused(keyholder: KeyHolder, release: BuiltRelease) -> GridveilError:
    refusal = refusal_of(keyholder, release)
    assert refusal.reason is Reason.REFUSED
    return refusal


# One lane, and the others.


def test_a_lane_that_does_not_open_is_left_out_and_counted(city: LaneCity) -> None:
    with city.open() as keyholder:
        released(keyholder, city.release(0, failing=[2]))
        assert decrypted(city.keys(keyholder), 0) == ONCE
    city.assert_exact(0, left_out=[2])
    assert city.outcomes() == [("released", 1)]


def test_what_is_published_of_the_others_verifies_and_names_nobody_left_out(
    city: LaneCity,
) -> None:
    with city.open() as keyholder:
        released(keyholder, city.release(0, failing=[2]))
    total = city.assert_exact(0, left_out=[2])
    entries = (city.city.config.published / "entries" / str(window_at(0))).read_bytes()
    roster = {meter.meter_id: meter.member for meter in city.city.meters}
    assert verify_total(total, [entries], city.city.parameters, roster).meters == total.count
    shown = {entries[at : at + 16] for at in range(0, len(entries), OPENED_ENTRY_BYTES)}
    assert shown == set(city.ids_in(0, ALL_BUT_ONE))


def test_a_lane_beyond_its_meters_bounds_is_left_out(city: LaneCity) -> None:
    at = city.meters_in(0, [2])[0]
    most = 200_000 * len(city.meters_in(0, [2]))
    report = build_report(city.city.parameters, city.city.meters[at], window_at(0), [most + 1, 0])
    reports = [*city.reports(0)[:at], report, *city.reports(0)[at + 1 :]]
    release = replace(city, _reports={0: reports}).release(0)
    with city.open() as keyholder:
        released(keyholder, release)
    city.assert_exact(0, left_out=[2])
    assert city.outcomes() == [("released", 1)]


def test_a_lane_with_a_seal_that_does_not_open_is_left_out_undecrypted(city: LaneCity) -> None:
    with city.open() as keyholder:
        released(keyholder, city.release(0, unsealed=[2]))
        assert decrypted(city.keys(keyholder), 0) == dict.fromkeys(ALL_BUT_ONE, 1)
    city.assert_exact(0, left_out=[2])
    assert city.outcomes() == [("released", 0)]


def test_a_lane_left_out_is_never_tried_again(city: LaneCity) -> None:
    release = city.release(0, failing=[2])
    with city.open() as keyholder:
        released(keyholder, release)
        again = keyholder.releases.release(iter([release.header_message()]))
        assert again.replayed
        assert refusal_of(keyholder, city.release(0)).reason is Reason.WINDOW_PINNED
        assert decrypted(city.keys(keyholder), 0) == ONCE
    with city.open() as keyholder:
        assert keyholder.releases.release(iter([release.header_message()])).replayed
        assert refusal_of(keyholder, city.release(0)).reason is Reason.WINDOW_PINNED
        assert decrypted(city.keys(keyholder), 0) == {}
    city.assert_exact(0, left_out=[2])


# When the others are not enough.


def test_lanes_that_are_no_cohort_without_the_failing_ones_are_refused(city: LaneCity) -> None:
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[0, 2, 4]))
        assert decrypted(city.keys(keyholder), 0) == ONCE
    assert city.outcomes() == [("refused", 3)]
    assert city.city.totals() == {}
    assert list((city.city.config.published / "entries").iterdir()) == []


@pytest.mark.parametrize("stricter", [{"min_cohort": 400}, {"min_coverage_ppm": 950_000}])
def test_a_stricter_policy_of_today_holds_for_what_is_left_too(
    city: LaneCity, stricter: dict[str, object]
) -> None:
    with city.with_policy(**stricter).open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[2]))
    assert city.outcomes() == [("refused", 1)]


def test_nothing_is_decrypted_if_the_lanes_whose_seals_open_are_no_cohort(city: LaneCity) -> None:
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, unsealed=[0, 2, 4]))
        assert decrypted(city.keys(keyholder), 0) == {}
    assert city.outcomes() == [("refused", 0)]


# All or nothing.


def test_all_or_nothing_refuses_the_window_at_its_first_failing_lane(city: LaneCity) -> None:
    strict = city.with_policy(failing_lanes=FailingLanes.REFUSE_WINDOW)
    with strict.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[1, 3]))
        assert decrypted(city.keys(keyholder), 0) == {0: 1, 1: 1}
        assert_refused(keyholder, city.release(1, unsealed=[4]))
        assert decrypted(city.keys(keyholder), 1) == {}
        released(keyholder, city.release(2))
    assert city.outcomes() == [("refused", 1), ("refused", 0), ("released", 0)]


def test_all_or_nothing_that_meters_were_shown_holds_whatever_today_s_policy_says(
    tmp_path: Path,
) -> None:
    signed = prepare_lanes(tmp_path / "city", failing_lanes=FailingLanes.REFUSE_WINDOW)
    city = signed.with_policy(failing_lanes=FailingLanes.LEAVE_OUT)
    with city.open() as keyholder:
        assert_refused(keyholder, city.release(0, failing=[2]))
    assert city.outcomes() == [("refused", 1)]


# Refusals.


def test_refusals_of_every_kind_look_the_same(city: LaneCity) -> None:
    with city.open() as keyholder:
        seen = [
            assert_refused(keyholder, city.release(0, failing=[0, 2, 4])),
            assert_refused(keyholder, city.release(1, unsealed=[0, 2, 4])),
            assert_refused(keyholder, city.release(2, failing=[0, 1, 2])),
        ]
    assert len({(type(e), str(e), tuple(e.metadata.items())) for e in seen}) == 1
    assert city.outcomes() == [("refused", 3), ("refused", 0), ("refused", 2)]


# A crash in between.


def test_a_crash_decrypts_the_same_lanes_again_and_counts_them_once(
    prepared: LaneCity, tmp_path: Path
) -> None:
    undisturbed, city = prepared.copy(tmp_path / "undisturbed"), prepared.copy(tmp_path / "city")
    releases = [city.release(0, failing=[0, 1, 2, 3]), city.release(1, failing=[3])]
    with undisturbed.open() as keyholder:
        for release in releases:
            with suppress(GridveilError):
                keyholder.releases.release(release.messages())
    with city.open() as keyholder:
        assert_refused(keyholder, releases[0])
        with unpublishable(city.city, window_at(1)), pytest.raises(Unavailable):
            keyholder.releases.release(releases[1].messages())
        # The fourth lane spent the budget: the fifth stays closed, here and after the crash.
        first = decrypted(city.keys(keyholder), 1)
    assert first == {0: 1, 1: 1, 2: 1, 3: 1}
    assert city.outcomes() == [("refused", 4)]
    for _ in range(2):
        with unpublishable(city.city, window_at(1)), pytest.raises(Unavailable), city.open():
            pass
        assert city.outcomes() == [("refused", 4)]
    with city.open() as keyholder:
        assert keyholder.ring.decryptions(window_at(1)) == 1
    assert city.outcomes() == undisturbed.outcomes()
    ours, theirs = (
        [record.released.SerializeToString() for record in of.logged("released")]
        for of in (city, undisturbed)
    )
    assert ours == theirs


# Suspicions.


def test_what_a_window_showed_of_its_meters_is_recorded(city: LaneCity) -> None:
    liar = city.meters_in(0, [3])[0]
    with city.open() as keyholder:
        released(keyholder, city.release(0, failing=[2], unsealed=[3]))
        suspects = {s.meter_id: s for s in keyholder.suspicions.ranking(METERS)}
    proven = {meter_id for meter_id, s in suspects.items() if s.proven}
    assert proven == {city.city.meters[liar].meter_id}
    assert set(suspects) - proven == set(city.ids_in(0, [2]))


def test_a_suspicion_that_cannot_be_recorded_changes_no_outcome(city: LaneCity) -> None:
    with city.open() as keyholder, capture_logs() as logs:
        keyholder.suspicions.close()
        released(keyholder, city.release(0, failing=[2]))
    city.assert_exact(0, left_out=[2])
    assert any("suspicions" in line["event"] for line in logs)
