"""So many refusals in 24 hours lock, and only an unlocking of that very lock opens again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.refusal_lock import DAY_MS, RefusalLock, check_refusals_per_day
from gridveil.protocol.v1.log_pb2 import (
    KeyHolderUnlocked,
    LogRecord,
    PolicyStated,
    ReleaseIntent,
    WindowExpired,
    WindowRefused,
    WindowReleased,
)

HOUR_MS = 3_600_000


def stated(budget: int) -> LogRecord:
    return LogRecord(policy_stated=PolicyStated(refusals_per_day=budget))


def refused(at_ms: int) -> LogRecord:
    return LogRecord(recorded_at_ms=at_ms, refused=WindowRefused())


def unlocked(locked_at: int) -> LogRecord:
    return LogRecord(keyholder_unlocked=KeyHolderUnlocked(locked_at_index=locked_at))


CLAIM = LogRecord(intent=ReleaseIntent())
OTHERS = [
    LogRecord(recorded_at_ms=7, released=WindowReleased(failures=3)),
    LogRecord(recorded_at_ms=7, expired=WindowExpired()),
    LogRecord(recorded_at_ms=7, intent=ReleaseIntent()),
]


def state(records: Sequence[LogRecord]) -> RefusalLock:
    lock = RefusalLock()
    for index, record in enumerate(records):
        assert lock.permits(record)
        lock = lock.after(index, record)
    return lock


@pytest.mark.parametrize("budget", [1, 2, 5, 96])
def test_the_refusal_that_spends_the_budget_locks_and_none_before(budget: int) -> None:
    records = [stated(budget), *(refused(at) for at in range(budget))]
    before, lock = state(records[:-1]), state(records)
    assert before.locked_at is None
    assert before.permits(CLAIM)
    assert lock.locked_at == budget
    assert not lock.permits(CLAIM)


def test_only_refusals_count() -> None:
    assert state([stated(1), *OTHERS]).locked_at is None


@pytest.mark.parametrize(("last", "locks"), [(DAY_MS - 1, True), (DAY_MS, False)])
def test_refusals_count_for_24_hours(last: int, locks: bool) -> None:
    records = [stated(3), refused(0), refused(HOUR_MS), refused(last)]
    assert (state(records).locked_at is not None) is locks


def test_time_alone_unlocks_nothing() -> None:
    locked = [stated(2), refused(0), refused(1)]
    much_later = LogRecord(recorded_at_ms=1000 * DAY_MS, expired=WindowExpired())
    assert not state([*locked, much_later]).permits(CLAIM)


def test_a_clock_that_went_back_makes_no_refusal_older() -> None:
    records = [stated(3), refused(9 * DAY_MS), refused(9 * DAY_MS), refused(0)]
    assert state(records).locked_at == 3


def test_another_budget_holds_from_the_next_refusal_on_and_never_unlocks() -> None:
    three = [stated(5), refused(0), refused(1), refused(2)]
    assert state([*three, stated(2)]).locked_at is None
    assert state([*three, stated(2), refused(3)]).locked_at == 5
    assert state([*three, stated(3), refused(3), stated(96)]).locked_at == 5


def test_what_was_refused_while_locked_is_not_another_lock() -> None:
    assert state([stated(1), refused(0), refused(1)]).locked_at == 1


@pytest.mark.parametrize("named", [0, 2, 3, 2**64 - 1])
def test_only_the_lock_that_there_is_can_be_unlocked(named: int) -> None:
    assert not state([stated(1), refused(0)]).permits(unlocked(named))
    assert not state([stated(1)]).permits(unlocked(named))


def test_after_an_unlocking_the_count_begins_anew() -> None:
    first = [stated(2), refused(0), refused(1), unlocked(2)]
    assert state(first).permits(CLAIM)
    assert state([*first, refused(2)]).permits(CLAIM)
    again = state([*first, refused(2), refused(3)])
    assert again.locked_at == 5
    assert not again.permits(unlocked(2)), "an old unlocking opens no later lock"


def test_a_log_without_a_budget_never_locks() -> None:
    assert state([refused(0)] * 200).locked_at is None


def test_a_budget_beyond_the_largest_is_not_permitted() -> None:
    assert RefusalLock().permits(stated(96))
    assert not RefusalLock().permits(stated(97))


@pytest.mark.parametrize("budget", [-1, 0, 97])
def test_a_budget_that_cannot_be_is_named(budget: int) -> None:
    with pytest.raises(MalformedInput) as refusal:
        check_refusals_per_day(budget)
    assert refusal.value.reason is Reason.CONFIG_INVALID
    assert refusal.value.metadata == {"field": "refusals_per_day"}


@given(
    budget=st.integers(1, 6),
    gaps=st.lists(st.integers(0, 12 * HOUR_MS), max_size=40),
    unlock=st.booleans(),
)
def test_no_24_hours_between_two_unlockings_see_more_refusals_than_the_budget(
    budget: int, gaps: list[int], unlock: bool
) -> None:
    """What the rule is for: claims that the lock permits, counted over every 24 hours."""
    lock, now, size = RefusalLock().after(0, stated(budget)), 0, 1
    probes: list[int] = []
    for gap in gaps:
        now += gap
        if not lock.permits(CLAIM):
            if not unlock:
                continue
            assert lock.locked_at is not None
            lock, probes = lock.after(size, unlocked(lock.locked_at)), []
            size += 1
        lock = lock.after(size, refused(now))
        size += 1
        probes.append(now)
        assert sum(now - DAY_MS < at for at in probes) <= budget
    assert (lock.locked_at is not None) == (
        bool(probes) and sum(probes[-1] - DAY_MS < at for at in probes) == budget
    )
