"""The release policy, one clause at a time: each case breaks one thing and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridveil.protocol.city import CityParameters, CityPolicy, Epoch, FailingLanes
from gridveil.protocol.errors import Conflict, GridveilError, Reason, Unavailable, WrongState
from gridveil.protocol.release import ReleaseHeader
from gridveil.protocol.roster import RosterVersion
from gridveil_services.keyholder.policy import (
    UNCLAIMED,
    Facts,
    Status,
    WindowState,
    check_release,
    failure_budget,
    is_all_or_nothing,
    is_cohort,
    is_settled_by,
)
from tests.support.reports import CITY_ID, WINDOW, city_policy

POLICY = city_policy(min_cohort=150, colluding=50)
PARAMETERS = CityParameters(
    POLICY, Epoch(bytes(16), WINDOW - 900, WINDOW + 1800, bytes([9]) + bytes(31), b"public key")
)
ROSTER = RosterVersion(CITY_ID, 3, WINDOW, 200, bytes(32))
CLOSES = WINDOW + 900 + 300
HEADER = ReleaseHeader(CITY_ID, PARAMETERS.digest, WINDOW, 3, 2, 180)
FACTS = Facts(float(CLOSES), UNCLAIMED, PARAMETERS, ROSTER, POLICY)
DIGEST = bytes([1] * 32)


def test_a_release_that_keeps_every_clause_is_taken() -> None:
    check_release(HEADER, FACTS)


def outside_epoch() -> CityParameters:
    epoch = replace(PARAMETERS.epoch, first_window=WINDOW + 900)
    return CityParameters(POLICY, epoch)


@pytest.mark.parametrize(
    ("header", "facts", "reason"),
    [
        ({"window_start": WINDOW + 1}, {}, Reason.WINDOW_MISALIGNED),
        ({"window_start": 0}, {}, Reason.WINDOW_MISALIGNED),
        ({"window_start": -900}, {}, Reason.WINDOW_MISALIGNED),
        ({"window_start": 900 * 2**50}, {}, Reason.WINDOW_MISALIGNED),
        ({}, {"state": WindowState(Status.PENDING, DIGEST)}, Reason.WINDOW_PINNED),
        ({}, {"state": WindowState(Status.RELEASED, DIGEST)}, Reason.WINDOW_PINNED),
        ({}, {"now": WINDOW + 900 + 86_400.0}, Reason.WINDOW_EXPIRED),
        ({}, {"locked": True}, Reason.KEYHOLDER_LOCKED),
        ({}, {"locked": True, "spent": True}, Reason.KEYHOLDER_LOCKED),
        ({}, {"parameters": None}, Reason.KEY_EPOCH),
        ({}, {"parameters": outside_epoch()}, Reason.KEY_EPOCH),
        ({}, {"now": CLOSES - 0.001}, Reason.WINDOW_OPEN),
        ({"count": 200}, {"now": WINDOW + 899.999}, Reason.WINDOW_OPEN),
        ({}, {"roster": None}, Reason.ROSTER_VERSION),
        ({"roster_version": 2}, {}, Reason.ROSTER_VERSION),
        ({"roster_version": 4}, {}, Reason.ROSTER_VERSION),
        ({"lanes": 1}, {}, Reason.COHORT_INVALID),
        ({"lanes": 3}, {}, Reason.COHORT_INVALID),
        ({"count": 201}, {}, Reason.COHORT_INVALID),
        ({"count": 149}, {}, Reason.COHORT_TOO_SMALL),
        ({"count": 0}, {}, Reason.COHORT_TOO_SMALL),
        ({"count": 159}, {}, Reason.COHORT_TOO_SMALL),  # coverage 0.795 of 0.8
        (
            {"count": 160},
            {"policy": city_policy(min_cohort=161, colluding=50)},
            Reason.COHORT_TOO_SMALL,
        ),
        ({"count": 180}, {"policy": replace(POLICY, min_coverage_ppm=900_001)}, "COHORT_TOO_SMALL"),
    ],
)
def test_one_broken_clause_refuses_the_release(
    header: dict[str, int], facts: dict[str, object], reason: str
) -> None:
    with pytest.raises(GridveilError) as refusal:
        check_release(
            replace(HEADER, **header),  # type: ignore[arg-type]
            replace(FACTS, **facts),  # type: ignore[arg-type]
        )
    assert refusal.value.reason == reason


def test_a_small_roster_needs_no_less_than_the_cohort() -> None:
    roster = replace(ROSTER, count=149)
    with pytest.raises(WrongState) as refusal:
        check_release(replace(HEADER, count=149), replace(FACTS, roster=roster))
    assert refusal.value.reason is Reason.COHORT_TOO_SMALL


def test_cohort_and_coverage_are_refused_alike_and_without_numbers() -> None:
    answers = set()
    for count in (149, 159):
        with pytest.raises(WrongState) as refusal:
            check_release(replace(HEADER, count=count), FACTS)
        answers.add((str(refusal.value), tuple(refusal.value.metadata.items())))
    assert len(answers) == 1
    assert not any(character.isdigit() for character in answers.pop()[0])


def test_exactly_the_cohort_and_the_coverage_are_enough() -> None:
    check_release(replace(HEADER, count=160), FACTS)


def test_when_everybody_has_reported_the_window_may_be_released_at_its_end() -> None:
    check_release(replace(HEADER, count=200), replace(FACTS, now=float(WINDOW + 900)))


def test_an_early_release_is_told_when_the_window_closes() -> None:
    with pytest.raises(WrongState) as refusal:
        check_release(HEADER, replace(FACTS, now=WINDOW + 900.0))
    assert refusal.value.reason is Reason.WINDOW_OPEN
    assert refusal.value.metadata == {"closes": str(CLOSES)}


def test_a_window_that_nothing_claimed_is_not_settled() -> None:
    assert not is_settled_by(UNCLAIMED, DIGEST)


def test_the_same_release_is_settled_again() -> None:
    assert is_settled_by(WindowState(Status.RELEASED, DIGEST), DIGEST)


def test_while_locked_only_what_is_over_is_told_so() -> None:
    """Nothing is said of a window that may yet be claimed."""
    locked = replace(FACTS, locked=True)
    answers = set()
    for header, facts in (
        (HEADER, locked),
        (replace(HEADER, roster_version=9, count=1, lanes=7), locked),
        (HEADER, replace(locked, now=0.0, parameters=None, roster=None)),
    ):
        with pytest.raises(Unavailable) as refusal:
            check_release(header, facts)
        answers.add((refusal.value.reason, refusal.value.message, refusal.value.retry_after_s))
    assert len(answers) == 1
    assert answers.pop()[2] is None
    for over, reason in (
        ({"now": WINDOW + 900 + 86_400.0}, Reason.WINDOW_EXPIRED),
        ({"state": WindowState(Status.RELEASED, DIGEST)}, Reason.WINDOW_PINNED),
    ):
        with pytest.raises(GridveilError) as told:
            check_release(HEADER, replace(locked, **over))
        assert told.value.reason is reason


@pytest.mark.parametrize("status", [Status.PENDING, Status.RELEASED, Status.REFUSED])
def test_another_release_of_a_claimed_window_is_refused_for_ever(status: Status) -> None:
    with pytest.raises(Conflict) as refusal:
        is_settled_by(WindowState(status, DIGEST), bytes(32))
    assert refusal.value.reason is Reason.WINDOW_PINNED


def test_a_refused_release_stays_refused() -> None:
    with pytest.raises(WrongState) as refusal:
        is_settled_by(WindowState(Status.REFUSED, DIGEST), DIGEST)
    assert refusal.value.reason is Reason.REFUSED


def test_an_expired_window_stays_expired() -> None:
    with pytest.raises(WrongState) as refusal:
        is_settled_by(WindowState(Status.EXPIRED), DIGEST)
    assert refusal.value.reason is Reason.WINDOW_EXPIRED


def test_a_claim_without_outcome_is_to_be_asked_again_later() -> None:
    with pytest.raises(Unavailable) as refusal:
        is_settled_by(WindowState(Status.PENDING, DIGEST), DIGEST)
    assert refusal.value.retry_after_s


LENIENT = city_policy(min_cohort=150, colluding=50, min_coverage_ppm=800_000, failure_budget=5)
STRICT = replace(LENIENT, min_cohort=170, min_coverage_ppm=900_000, failure_budget=2)


@pytest.mark.parametrize(("signed", "own"), [(LENIENT, STRICT), (STRICT, LENIENT)])
def test_of_two_policies_each_clause_of_the_stricter_one_holds(
    signed: CityPolicy, own: CityPolicy
) -> None:
    assert is_cohort(170, 180, signed, own)
    assert not is_cohort(169, 180, signed, own)
    assert is_cohort(180, 200, signed, own)
    assert not is_cohort(179, 200, signed, own)
    assert failure_budget(signed, own) == 2


def test_either_policy_alone_makes_it_all_or_nothing() -> None:
    strict = replace(LENIENT, failing_lanes=FailingLanes.REFUSE_WINDOW)
    assert is_all_or_nothing(strict, LENIENT)
    assert is_all_or_nothing(LENIENT, strict)
    assert not is_all_or_nothing(LENIENT, LENIENT)


SPENT = replace(FACTS, parameters=None, spent=True)


def test_a_window_of_a_spent_epoch_may_be_settled_without_its_keys_or_a_cohort() -> None:
    check_release(HEADER, SPENT)
    check_release(replace(HEADER, count=1), SPENT)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"now": CLOSES - 0.001}, Reason.WINDOW_OPEN),
        ({"now": WINDOW + 900 + 86_400.0}, Reason.WINDOW_EXPIRED),
        ({"roster": None}, Reason.ROSTER_VERSION),
        ({"state": WindowState(Status.RELEASED, DIGEST)}, Reason.WINDOW_PINNED),
    ],
)
def test_a_window_of_a_spent_epoch_is_settled_neither_early_nor_twice(
    facts: dict[str, object], reason: Reason
) -> None:
    with pytest.raises(GridveilError) as refusal:
        check_release(HEADER, replace(SPENT, **facts))  # type: ignore[arg-type]
    assert refusal.value.reason is reason
