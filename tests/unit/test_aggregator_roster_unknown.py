"""A window whose roster has not come yet: nobody learns whether a meter is enrolled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.protocol.errors import GridveilError, Reason
from tests.support.aggregators import LENGTH, VALUES, IngestHarness
from tests.support.reports import WINDOW, build_report, make_members

NEXT = WINDOW + LENGTH


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[IngestHarness]:
    made = IngestHarness(tmp_path, meters=2)
    made.clock.move_to(NEXT + LENGTH)
    yield made
    made.close()


def reason(answer: object) -> Reason:
    assert isinstance(answer, GridveilError)
    return answer.reason


def test_a_meter_that_was_enrolled_last_is_asked_to_come_back(harness: IngestHarness) -> None:
    newcomer = make_members(3)[2]
    report = build_report(harness.parameters, newcomer, NEXT, VALUES).to_message()
    (answer,) = harness.submit(report)
    assert reason(answer) is Reason.KEYHOLDER_UNAVAILABLE


def test_an_enrolled_meter_gets_the_same_answer(harness: IngestHarness) -> None:
    (answer,) = harness.submit(harness.report(0, window=NEXT))
    assert reason(answer) is Reason.KEYHOLDER_UNAVAILABLE


def test_a_window_that_takes_no_reports_keeps_its_own_answers(harness: IngestHarness) -> None:
    stranger = make_members(3)[2]
    later = NEXT + LENGTH
    unknown = build_report(harness.parameters, stranger, later, VALUES).to_message()
    answers = harness.submit(harness.report(0, window=later), unknown)
    assert [reason(answer) for answer in answers] == [
        Reason.WINDOW_TOO_EARLY,
        Reason.SIGNATURE_INVALID,
    ]
