"""What is said to a report, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridveil.protocol.errors import Conflict, Exhausted, GridveilError, Reason, Unavailable
from gridveil.protocol.signing import sign
from gridveil.protocol.windows import EXPIRY_S
from gridveil_services.aggregator import rules
from gridveil_services.aggregator.city import Membership, ParametersBook, Roster, SignedParameters
from gridveil_services.aggregator.follower import plan_window, settle_s, windows_to_open
from gridveil_services.aggregator.releaser import verdict
from gridveil_services.aggregator.sealer import is_complete
from gridveil_services.aggregator.store.interface import MembershipRow, Phase, StoredReceipt
from tests.support.aggregators import LENGTH, roster_of
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import WINDOW, make_members

OPENS, CLOSES = WINDOW + LENGTH - 60, WINDOW + LENGTH + 300


@pytest.fixture(scope="module")
def keys() -> CityKeys:
    return city_keys()


@pytest.fixture
def book(keys: CityKeys) -> ParametersBook:
    made = ParametersBook()
    made.add(SignedParameters(keys.parameters, b"document", b"signature"))
    return made


def reason_of(refused: pytest.ExceptionInfo[GridveilError]) -> Reason:
    return refused.value.reason


class TestParameters:
    def test_known_ones_are_found(self, keys: CityKeys, book: ParametersBook) -> None:
        found = rules.parameters_of(book, keys.parameters.digest, WINDOW)
        assert found is keys.parameters

    def test_unknown_ones_are_refused_with_the_epoch_in_force(
        self, keys: CityKeys, book: ParametersBook
    ) -> None:
        with pytest.raises(GridveilError) as refused:
            rules.parameters_of(book, bytes(32), WINDOW)
        assert reason_of(refused) is Reason.KEY_EPOCH
        assert refused.value.metadata == {"epoch": keys.parameters.epoch.epoch_id.hex()}

    def test_while_none_are_known_the_caller_is_to_try_again(self) -> None:
        with pytest.raises(Unavailable) as refused:
            rules.parameters_of(ParametersBook(), bytes(32), WINDOW)
        assert reason_of(refused) is Reason.KEYHOLDER_UNAVAILABLE
        assert refused.value.retry_after_s

    def test_the_newest_epoch_that_serves_a_window_is_in_force(self) -> None:
        first = city_keys()
        rotated = city_keys(first_window=WINDOW + LENGTH, name=b"epoch-0000000001")
        book = ParametersBook()
        for keys in (rotated, first):
            book.add(SignedParameters(keys.parameters, b"", b""))
        for start, expected in ((WINDOW, first), (WINDOW + LENGTH, rotated)):
            serving = book.serving(start)
            assert serving is not None
            assert serving.parameters == expected.parameters
        assert book.serving(WINDOW - LENGTH) is None
        book.forget([first.parameters.digest])
        assert book.serving(WINDOW) is None


class TestAuthor:
    meter = make_members(1)[0]
    transcript = b"a transcript"

    def check(self, membership: Membership | None, signature: bytes) -> None:
        rules.check_author(membership, 3, self.transcript, signature)

    def membership(self, until: int | None = None) -> Membership:
        return Membership(self.meter.member.signing_key, 1, until, None)

    def test_an_enrolled_meter_that_signed_is_the_author(self) -> None:
        self.check(self.membership(), sign(self.meter.signing_key, self.transcript))
        self.check(self.membership(until=4), sign(self.meter.signing_key, self.transcript))

    def test_unknown_meters_and_wrong_signatures_are_told_the_same(self) -> None:
        good = sign(self.meter.signing_key, self.transcript)
        other = sign(make_members(1, seed=9)[0].signing_key, self.transcript)
        refusals = []
        for membership, signature in ((None, good), (None, other), (self.membership(), other)):
            with pytest.raises(GridveilError) as refused:
                self.check(membership, signature)
            refusals.append((type(refused.value), str(refused.value), refused.value.metadata))
        assert refusals[0] == refusals[1] == refusals[2]
        assert refusals[0][1].startswith("SIGNATURE_INVALID")

    def test_a_withdrawn_meter_is_told_so_only_if_it_signed(self) -> None:
        for version in (3, 2):
            with pytest.raises(GridveilError) as refused:
                self.check(
                    self.membership(until=version), sign(self.meter.signing_key, self.transcript)
                )
            assert reason_of(refused) is Reason.METER_REVOKED
        with pytest.raises(GridveilError) as refused:
            self.check(self.membership(until=2), bytes(64))
        assert reason_of(refused) is Reason.SIGNATURE_INVALID


class TestRoster:
    def test_each_version_sees_the_enrolment_of_its_time(self) -> None:
        meter = b"m" * 16
        roster = Roster(
            [MembershipRow(meter, b"a" * 32, 2, 4), MembershipRow(meter, b"b" * 32, 6, None)]
        )
        seen = [roster.find(meter, version) for version in range(1, 8)]
        assert [m and (m.signing_key[:1], m.until) for m in seen] == [
            None,
            (b"a", 4),
            (b"a", 4),
            (b"a", 4),
            (b"a", 4),
            (b"b", None),
            (b"b", None),
        ]

    def test_a_change_takes_effect_with_its_version(self) -> None:
        stays, leaves, comes = make_members(3)
        roster = roster_of([stays, leaves])
        assert roster.head is not None
        unknown = b"u" * 16
        roster.apply(replace(roster.head, version=2), [leaves.meter_id, unknown], [comes.member])
        before = [roster.find(m.meter_id, 1) for m in (stays, leaves, comes)]
        after = [roster.find(m.meter_id, 2) for m in (stays, leaves, comes)]
        assert [m and m.until for m in before] == [None, 2, None]
        assert before[2] is None
        assert [m and m.until for m in after] == [None, 2, None]
        assert after[2] is not None


class TestKnown:
    def test_the_same_report_is_a_duplicate_and_another_one_equivocates(self) -> None:
        rules.check_same(StoredReceipt(b"d" * 32, 7), b"d" * 32)
        with pytest.raises(Conflict) as refused:
            rules.check_same(StoredReceipt(b"d" * 32, 7), b"e" * 32)
        assert refused.value.reason is Reason.EQUIVOCATION
        assert refused.value.metadata == {"resource": (b"d" * 32).hex()}


class TestWindow:
    def refusal(
        self,
        book: ParametersBook,
        keys: CityKeys,
        now: float,
        *,
        start: int = WINDOW,
        phase: Phase | None = Phase.OPEN,
        **facts: object,
    ) -> Reason | None:
        head = roster_of(make_members(2)).head
        assert head is not None
        planned = plan_window(keys.parameters, head, start)
        open_window = replace(planned, **facts)  # type: ignore[arg-type]
        window = None if phase is None else replace(open_window, phase=phase)
        try:
            rules.check_window(book, window, start, keys.parameters, now)
        except GridveilError as refused:
            return refused.reason
        return None

    def test_reports_are_taken_from_just_before_the_end_until_the_grace_is_over(
        self, book: ParametersBook, keys: CityKeys
    ) -> None:
        assert self.refusal(book, keys, OPENS - 0.001) is Reason.WINDOW_TOO_EARLY
        assert self.refusal(book, keys, OPENS) is None
        assert self.refusal(book, keys, CLOSES - 0.001) is None
        assert self.refusal(book, keys, CLOSES) is Reason.WINDOW_CLOSED

    @pytest.mark.parametrize(
        ("phase", "expected"),
        [
            (Phase.SEALED, Reason.WINDOW_CLOSED),
            (Phase.RELEASED, Reason.WINDOW_RELEASED),
            (Phase.REFUSED, Reason.WINDOW_CLOSED),
            (Phase.EXPIRED, Reason.WINDOW_CLOSED),
            (Phase.EMPTY, Reason.WINDOW_CLOSED),
            (Phase.POISONED, Reason.WINDOW_POISONED),
        ],
    )
    def test_a_sealed_window_takes_nothing_whatever_the_clock_says(
        self, book: ParametersBook, keys: CityKeys, phase: Phase, expected: Reason
    ) -> None:
        for now in (OPENS - 1, OPENS, CLOSES):
            assert self.refusal(book, keys, now, phase=phase) is expected

    def test_a_window_that_is_not_known_yet_is_worth_another_try(
        self, book: ParametersBook, keys: CityKeys
    ) -> None:
        assert self.refusal(book, keys, OPENS, phase=None) is Reason.KEYHOLDER_UNAVAILABLE
        assert self.refusal(book, keys, OPENS - 1, phase=None) is Reason.WINDOW_TOO_EARLY
        assert self.refusal(book, keys, CLOSES, phase=None) is Reason.WINDOW_CLOSED

    def test_a_window_starts_where_windows_start(
        self, book: ParametersBook, keys: CityKeys
    ) -> None:
        found = self.refusal(book, keys, OPENS, start=WINDOW + 1, phase=None)
        assert found is Reason.WINDOW_MISALIGNED

    def test_parameters_of_another_epoch_than_the_windows_are_refused(
        self, book: ParametersBook, keys: CityKeys
    ) -> None:
        found = self.refusal(book, keys, OPENS, parameters_digest=bytes(32))
        assert found is Reason.KEY_EPOCH

    def test_only_a_poisoned_window_is_not_whole(self, keys: CityKeys) -> None:
        head = roster_of(make_members(2)).head
        assert head is not None
        planned = plan_window(keys.parameters, head, WINDOW)
        for phase in Phase:
            window = replace(planned, phase=phase)
            if phase is Phase.POISONED:
                with pytest.raises(GridveilError):
                    rules.check_whole(window)
            else:
                rules.check_whole(window)
        rules.check_whole(None)

    def test_a_full_lane_has_no_time_to_retry_at(self) -> None:
        refused = rules.lane_full()
        assert isinstance(refused, Exhausted)
        assert refused.retry_after_s is None


class TestTime:
    def test_windows_to_open_are_those_that_take_reports_or_will(self, keys: CityKeys) -> None:
        rules_ = keys.parameters.policy.rules
        assert list(windows_to_open(rules_, WINDOW + 9.9)) == [WINDOW - LENGTH]
        assert list(windows_to_open(rules_, WINDOW + 10)) == [WINDOW - LENGTH, WINDOW]
        assert list(windows_to_open(rules_, WINDOW + 299)) == [WINDOW - LENGTH, WINDOW]
        assert list(windows_to_open(rules_, WINDOW + 300)) == [WINDOW]

    def test_a_roster_is_asked_for_before_the_window_opens(self, keys: CityKeys) -> None:
        base = keys.parameters.policy.rules
        for leeway in (0, 60, 890, 899):
            rules_ = replace(base, early_leeway=leeway)
            assert 0 < settle_s(rules_) <= min(10, rules_.opens(WINDOW) - WINDOW)

    def test_a_window_is_complete_when_it_closes_or_all_have_reported(self, keys: CityKeys) -> None:
        head = roster_of(make_members(3)).head
        assert head is not None
        window = plan_window(keys.parameters, head, WINDOW)
        assert not is_complete(window, 2, CLOSES - 1)
        assert is_complete(window, 3, WINDOW + LENGTH)
        assert is_complete(window, 0, CLOSES)
        assert not is_complete(replace(window, enrolled=0), 0, CLOSES - 1)

    @pytest.mark.parametrize(
        ("reason", "now", "expected"),
        [
            (Reason.REFUSED, CLOSES, Phase.REFUSED),
            (Reason.WINDOW_PINNED, CLOSES, Phase.REFUSED),
            (Reason.WINDOW_EXPIRED, CLOSES, Phase.EXPIRED),
            (Reason.COHORT_TOO_SMALL, CLOSES, Phase.REFUSED),
            (Reason.COHORT_TOO_SMALL, CLOSES - 1, None),
            (Reason.KEY_EPOCH, CLOSES, Phase.EXPIRED),
            (Reason.KEY_EPOCH, CLOSES - 1, None),
            (Reason.WINDOW_OPEN, CLOSES, None),
            (Reason.KEYHOLDER_UNAVAILABLE, CLOSES, None),
            (Reason.KEYHOLDER_LOCKED, CLOSES + EXPIRY_S - 1, None),
            (Reason.ROSTER_VERSION, CLOSES, None),
            (Reason.PARTIAL_CORRUPT, CLOSES, None),
            (Reason.BUDGET_EXHAUSTED, CLOSES, Phase.REFUSED),
            (Reason.OVERLOADED, CLOSES + EXPIRY_S, None),
        ],
    )
    def test_only_final_answers_settle_a_window(
        self, keys: CityKeys, reason: Reason, now: float, expected: Phase | None
    ) -> None:
        head = roster_of(make_members(3)).head
        assert head is not None
        window = plan_window(keys.parameters, head, WINDOW)
        assert verdict(GridveilError(reason, "no"), window, now) is expected
