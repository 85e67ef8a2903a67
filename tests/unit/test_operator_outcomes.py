"""An answer is believed only if the pinned key-holder signed it for what was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import GridveilError, NotAuthentic, Reason
from gridveil.protocol.v1 import totals_pb2
from gridveil.settlements import (
    NotReleased,
    NotReleasedReason,
    OutcomeOpener,
    Pages,
    ReleasedTotal,
)
from gridveil_services.releaselog.signing import LogSigner
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.totals import expired, intent, open_window, proven, readings, refused, released

KEY = SigningKey(b"k" * 32)
PROFILE = Profile(
    CITY_ID, bytes(KEY.verify_key), True, {}, Tls(Path("ca"), Path("cert"), Path("key"))
)
OPENER = OutcomeOpener(PROFILE)
SIGNER = LogSigner(CITY_ID, KEY)
OPENED = open_window(city_policy(), KEY, WINDOW, readings(100))
MESSAGE = proven(SIGNER, [expired(WINDOW - 900), released(OPENED), intent(WINDOW + 900)], 1)


def gap(window: int) -> totals_pb2.WindowOutcome:
    return proven(SIGNER, [refused(window)], 0)


def changed(message: totals_pb2.WindowOutcome, **fields: object) -> totals_pb2.WindowOutcome:
    copy = totals_pb2.WindowOutcome()
    copy.CopyFrom(message)
    copy.MergeFrom(totals_pb2.WindowOutcome(**fields))  # type: ignore[arg-type]
    return copy


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
    data = bytearray(OPENED.signed().total)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(changed(MESSAGE, total={"total": bytes(data)}))
    assert refusal.value.reason is Reason.PROOF_INVALID


@given(st.integers(0, len(OPENED.signed().total) * 8 - 1))
@settings(max_examples=20)
def test_not_even_the_logs_own_key_makes_another_total_of_it(bit: int) -> None:
    """As if a leaf could be anything: the total has a signature of its own."""
    signed = OPENED.signed()
    data = bytearray(signed.total)
    data[bit // 8] ^= 1 << bit % 8
    record = released(OPENED)
    record.released.total.total = bytes(data)
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(proven(SIGNER, [record], 0))
    assert refusal.value.reason is Reason.KEY_NOT_PINNED


@pytest.mark.parametrize(
    "message",
    [
        changed(MESSAGE, proof={"index": 2}),
        changed(MESSAGE, proof={"record": MESSAGE.proof.record + b"\x08\x01"}),
        changed(MESSAGE, proof={"record": b"\xff"}),
        changed(MESSAGE, proof={"hashes": [bytes(32)]}),
        changed(MESSAGE, not_released=totals_pb2.NOT_RELEASED_REASON_REFUSED),
        changed(gap(WINDOW), total=OPENED.signed()),
        totals_pb2.WindowOutcome(window_start=WINDOW, total=OPENED.signed()),
        proven(SIGNER, [intent(WINDOW)], 0, window=WINDOW),
    ],
)
def test_what_the_log_does_not_say_is_not_believed(message: totals_pb2.WindowOutcome) -> None:
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(message)
    assert refusal.value.reason is Reason.PROOF_INVALID


def test_a_log_that_somebody_else_signed_is_not_believed() -> None:
    thief = LogSigner(CITY_ID, SigningKey(b"t" * 32))
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(proven(thief, [released(OPENED)], 0))
    assert refusal.value.reason is Reason.KEY_NOT_PINNED


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        (MESSAGE, WINDOW + 900),
        (changed(MESSAGE, window_start=WINDOW + 900), WINDOW + 900),
        (changed(MESSAGE, window_start=WINDOW + 900), None),
        (gap(WINDOW), WINDOW + 900),
    ],
)
def test_the_answer_for_another_window_is_refused(
    message: totals_pb2.WindowOutcome, asked: int | None
) -> None:
    """An old total cannot be passed off as today's."""
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(message, asked)
    assert refusal.value.reason in {Reason.KEY_NOT_PINNED, Reason.PROOF_INVALID}


def test_the_total_of_another_city_is_refused() -> None:
    elsewhere = OutcomeOpener(replace(PROFILE, city_id=bytes(16)))
    with pytest.raises(NotAuthentic):
        elsewhere.open(MESSAGE, WINDOW)


@pytest.mark.parametrize(
    "message",
    [
        totals_pb2.WindowOutcome(window_start=WINDOW),
        changed(gap(WINDOW), not_released=totals_pb2.NOT_RELEASED_REASON_EXPIRED),
        changed(gap(WINDOW), not_released=99),
    ],
)
def test_a_gap_is_what_the_log_says(message: totals_pb2.WindowOutcome) -> None:
    with pytest.raises(NotAuthentic) as refusal:
        OPENER.open(message)
    assert refusal.value.reason is Reason.PROOF_INVALID
    assert OPENER.open(gap(WINDOW)) == NotReleased(WINDOW, NotReleasedReason.REFUSED)


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
