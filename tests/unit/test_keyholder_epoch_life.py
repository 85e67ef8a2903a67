"""When epochs begin, end before their time, and hand their windows on: pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.windows import ROTATION_LEAD_S, WindowRules
from gridveil_services.keyholder.epoch_life import (
    Life,
    border,
    gap,
    is_spent,
    life_of,
    serving,
)
from gridveil_services.keyholder.ledger import LoggedEpoch

LENGTH = 900
RULES = WindowRules(LENGTH, grace=300, early_leeway=60)
DAY = 86_400
FIRST = 20_000 * DAY
END = FIRST + DAY
NOON = FIRST + DAY // 2


def epoch(first: int = FIRST, end: int = END, **changes: object) -> LoggedEpoch:
    made = LoggedEpoch(first.to_bytes(16, "big"), bytes(32), first, end)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "life"),
    [
        (FIRST - 0.5, Life.PENDING),
        (FIRST, Life.ACTIVE),
        (END - 0.5, Life.ACTIVE),
        (END, Life.RETIRED),
        (END + 10 * DAY, Life.RETIRED),
    ],
)
def test_an_epoch_is_pending_then_active_then_retired(now: float, life: Life) -> None:
    assert life_of(epoch(), now) is life
    assert life_of(epoch(destroyed=True), now) is Life.DESTROYED


@pytest.mark.parametrize(("failures", "spent"), [(0, False), (4, False), (5, True), (9, True)])
def test_an_epoch_is_spent_at_its_budget_and_not_once_it_is_destroyed(
    failures: int, spent: bool
) -> None:
    assert is_spent(epoch(failures=failures), 5) is spent
    assert not is_spent(epoch(failures=failures, destroyed=True), 5)


@pytest.mark.parametrize(
    ("now", "first"),
    [
        # As a window is released after its grace, the next one's reporting is far away.
        (NOON + 300, NOON),
        (NOON + LENGTH - 60 - ROTATION_LEAD_S - 1, NOON),
        # From the lead before its first report on a window keeps its epoch.
        (NOON + LENGTH - 60 - ROTATION_LEAD_S, NOON + LENGTH),
        (NOON + LENGTH - 1, NOON + LENGTH),
        # Never outside the epoch's own windows.
        (FIRST - DAY, FIRST),
        (END + DAY, END),
        (END - 1, END),
    ],
)
def test_a_successor_serves_from_the_first_window_whose_parameters_are_not_fixed(
    now: float, first: int
) -> None:
    assert border(epoch(), RULES, now) == first


@given(
    now=st.floats(FIRST, END - 1),
    length=st.integers(1, 60).map(lambda minutes: 60 * minutes),
    leeway=st.floats(0, 0.99),
)
def test_no_report_for_the_successors_windows_can_be_under_the_old_keys(
    now: float, length: int, leeway: float
) -> None:
    """And none of the windows whose reports are still far away is lost."""
    rules = WindowRules(length, grace=300, early_leeway=int(leeway * length))
    first = border(epoch(first=FIRST // length * length, end=END * 2), rules, now)
    assert now < rules.opens(first)
    before = first - length
    assert before < FIRST or rules.opens(before) - ROTATION_LEAD_S <= now


def test_the_lead_of_short_windows_leaves_room_before_their_reports() -> None:
    short = WindowRules(60, grace=30, early_leeway=50)
    assert short.fixed(FIRST) == FIRST + 10 - 5
    assert RULES.fixed(FIRST) == FIRST + LENGTH - 60 - ROTATION_LEAD_S


def test_a_successor_fills_what_its_predecessor_left_of_the_day() -> None:
    ended = epoch(end=NOON, destroyed=True)
    tomorrow = epoch(first=END, end=END + DAY)
    assert gap([ended, tomorrow], NOON, DAY) == (NOON, END)
    assert serving([ended, tomorrow], NOON - LENGTH) == ended
    assert serving([ended, tomorrow], NOON) is None


def test_an_epoch_that_was_destroyed_before_it_began_leaves_all_its_windows() -> None:
    never = epoch(end=FIRST, destroyed=True)
    assert gap([never], FIRST, DAY) == (FIRST, END)
    later = epoch(first=NOON, end=NOON, destroyed=True)
    assert gap([later], FIRST, DAY) == (FIRST, END)
