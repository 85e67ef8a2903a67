"""Driving a client in tests without waiting: time goes where the next report is due."""

from __future__ import annotations

import threading

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


class LeapingClock:
    """A clock on which time passes only when somebody sleeps, and then at once."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._lock = threading.Lock()

    def now(self) -> float:
        """Metering time."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Leap over that much metering time."""
        with self._lock:
            self._now += max(0.0, seconds)

    def real(self, seconds: float) -> float:
        """Next to nothing."""
        return seconds * 1e-6
