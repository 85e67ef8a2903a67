"""Driving a client in tests without waiting: time goes where the next report is due."""

from __future__ import annotations

from gridveil.clock import ManualClock
from gridveil.meter import Meter
from gridveil.outbox import Verdict


def settle(meter: Meter, clock: ManualClock, *, until: float = float("inf")) -> list[Verdict]:
    """Move the clock from one due report to the next until none waits, or to ``until``."""
    verdicts: list[Verdict] = []
    while (due := meter.next_due()) is not None and due <= until:
        clock.move_to(max(due, clock.now()))
        verdicts += meter.submit_due()
    return verdicts
