"""A watch delivers every settled window once, whatever breaks in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import (
    Exhausted,
    GridveilError,
    NotAllowed,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.windows import EXPIRY_S
from gridveil.settlements import WatchState

LENGTH = 900
UNREACHABLE = Unavailable(Reason.UNREACHABLE, "gone")


class Service:
    """The promise of WatchTotals: a replay in order of window, then the order of settlement."""

    def __init__(self) -> None:
        self.settled: list[int] = []

    def connect(self, from_window: int) -> tuple[list[int], int]:
        replay = sorted(w for w in self.settled if from_window and w >= from_window)
        return replay, len(self.settled)


@given(
    st.permutations([LENGTH * at for at in range(100, 130)]),
    st.lists(st.sampled_from(["settle", "cut", "read"]), max_size=120),
    st.integers(95, 135),
)
def test_nothing_is_missed_and_nothing_repeated(
    order: list[int], events: list[str], first: int
) -> None:
    service, state = Service(), WatchState(first * LENGTH, None)
    delivered: list[int] = []
    asked = state.resume_from
    pending, place = service.connect(asked)

    def read(most: int) -> None:
        nonlocal pending, place
        fresh = [w for w in service.settled[place:] if w >= asked]
        pending, place = pending + fresh, len(service.settled)
        for window in pending[:most]:
            if state.is_new(window):
                delivered.append(window)
        pending = pending[most:]

    for event in events:
        if event == "settle" and order:
            service.settled.append(order.pop())
        elif event == "read":
            read(1)
        elif event == "cut":
            state.failed(UNREACHABLE, 0.0)
            asked = state.resume_from
            pending, place = service.connect(asked)
    read(1_000)

    expected = [window for window in service.settled if window >= first * LENGTH]
    assert sorted(delivered) == sorted(expected)


@given(st.lists(st.integers(1, 2000), max_size=40))
def test_what_must_be_remembered_stays_bounded(steps: list[int]) -> None:
    state, window = WatchState(LENGTH, None), LENGTH
    for step in steps:
        window += step * LENGTH
        assert state.is_new(window)
        assert LENGTH <= state.resume_from <= window
        assert window - state.resume_from <= 2 * EXPIRY_S


def test_a_watch_for_new_windows_never_goes_back() -> None:
    state = WatchState(0, None)
    assert state.resume_from == 0
    assert state.is_new(500 * LENGTH)
    assert state.resume_from == 500 * LENGTH


def test_waits_grow_with_failures_and_are_bounded() -> None:
    state = WatchState(0, None)
    waits = [state.failed(UNREACHABLE, 0.0) for _ in range(12)]
    assert 0.1 <= waits[0] <= 0.2
    assert all(wait <= 10 for wait in waits)
    assert all(wait >= 5 for wait in waits[-3:])


def test_a_delivery_starts_the_waits_anew() -> None:
    state = WatchState(0, None)
    for _ in range(12):
        state.failed(UNREACHABLE, 0.0)
    state.is_new(LENGTH)
    assert state.failed(UNREACHABLE, 0.0) <= 0.2


def test_the_service_may_ask_for_more_patience() -> None:
    busy = Exhausted(Reason.OVERLOADED, "busy", retry_after_s=33.0)
    assert WatchState(0, None).failed(busy, 0.0) == 33.0


def test_the_service_may_not_ask_for_all_patience_there_is() -> None:
    busy = Exhausted(Reason.OVERLOADED, "busy", retry_after_s=1e12)
    assert WatchState(0, None).failed(busy, 0.0) == 300.0


def test_patience_ends_when_it_was_limited() -> None:
    state = WatchState(0, give_up_after_s=30)
    state.failed(UNREACHABLE, 100.0)
    state.failed(UNREACHABLE, 129.0)
    with pytest.raises(Unavailable):
        state.failed(UNREACHABLE, 130.0)


def test_a_connection_that_held_restores_patience() -> None:
    state = WatchState(0, give_up_after_s=30)
    state.failed(UNREACHABLE, 100.0)
    state.connected(110.0)
    state.failed(UNREACHABLE, 500.0)
    state.failed(UNREACHABLE, 529.0)
    with pytest.raises(Unavailable):
        state.failed(UNREACHABLE, 530.0)


@pytest.mark.parametrize(
    "error",
    [
        NotAllowed(Reason.ROLE_NOT_ALLOWED, "no"),
        NotAuthentic(Reason.KEY_NOT_PINNED, "forged"),
        GridveilError(Reason.INTERNAL, "broken"),
    ],
)
def test_what_waiting_does_not_heal_is_raised(error: GridveilError) -> None:
    with pytest.raises(GridveilError) as raised:
        WatchState(0, None).failed(error, 0.0)
    assert raised.value is error
