"""Readings are handed out once their interval ended, in order, and never a second time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gridveil.meter_identity import MeterKeys
from gridveil.outbox import NewEntry, Outbox, State, Verdict
from gridveil.protocol.errors import Conflict, Reason
from gridveil.protocol.windows import WindowRules
from gridveil.reporting import signed_reading
from gridveil.simulator import ReadingBounds, Readings, Tally
from gridveil.simulator.plan import Plan
from tests.support.reports import CITY_ID, WINDOW

RULES = WindowRules(length=900, grace=300, early_leeway=60)
BOUNDS = ReadingBounds(900, -1000, 1000)
FLEET = [MeterKeys.create() for _ in range(5)]
WINDOWS = [WINDOW + 900 * at for at in range(3)]


class Numbered:
    """Meter m has m Wh in window w, plus 10 w; meter 4 has nothing in window 1."""

    skipped = 0

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        table = Readings.none(windows, len(labels))
        for at, start in enumerate(windows):
            number = (start - WINDOW) // 900
            table.wh[at] = np.arange(len(labels)) + 10 * number
            table.present[at] = [not (number == 1 and m == 4) for m in range(len(labels))]
        return table


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db", CITY_ID) as opened:
        yield opened


def make(tally: Tally) -> Plan:
    return Plan(FLEET, Numbered(), WINDOWS, RULES, BOUNDS, tally)


def advanced(plan: Plan, now: float, outbox: Outbox) -> int | None:
    plan.advance(now, outbox)
    return plan.window


def test_nothing_is_handed_out_before_its_interval_ended(outbox: Outbox) -> None:
    plan = make(Tally())
    for at, start in enumerate(WINDOWS):
        assert advanced(plan, start + 899.9, outbox) is None
        assert plan.next_time() == start + 900
        assert advanced(plan, start + 900, outbox) == start
        meters, wh = plan.take(3)
        assert [FLEET.index(meter) for meter in meters] == [0, 1, 2]
        assert wh == tuple(m + 10 * at for m in range(3))
        meters, _ = plan.take(3)
        assert len(meters) == (1 if at == 1 else 2)
        plan.advance(start + 900, outbox)
    assert plan.done


def test_what_is_missing_or_late_is_counted(outbox: Outbox) -> None:
    tally = Tally()
    plan = make(tally)
    plan.advance(WINDOW + 900, outbox)
    plan.take(2)
    assert advanced(plan, WINDOW + 1200, outbox) is None
    assert advanced(plan, WINDOW + 2700, outbox) == WINDOWS[2]
    plan.take(9)
    plan.advance(WINDOW + 2700, outbox)
    assert plan.done
    assert (tally.planned, tally.missing, tally.late) == (15, 1, 3 + 4)
    assert tally.unsettled == 15 - 1 - 7


def test_what_an_earlier_run_recorded_is_the_outboxs(outbox: Outbox) -> None:
    for place in (0, 3):
        entry = NewEntry(WINDOW, FLEET[place].meter_id, signed_reading(place), 0.0, None, None)
        outbox.record([entry])
    outbox.conclude([Verdict(WINDOW, FLEET[0].meter_id, State.SETTLED)])
    tally = Tally()
    plan = make(tally)
    plan.advance(WINDOW + 900, outbox)
    meters, _ = plan.take(9)
    assert [FLEET.index(meter) for meter in meters] == [1, 2, 4]
    assert (tally.recorded, tally.accepted) == (2, 1)


def test_other_readings_than_an_earlier_runs_are_refused(outbox: Outbox) -> None:
    entry = NewEntry(WINDOW, FLEET[1].meter_id, signed_reading(-1), 0.0, None, None)
    outbox.record([entry])
    with pytest.raises(Conflict) as refused:
        make(Tally()).advance(WINDOW + 900, outbox)
    assert refused.value.reason is Reason.EQUIVOCATION


def test_thousands_of_closed_windows_are_passed_over_at_once(outbox: Outbox) -> None:
    tally = Tally()
    windows = [WINDOW + 900 * at for at in range(5000)]
    plan = Plan(FLEET, Numbered(), windows, RULES, BOUNDS, tally)
    plan.advance(windows[-1] + 900, outbox)
    assert plan.window == windows[-1]
    assert tally.late == 4999 * 5 - 1
