"""Reports are spread, repeated politely, and never become a storm."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.outcomes import OUTCOMES, Ending
from gridveil.pacing import CAP_S, FLOOR_S, LEARN_S, first_attempt, next_attempt
from gridveil.protocol.errors import Reason
from gridveil.protocol.windows import WindowRules

RULES = WindowRules(length=900, grace=300, early_leeway=60)
WINDOW = 1_700_000_100
END = WINDOW + 900
CLOSES = END + 300

unit = st.floats(0, 1, exclude_max=True)


def test_first_attempts_fill_the_first_two_thirds_of_the_grace_evenly() -> None:
    source = random.Random(1)
    times = [first_attempt(RULES, WINDOW, END - 30, source.random) for _ in range(20_000)]
    assert min(times) >= END
    assert max(times) < END + 200
    for tenth in range(10):
        share = sum(END + 20 * tenth <= t < END + 20 * (tenth + 1) for t in times)
        assert 1_700 < share < 2_300


@given(now=st.floats(END - 60, CLOSES + 1000), u=unit)
def test_a_late_first_attempt_comes_at_once_or_before_the_window_closes(
    now: float, u: float
) -> None:
    due = first_attempt(RULES, WINDOW, now, lambda: u)
    assert due >= now
    assert due < CLOSES or due == now


@given(
    draws=st.lists(unit, min_size=30, max_size=30),
    start=st.floats(END, CLOSES + 600),
    asked=st.none() | st.floats(0, 20),
)
def test_no_report_is_sent_more_than_three_times_in_any_ten_seconds(
    draws: list[float], start: float, asked: float | None
) -> None:
    times = [start]
    for u in draws:
        due = next_attempt(len(times), times[-1], CLOSES, asked, partial(float, u))
        if due is None:
            break
        times.append(due)
    assert len(times) == 31 or times[-1] >= CLOSES + LEARN_S
    for at, first in enumerate(times[:-3]):
        assert times[at + 3] - first >= 10 - 1e-6


@given(attempts=st.integers(1, 5000), asked=st.floats(0, LEARN_S), u=unit)
def test_the_servers_wish_is_waited_for(attempts: int, asked: float, u: float) -> None:
    due = next_attempt(attempts, END, CLOSES, asked, lambda: u)
    assert due is not None
    assert due >= END + asked


@given(attempts=st.integers(1, 5000), left=st.floats(FLOOR_S + 0.1, 300), u=unit)
def test_a_wait_is_shortened_to_reach_the_window_before_it_closes(
    attempts: int, left: float, u: float
) -> None:
    due = next_attempt(attempts, CLOSES - left, CLOSES, None, lambda: u)
    assert due is not None
    assert due <= CLOSES


def test_waits_grow_up_to_the_cap() -> None:
    spans = [
        (next_attempt(n, CLOSES, CLOSES, None, lambda: 1 - 1e-12) or 0) - CLOSES - FLOOR_S
        for n in range(1, 10)
    ]
    assert spans == pytest.approx([2, 4, 8, 16, 32, *[CAP_S] * 4])


def test_a_server_cannot_put_a_report_off_for_ever() -> None:
    due = next_attempt(1, END, CLOSES, 1e12, lambda: 0.5)
    assert due is not None
    assert due <= END + LEARN_S + CAP_S


@pytest.mark.parametrize(("grace", "most"), [(300, 60), (86_400, 200)])
def test_an_unanswered_report_is_sent_a_bounded_number_of_times(grace: int, most: int) -> None:
    source = random.Random(3)
    for _ in range(50):
        times = [float(END)]
        while (
            due := next_attempt(len(times), times[-1], END + grace, None, source.random)
        ) is not None:
            times.append(due)
        assert len(times) <= most
        assert END + grace + LEARN_S <= times[-1] < END + grace + LEARN_S + FLOOR_S + CAP_S
        assert any(t < END + grace for t in times[1:])


def test_every_reason_has_its_ending() -> None:
    assert set(OUTCOMES) == set(Reason)
    assert Ending.SETTLED not in OUTCOMES.values()


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (Reason.KEY_EPOCH, Ending.REFETCH_PARAMETERS),
        (Reason.UNREACHABLE, Ending.RETRY),
        (Reason.OVERLOADED, Ending.RETRY),
        (Reason.DRAINING, Ending.RETRY),
        (Reason.STORE_FULL, Ending.RETRY),
        (Reason.INTERNAL, Ending.RETRY),
        (Reason.WINDOW_TOO_EARLY, Ending.RETRY),
        (Reason.CERT_EXPIRED, Ending.RETRY),
        (Reason.WINDOW_CLOSED, Ending.GIVE_UP),
        (Reason.WINDOW_RELEASED, Ending.GIVE_UP),
        (Reason.EQUIVOCATION, Ending.GIVE_UP),
        (Reason.SIGNATURE_INVALID, Ending.GIVE_UP),
        (Reason.METER_REVOKED, Ending.GIVE_UP),
        (Reason.CIPHERTEXT_MALFORMED, Ending.GIVE_UP),
    ],
)
def test_what_answers_mean(reason: Reason, ending: Ending) -> None:
    assert OUTCOMES[reason] is ending
