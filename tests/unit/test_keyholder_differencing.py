"""Cohorts that differ by few meters are told, however the difference came about."""

from __future__ import annotations

import random

import pytest

from gridveil_services.keyholder.differencing import FEW, REMEMBERED, Cohorts, Difference

SOURCE = random.Random(0)
METERS = [SOURCE.randbytes(16) for _ in range(300)]


def lanes(meters: list[bytes]) -> list[list[bytes]]:
    """In any lanes, in any order."""
    shuffled = random.Random(len(meters)).sample(meters, len(meters))
    return [shuffled[:100], shuffled[100:200], shuffled[200:]]


def last(*cohorts: list[bytes]) -> Difference | None:
    compared = Cohorts()
    return [compared.compare(lanes(cohort)) for cohort in cohorts][-1]


def test_the_first_total_is_compared_with_none() -> None:
    assert last(METERS) is None


def test_the_same_cohort_in_other_lanes_is_the_same() -> None:
    assert last(METERS, METERS[::-1]) is Difference.SAME


@pytest.mark.parametrize("missing", range(1, FEW))
def test_few_meters_that_are_kept_back_are_told(missing: int) -> None:
    assert last(METERS, METERS[missing:]) is Difference.FEW
    assert last(METERS[missing:], METERS) is Difference.FEW


def test_many_meters_are_no_matter() -> None:
    assert last(METERS, METERS[FEW:]) is Difference.MANY
    assert last(METERS[:200], METERS[100:]) is Difference.MANY


def test_a_meter_for_a_meter_is_a_difference_of_two() -> None:
    assert last(METERS[1:], METERS[:-1]) is Difference.FEW


def test_another_total_in_between_hides_nothing() -> None:
    assert last(METERS, METERS[50:], METERS[1:]) is Difference.FEW


def test_so_many_totals_are_remembered_and_no_more() -> None:
    between = [METERS[50 * n : 50 * n + 20] for n in range(1, REMEMBERED + 1)]
    assert last(METERS, *between[:-1], METERS[1:]) is Difference.FEW
    assert last(METERS, *between, METERS[1:]) is Difference.MANY


def test_the_nearest_of_those_that_differ_decides() -> None:
    assert last(METERS, METERS[100:], METERS) is Difference.MANY
    assert last(METERS[3:], METERS, METERS) is Difference.FEW
