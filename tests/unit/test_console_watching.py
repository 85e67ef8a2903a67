"""The watchdog of a page that is open all day: a window at a time, in order of time."""

from __future__ import annotations

from gridveil.operator import NotReleased, NotReleasedReason
from gridveil.watchdog.limits import Limits
from gridveil_services.console.watching import MOST_FINDINGS, MOST_MISSING, Watching

LENGTH = 900
FIRST = 1_767_225_600


def refused(at: int) -> NotReleased:
    return NotReleased(FIRST + at * LENGTH, NotReleasedReason.REFUSED)


def test_what_is_found_is_the_same_at_once_and_one_by_one() -> None:
    windows = [refused(at) for at in (0, 1, 2, 40, 41, 42, 43)]
    whole, single = Watching(Limits(), LENGTH), Watching(Limits(), LENGTH)

    found = whole.see(windows)

    assert found == [row for window in windows for row in single.see([window])]
    assert [row.kind for row in found][:1] == ["REFUSED_WINDOWS"]
    assert whole.findings == single.findings == found[::-1]


def test_a_window_that_settles_after_a_later_one_is_passed_over() -> None:
    watching = Watching(Limits(), LENGTH)
    watching.see([refused(0), refused(5)])

    assert watching.see([refused(2)]) == []
    assert [row.window_start for row in watching.see([refused(6)])] == [FIRST + 6 * LENGTH]


def test_after_a_gap_of_months_it_goes_on() -> None:
    watching = Watching(Limits(), LENGTH)
    watching.see([refused(0)])
    far = MOST_MISSING + 2

    found = watching.see([refused(far), refused(far + 1), refused(far + 2)])

    assert [row.window_start for row in found] == [FIRST + (far + 2) * LENGTH]


def test_only_so_many_findings_are_kept() -> None:
    watching = Watching(Limits(refused_windows=1), LENGTH)
    for at in range(0, 200 * 2 * MOST_FINDINGS, 200):
        watching.see([refused(at)])

    assert len(watching.findings) == MOST_FINDINGS
    assert watching.findings[0].window_start > watching.findings[-1].window_start
