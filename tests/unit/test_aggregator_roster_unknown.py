"""A window whose roster has not come yet: nobody learns whether a meter is enrolled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.outcomes import OUTCOMES, Ending
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.roster import RosterVersion, roster_digest
from gridveil_services.aggregator.follower import plan_window
from tests.support.aggregators import LENGTH, VALUES, IngestHarness
from tests.support.reports import CITY_ID, WINDOW, build_report, make_members

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


def test_a_window_that_takes_no_reports_yet_says_so_to_everybody(harness: IngestHarness) -> None:
    """A meter that was enrolled last, and whose clock is fast, is not told to give up."""
    newcomer = make_members(3)[2]
    later = NEXT + LENGTH
    unknown = build_report(harness.parameters, newcomer, later, VALUES).to_message()
    answers = harness.submit(harness.report(0, window=later), unknown)
    assert [reason(answer) for answer in answers] == [Reason.WINDOW_TOO_EARLY] * 2
    assert OUTCOMES[Reason.WINDOW_TOO_EARLY] is not Ending.GIVE_UP


def test_a_window_that_takes_no_reports_any_more_says_so_to_everybody(
    harness: IngestHarness,
) -> None:
    """Nobody learns from a window that is over, and was never opened, who is enrolled."""
    harness.clock.move_to(NEXT + 2 * LENGTH)
    stranger = make_members(3)[2]
    unknown = build_report(harness.parameters, stranger, NEXT, VALUES).to_message()
    answers = harness.submit(harness.report(0, window=NEXT), unknown)
    assert [reason(answer) for answer in answers] == [Reason.WINDOW_CLOSED] * 2


def test_a_window_that_opens_meanwhile_takes_nobody_that_its_roster_lacks(
    harness: IngestHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that came just too early is not judged by the roster of the window before."""
    opens = NEXT + LENGTH - harness.parameters.policy.rules.early_leeway
    harness.clock.move_to(opens - 0.001)
    report = harness.report(0, window=NEXT)
    roster = harness.city.roster
    find = roster.find

    def find_while_the_next_version_comes(meter: bytes, version: int) -> object:
        found = find(meter, version)
        if roster.head is not None and roster.head.version == 1:
            open_next_without(harness, meter)
            harness.clock.move_to(opens)
        return found

    monkeypatch.setattr(roster, "find", find_while_the_next_version_comes)
    (answer,) = harness.submit(report)
    assert reason(answer) is Reason.WINDOW_TOO_EARLY
    assert harness.store.count(NEXT) == 0


def open_next_without(harness: IngestHarness, meter_id: bytes) -> None:
    """What the follower does: it learns version 2 and opens NEXT with it."""
    rest = sorted(m.member for m in harness.meters if m.meter_id != meter_id)
    head = RosterVersion(CITY_ID, 2, NEXT, len(rest), roster_digest(rest))
    harness.city.roster.apply(head, [meter_id], [])
    window = plan_window(harness.parameters, head, NEXT)
    harness.committer.run(lambda: harness.store.open_window(window))
