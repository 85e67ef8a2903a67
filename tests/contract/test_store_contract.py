"""What every store of the aggregator owes it, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.protocol.ciphertext import add, to_bytes
from gridveil.protocol.city import CityParameters, Epoch
from gridveil.protocol.errors import Reason, WrongState
from gridveil.protocol.release import LaneSum
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil_services.aggregator.store.interface import (
    Committed,
    Equivocation,
    Known,
    LaneFull,
    Moved,
    NotOpen,
    Phase,
    StoredReceipt,
)
from tests.contract.stores import (
    CRYPTO,
    HARNESSES,
    KINDS,
    LENGTH,
    START,
    SqliteHarness,
    batch,
    made_up_report,
    make_window,
)
from tests.support.reports import city_policy


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteHarness]:
    made = HARNESSES[request.param](tmp_path)
    made.store.open_window(make_window())
    yield made
    made.close()


def expected_sum(meters: set[int], version: int = 0) -> bytes:
    return to_bytes(add([made_up_report(m, version)[1] for m in meters], CRYPTO))


def entries_of(meters: list[int]) -> bytes:
    return b"".join(sorted(made_up_report(meter)[0].entry for meter in meters))


def meter_id(meter: int) -> bytes:
    return made_up_report(meter)[0].meter_id


def digest(meter: int, version: int = 0) -> bytes:
    return made_up_report(meter, version)[0].digest


class TestCommit:
    def test_a_committed_report_is_known_with_its_first_time(self, harness: SqliteHarness) -> None:
        assert harness.store.commit([batch([1, 2])], 77) == [Committed(77)]
        known = harness.store.known(START, [meter_id(1), meter_id(2), meter_id(3)])
        assert known == {
            meter_id(1): StoredReceipt(digest(1), 77),
            meter_id(2): StoredReceipt(digest(2), 77),
        }
        assert harness.store.count(START) == 2

    def test_a_meter_is_known_if_it_is_looked_for_in_its_own_lane(
        self, harness: SqliteHarness
    ) -> None:
        assert harness.store.commit([batch([1]), batch([2, 4], lane=1)], 77) == [Committed(77)] * 2
        meters = [meter_id(meter) for meter in range(5)]
        lanes = {meter: place % 2 for place, meter in enumerate(meters)}
        lanes |= {meter_id(1): 0, meter_id(2): 1, meter_id(4): 1}
        for settled in (False, True):
            known = harness.store.known(START, meters, lanes.__getitem__)
            assert known.keys() == {meter_id(1), meter_id(2), meter_id(4)}
            assert known == harness.store.known(START, meters)
            if not settled:
                assert harness.store.seal(START)
                assert harness.store.settle(START, Phase.EXPIRED)

    def test_a_batch_with_a_known_meter_changes_nothing(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        assert harness.store.commit([batch([2, 1])], 78) == [
            Known({meter_id(1): StoredReceipt(digest(1), 77)})
        ]
        assert harness.store.known(START, [meter_id(2)]) == {}
        harness.store.seal(START)
        assert harness.store.lane_sums(START) == [LaneSum(0, 1, expected_sum({1}))]

    def test_another_report_of_a_known_meter_is_known_by_its_first(
        self, harness: SqliteHarness
    ) -> None:
        harness.store.commit([batch([1])], 77)
        assert harness.store.commit([batch([1], version=1)], 78) == [
            Known({meter_id(1): StoredReceipt(digest(1), 77)})
        ]

    def test_of_two_batches_in_one_call_the_first_counts(self, harness: SqliteHarness) -> None:
        outcomes = harness.store.commit([batch([1, 2]), batch([2, 3]), batch([4])], 77)
        assert outcomes == [
            Committed(77),
            Known({meter_id(2): StoredReceipt(digest(2), 77)}),
            Committed(77),
        ]
        harness.store.seal(START)
        assert harness.store.lane_sums(START) == [LaneSum(0, 3, expected_sum({1, 2, 4}))]

    def test_windows_and_lanes_are_apart(self, harness: SqliteHarness) -> None:
        later = START + LENGTH
        harness.store.open_window(make_window(later))
        harness.store.commit([batch([1]), batch([2], lane=1), batch([1], start=later)], 77)
        for start in (START, later):
            harness.store.seal(start)
        assert harness.store.lane_sums(START) == [
            LaneSum(0, 1, expected_sum({1})),
            LaneSum(1, 1, expected_sum({2})),
        ]
        assert harness.store.lane_sums(later) == [LaneSum(0, 1, expected_sum({1}))]

    def test_a_full_lane_says_how_many_fit(self, harness: SqliteHarness) -> None:
        later = START + LENGTH
        harness.store.open_window(make_window(later, lane_capacity=3))
        outcomes = harness.store.commit(
            [batch([1, 2], start=later), batch([3, 4], start=later), batch([5], start=later)], 77
        )
        assert outcomes == [Committed(77), LaneFull(1), Committed(77)]
        assert harness.store.commit([batch([6], start=later)], 78) == [LaneFull(0)]
        assert harness.store.count(later) == 3

    def test_a_window_that_was_not_opened_takes_nothing(self, harness: SqliteHarness) -> None:
        assert harness.store.commit([batch([1], start=START + LENGTH)], 77) == [NotOpen(None)]

    @pytest.mark.parametrize("split", [1, 2, 5])
    def test_everything_is_there_after_a_restart(self, harness: SqliteHarness, split: int) -> None:
        meters = list(range(12))
        for at in range(0, 12, split):
            harness.store.commit([batch(meters[at : at + split])], at)
            harness.reopen()
        assert harness.store.count(START) == 12
        assert len(harness.store.known(START, [meter_id(m) for m in meters])) == 12
        assert harness.store.commit([batch([3])], 99) == [
            Known({meter_id(3): StoredReceipt(digest(3), 3 // split * split)})
        ]
        harness.store.seal(START)
        assert harness.store.lane_sums(START) == [LaneSum(0, 12, expected_sum(set(meters)))]


SUCCESSOR = bytes([1]) * 32


class TestMoves:
    moved = make_window(parameters_digest=SUCCESSOR, lanes=3, closes=START + LENGTH + 200)

    def test_a_window_without_reports_comes_under_other_parameters(
        self, harness: SqliteHarness
    ) -> None:
        assert harness.store.move_window(self.moved)
        assert harness.store.window(START) == self.moved
        harness.reopen()
        assert harness.store.windows() == [self.moved]
        made = batch([1], parameters_digest=SUCCESSOR)
        assert harness.store.commit([made], 77) == [Committed(77)]

    def test_a_report_keeps_its_window_under_the_parameters_it_was_made_for(
        self, harness: SqliteHarness
    ) -> None:
        harness.store.commit([batch([1])], 77)
        assert not harness.store.move_window(self.moved)
        harness.reopen()
        assert not harness.store.move_window(self.moved)
        assert harness.store.window(START) == make_window()
        assert harness.store.commit([batch([2])], 78) == [Committed(78)]

    def test_a_batch_for_other_parameters_than_its_windows_is_not_stored(
        self, harness: SqliteHarness
    ) -> None:
        harness.store.move_window(self.moved)
        both = [batch([1]), batch([1], parameters_digest=SUCCESSOR), batch([2])]
        assert harness.store.commit(both, 77) == [Moved(), Committed(77), Moved()]
        assert harness.store.count(START) == 1

    @pytest.mark.parametrize("phase", [None, Phase.EMPTY, Phase.EXPIRED])
    def test_a_window_that_is_not_open_stays_what_it_is(
        self, harness: SqliteHarness, phase: Phase | None
    ) -> None:
        harness.store.seal(START)
        if phase is not None:
            harness.store.settle(START, phase)
        before = harness.store.windows()
        assert not harness.store.move_window(self.moved)
        assert not harness.store.move_window(make_window(START + LENGTH))
        assert harness.store.windows() == before


class TestWindows:
    def test_the_first_facts_of_a_window_stand(self, harness: SqliteHarness) -> None:
        assert harness.store.open_window(make_window(roster_version=9)) == make_window()
        harness.reopen()
        assert harness.store.window(START) == make_window()
        assert harness.store.windows() == [make_window()]

    def test_a_sealed_window_takes_nothing(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        assert harness.store.seal(START)
        assert harness.store.commit([batch([2])], 78) == [NotOpen(Phase.SEALED)]
        assert harness.store.lane_sums(START) == [LaneSum(0, 1, expected_sum({1}))]

    def test_only_one_seals(self, harness: SqliteHarness) -> None:
        assert harness.store.seal(START)
        assert not harness.store.seal(START)
        harness.reopen()
        assert not harness.store.seal(START)
        assert not harness.store.seal(START + LENGTH)

    def test_entries_ascend_by_lane_then_meter(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([5, 1, 3], lane=1), batch([9, 2])], 77)
        harness.store.commit([batch([4, 6]), batch([7], lane=1)], 78)
        harness.store.seal(START)
        assert b"".join(harness.store.entries(START)) == (
            entries_of([9, 2, 4, 6]) + entries_of([5, 1, 3, 7])
        )

    def test_entries_come_in_the_order_of_commits_from_any_place_on(
        self, harness: SqliteHarness
    ) -> None:
        later = START + LENGTH
        harness.store.open_window(make_window(later))
        assert harness.store.entries_after(START, 0) == (b"", 0)
        harness.store.commit([batch([9, 2])], 77)
        harness.store.commit([batch([4], start=later), batch([7], lane=1)], 78)
        first, place = harness.store.entries_after(START, 0)
        assert first == b"".join(made_up_report(meter)[0].entry for meter in (9, 2, 7))
        assert harness.store.entries_after(START, place) == (b"", place)
        harness.store.commit([batch([1])], 79)
        second, last = harness.store.entries_after(START, place)
        assert second == made_up_report(1)[0].entry
        harness.store.seal(START)
        assert harness.store.entries_after(START, place) == (second, last)
        assert harness.store.entries_after(later, 0)[0] == made_up_report(4)[0].entry

    def test_however_many_entries_there_are_each_comes_once(self, harness: SqliteHarness) -> None:
        meters = list(range(150))
        for meter in meters:
            harness.store.commit([batch([meter])], 77)
        found, place = b"", 0
        while (more := harness.store.entries_after(START, place))[0]:
            found, place = found + more[0], more[1]
        assert found == b"".join(made_up_report(meter)[0].entry for meter in meters)

    def test_a_place_stays_good_when_other_windows_are_settled(
        self, harness: SqliteHarness
    ) -> None:
        later = START + LENGTH
        harness.store.open_window(make_window(later))
        harness.store.commit([batch([1], start=later)], 77)
        _, place = harness.store.entries_after(later, 0)
        harness.store.commit([batch([1])], 78)
        harness.store.seal(START)
        harness.store.settle(START, Phase.RELEASED)
        harness.store.commit([batch([2], start=later)], 79)
        assert harness.store.entries_after(later, place)[0] == made_up_report(2)[0].entry

    def test_only_one_settles_and_only_what_is_sealed(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        assert not harness.store.settle(START, Phase.RELEASED)
        harness.store.seal(START)
        assert harness.store.settle(START, Phase.RELEASED)
        assert not harness.store.settle(START, Phase.REFUSED)
        harness.reopen()
        window = harness.store.window(START)
        assert window is not None
        assert window.phase is Phase.RELEASED

    @pytest.mark.parametrize("phase", [Phase.OPEN, Phase.SEALED])
    def test_a_window_settles_to_a_final_phase_only(
        self, harness: SqliteHarness, phase: Phase
    ) -> None:
        harness.store.seal(START)
        with pytest.raises(ValueError, match="final"):
            harness.store.settle(START, phase)

    def test_a_released_window_keeps_sums_and_receipts_but_no_entries(
        self, harness: SqliteHarness
    ) -> None:
        harness.store.commit([batch([1, 2])], 77)
        harness.store.seal(START)
        harness.store.settle(START, Phase.RELEASED)
        assert list(harness.store.entries(START)) == []
        assert harness.store.lane_sums(START) == [LaneSum(0, 2, expected_sum({1, 2}))]
        assert harness.store.known(START, [meter_id(1)])
        assert harness.store.count(START) == 2

    @pytest.mark.parametrize("phase", [Phase.REFUSED, Phase.EXPIRED])
    def test_a_window_without_a_total_keeps_receipts_only(
        self, harness: SqliteHarness, phase: Phase
    ) -> None:
        harness.store.commit([batch([1, 2])], 77)
        harness.store.seal(START)
        harness.store.settle(START, phase)
        assert list(harness.store.entries(START)) == []
        assert harness.store.lane_sums(START) == []
        assert harness.store.known(START, [meter_id(1)])

    def test_a_poisoned_window_takes_nothing_and_stays_so(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        assert harness.store.settle(START, Phase.POISONED)
        assert harness.store.commit([batch([2])], 78) == [NotOpen(Phase.POISONED)]
        harness.reopen()
        assert not harness.store.seal(START)
        assert harness.store.lane_sums(START) == []

    def test_a_forgotten_window_never_opens_again(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        harness.store.seal(START)
        harness.store.settle(START, Phase.RELEASED)
        assert harness.store.forget(START + LENGTH) == 0
        assert harness.store.forget(START + LENGTH + 1) == 1
        assert harness.store.window(START) is None
        assert harness.store.known(START, [meter_id(1)]) == {}
        for _ in range(2):
            with pytest.raises(WrongState) as refused:
                harness.store.open_window(make_window())
            assert refused.value.reason is Reason.WINDOW_CLOSED
            harness.reopen()

    def test_an_unsettled_window_is_not_forgotten(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1])], 77)
        assert harness.store.forget(START + 100 * LENGTH) == 0
        harness.store.seal(START)
        assert harness.store.forget(START + 100 * LENGTH) == 0
        assert harness.store.count(START) == 1


class TestEquivocations:
    def record(self, harness: SqliteHarness, meter: int, version: int) -> None:
        report, _ = made_up_report(meter, version)
        harness.store.record_equivocation(START, 0, report.meter_id, bytes(32), report.entry)

    def test_the_first_of_a_meter_is_kept_with_both_entries(self, harness: SqliteHarness) -> None:
        harness.store.commit([batch([1, 2])], 77)
        for version in (1, 2, 1):
            self.record(harness, 1, version)
        expected = Equivocation(
            START,
            meter_id(1),
            made_up_report(1)[0].entry,
            bytes(32),
            made_up_report(1, 1)[0].entry,
        )
        assert harness.store.equivocations(START) == [expected]
        harness.reopen()
        self.record(harness, 1, 3)
        assert harness.store.equivocations(START) == [expected]

    def test_none_is_kept_of_a_meter_without_a_report(self, harness: SqliteHarness) -> None:
        self.record(harness, 1, 1)
        assert harness.store.equivocations(START) == []

    def test_one_of_a_sealed_window_is_kept_and_of_a_settled_one_not(
        self, harness: SqliteHarness
    ) -> None:
        harness.store.commit([batch([1, 2])], 77)
        harness.store.seal(START)
        self.record(harness, 1, 1)
        harness.store.settle(START, Phase.RELEASED)
        self.record(harness, 2, 1)
        assert [kept.meter_id for kept in harness.store.equivocations(START)] == [meter_id(1)]


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("commit"),
            st.lists(
                st.tuples(st.sets(st.integers(0, 11), min_size=1, max_size=5), st.integers(0, 1)),
                min_size=1,
                max_size=3,
            ),
        ),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=8,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_any_grouping_and_restarts_give_the_sum_of_the_accepted_set(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]]
) -> None:
    harness = HARNESSES[kind](tmp_path_factory.mktemp("store"))
    harness.store.open_window(make_window())
    accepted: dict[int, int] = {}
    for at, (action, argument) in enumerate(steps):
        if action == "restart":
            harness.reopen()
            continue
        assert isinstance(argument, list)
        asked = [(sorted(meters), version) for meters, version in argument]
        batches = [
            batch([m for m in meters if m % 2 == lane], lane=lane, version=version)
            for meters, version in asked
            for lane in (0, 1)
            if any(m % 2 == lane for m in meters)
        ]
        outcomes = iter(harness.store.commit(batches, at))
        for meters, version in asked:
            for lane in (0, 1):
                of_lane = [m for m in meters if m % 2 == lane]
                if of_lane and isinstance(next(outcomes), Committed):
                    assert not accepted.keys() & set(of_lane)
                    accepted |= dict.fromkeys(of_lane, version)
    assert harness.store.count(START) == len(accepted)
    harness.store.seal(START)
    sums = {lane_sum.lane: lane_sum for lane_sum in harness.store.lane_sums(START)}
    for lane in (0, 1):
        of_lane = [made_up_report(m, v)[1] for m, v in accepted.items() if m % 2 == lane]
        assert (lane in sums) == bool(of_lane)
        if of_lane:
            assert sums[lane] == LaneSum(lane, len(of_lane), to_bytes(add(of_lane, CRYPTO)))
    entries = b"".join(harness.store.entries(START))
    assert len(entries) == 196 * len(accepted)
    harness.close()


class TestDocuments:
    def test_parameters_come_back_in_order_and_once(self, harness: SqliteHarness) -> None:
        made = [parameters(at) for at in (1, 2)]
        for at in (1, 0, 1):
            harness.documents.save_parameters(made[at], made[at].encode(), bytes([at]) * 64)
        harness.reopen()
        assert harness.documents.parameters() == [
            (made[1].encode(), b"\x01" * 64),
            (made[0].encode(), b"\x00" * 64),
        ]

    def test_parameters_of_a_held_window_are_not_pruned(self, harness: SqliteHarness) -> None:
        first, second = parameters(1), parameters(2)
        for document in (first, second):
            harness.documents.save_parameters(document, document.encode(), bytes(64))
        harness.store.open_window(make_window(START + LENGTH, parameters_digest=second.digest))
        harness.documents.prune(2**40)
        assert harness.documents.parameters() == [(second.encode(), bytes(64))]

    def test_a_roster_is_kept_through_its_versions(self, harness: SqliteHarness) -> None:
        a, b, c, b2 = member(b"a"), member(b"b"), member(b"c"), member(b"b", 2)
        harness.documents.save_roster(head(1, [a, b]), b"1" * 64, [], [b, a])
        harness.documents.save_roster(head(4, [a, c]), b"4" * 64, [b.meter_id], [c])
        harness.documents.save_roster(head(5, [b2, c]), b"5" * 64, [a.meter_id], [b2])
        harness.reopen()
        assert harness.documents.roster() == (head(5, [b2, c]), b"5" * 64)
        assert list(harness.documents.members()) == [b2, c]
        rows = [tuple(row) for row in harness.documents.memberships()]
        assert rows == [
            (a.meter_id, a.signing_key, 1, 5),
            (b.meter_id, b.signing_key, 1, 4),
            (b.meter_id, b2.signing_key, 5, None),
            (c.meter_id, c.signing_key, 4, None),
        ]

    def test_a_member_can_change_its_keys_within_a_version(self, harness: SqliteHarness) -> None:
        old, new = member(b"a"), member(b"a", 2)
        harness.documents.save_roster(head(1, [old]), bytes(64), [], [old])
        harness.documents.save_roster(head(2, [new]), bytes(64), [old.meter_id], [new])
        assert list(harness.documents.members()) == [new]

    def test_there_is_no_roster_at_first(self, harness: SqliteHarness) -> None:
        assert harness.documents.roster() is None
        assert list(harness.documents.members()) == []


def parameters(epoch: int) -> CityParameters:
    first = epoch * 86_400
    return CityParameters(
        city_policy(), Epoch(bytes([epoch]) * 16, first, first + 86_400, bytes(32), b"key")
    )


def member(name: bytes, seed: int = 1) -> Member:
    return Member(name * 16, bytes(SigningKey(bytes([seed]) * 32).verify_key), bytes([seed]) * 32)


def head(version: int, members: list[Member]) -> RosterVersion:
    return RosterVersion(bytes(16), version, START, len(members), roster_digest(sorted(members)))
