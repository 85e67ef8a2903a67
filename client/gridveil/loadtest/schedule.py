"""When calls are meant to be sent: pure functions of rate and time.

In an open loop a call has its time whether or not earlier ones were answered, and its latency
counts from then on. A server that stands still for a second so shows in every report that was
meant to be sent in that second (G. Tene, "How NOT to Measure Latency", 2015, calls its absence
coordinated omission).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenLoop:
    """The intended times of one window's calls, dealt out to processes in turn."""

    begin: float
    """Time of the first call, in seconds of any steady clock."""
    rate: float
    """Reports a second, over all processes."""
    batch: int
    """Reports a call."""
    processes: int

    def intended(self, process: int, call: int) -> float:
        """When the n-th call of a process is meant to be sent."""
        return self.begin + (call * self.processes + process) * self.batch / self.rate

    def wait(self, process: int, call: int, now: float) -> float:
        """Seconds until then; 0 if it is past. Earlier calls do not matter."""
        return max(0.0, self.intended(process, call) - now)


def begins(ends: Sequence[float], sending_s: float) -> list[float]:
    """When each window's reports begin to be sent.

    That is when the window has ended, and the reports of the one before were sent.

    Args:
        ends: of the windows, ascending, in seconds of any clock.
        sending_s: how long one window's reports take at the intended rate.
    """
    found: list[float] = []
    for end in ends:
        found.append(max(end, found[-1] + sending_s) if found else end)
    return found
