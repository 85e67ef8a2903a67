"""An answer is believed only if the pinned key-holder signed it for what was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAuthentic, Reason
from gridveil.protocol.v1 import totals_pb2
from gridveil.settlements import NotReleased, OutcomeOpener, Pages, ReleasedTotal
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.totals import open_window, readings

KEY = SigningKey(b"k" * 32)
PROFILE = Profile(
    CITY_ID, bytes(KEY.verify_key), True, {}, Tls(Path("ca"), Path("cert"), Path("key"))
)
OPENER = OutcomeOpener(PROFILE)
OPENED = open_window(city_policy(), KEY, WINDOW, readings(100))
MESSAGE = totals_pb2.WindowOutcome(window_start=WINDOW, total=OPENED.signed())


def gap(window: int) -> totals_pb2.WindowOutcome:
    return totals_pb2.WindowOutcome(
        window_start=window, not_released=totals_pb2.NOT_RELEASED_REASON_REFUSED
    )


def test_a_signed_total_is_believed() -> None:
    outcome = OPENER.open(MESSAGE, WINDOW)
    assert isinstance(outcome, ReleasedTotal)
    assert outcome.total == OPENED.total
    assert outcome.count == 100
    with pytest.raises(KeyError):
        outcome.sum("water_l")


@given(st.integers(0, len(OPENED.signed().total) * 8 - 1))
@settings(max_examples=50)
def test_no_bit_of_a_total_can_be_changed(bit: int) -> None:
    signed = OPENED.signed()
    changed = bytearray(signed.total)
    changed[bit // 8] ^= 1 << bit % 8
    signed.total = bytes(changed)
    with pytest.raises(NotAuthentic) as refused:
        OPENER.open(totals_pb2.WindowOutcome(window_start=WINDOW, total=signed))
    assert refused.value.reason is Reason.KEY_NOT_PINNED


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        (MESSAGE, WINDOW + 900),
        (totals_pb2.WindowOutcome(window_start=WINDOW + 900, total=OPENED.signed()), WINDOW + 900),
        (totals_pb2.WindowOutcome(window_start=WINDOW + 900, total=OPENED.signed()), None),
        (gap(WINDOW), WINDOW + 900),
    ],
)
def test_the_answer_for_another_window_is_refused(
    message: totals_pb2.WindowOutcome, asked: int | None
) -> None:
    """An old total cannot be passed off as today's."""
    with pytest.raises(NotAuthentic) as refused:
        OPENER.open(message, asked)
    assert refused.value.reason is Reason.KEY_NOT_PINNED


def test_the_total_of_another_city_is_refused() -> None:
    elsewhere = OutcomeOpener(replace(PROFILE, city_id=bytes(16)))
    with pytest.raises(NotAuthentic):
        elsewhere.open(MESSAGE, WINDOW)


@pytest.mark.parametrize(
    "message",
    [
        totals_pb2.WindowOutcome(window_start=WINDOW),
        totals_pb2.WindowOutcome(
            window_start=WINDOW, not_released=totals_pb2.NOT_RELEASED_REASON_UNSPECIFIED
        ),
        totals_pb2.WindowOutcome(window_start=WINDOW, not_released=99),  # type: ignore[arg-type]
    ],
)
def test_a_gap_without_a_reason_is_refused(message: totals_pb2.WindowOutcome) -> None:
    with pytest.raises(MalformedInput):
        OPENER.open(message)


def pages() -> Pages:
    return Pages(OPENER, 0, 0, 10)


def test_a_listing_asks_for_page_after_page() -> None:
    listing = pages()
    first = listing.next_request()
    assert first is not None
    assert (first.page_size, first.page_token) == (10, b"")
    page = totals_pb2.ListTotalsResponse(outcomes=[gap(900), gap(1800)], next_page_token=b"t")
    assert [found.window_start for found in listing.open(page)] == [900, 1800]
    second = listing.next_request()
    assert second is not None
    assert second.page_token == b"t"
    last = totals_pb2.ListTotalsResponse(outcomes=[gap(2700)])
    assert all(isinstance(found, NotReleased) for found in listing.open(last))
    assert listing.next_request() is None


@pytest.mark.parametrize(
    "answers",
    [
        [totals_pb2.ListTotalsResponse(next_page_token=b"t")],
        [totals_pb2.ListTotalsResponse(outcomes=[gap(1800), gap(900)])],
        [
            totals_pb2.ListTotalsResponse(outcomes=[gap(900)], next_page_token=b"t"),
            totals_pb2.ListTotalsResponse(outcomes=[gap(900)], next_page_token=b"t"),
        ],
    ],
)
def test_a_listing_that_goes_in_circles_is_refused(
    answers: list[totals_pb2.ListTotalsResponse],
) -> None:
    listing = pages()
    *before, last = answers
    for answer in before:
        list(listing.open(answer))
    with pytest.raises(GridveilError) as refused:
        list(listing.open(last))
    assert refused.value.reason is Reason.MALFORMED_MESSAGE
