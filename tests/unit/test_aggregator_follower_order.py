"""Windows are opened in order: a roster is followed forward, never back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW, make_members

NEXT = WINDOW + LENGTH
METERS = 4


def failing_once(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The same answers after one that the disk refused."""
    faults = [OSError("input/output error")]

    def answers(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return answer(*arguments)

    return answers


def test_a_fault_at_the_key_holder_lets_no_later_window_overtake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both windows are opened in the end, each with the roster that was in force for it."""
    with LocalCity.create(tmp_path, meters=METERS) as city:
        city.clock.move_to(WINDOW + 100)
        newcomer = make_members(METERS + 1)[METERS]
        city.keyholder.roster.enrol([newcomer.member])
        city.clock.move_to(NEXT + 20)
        roster = city.keyholder.roster
        monkeypatch.setattr(roster, "change", failing_once(roster.change))
        city.aggregator.follower.step()
        assert city.aggregator.store.window(NEXT) is None
        city.aggregator.follower.step()
        opened = {w.start: w.enrolled for w in city.aggregator.store.windows()}
        assert opened == {WINDOW: METERS, NEXT: METERS + 1}
