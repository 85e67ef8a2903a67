"""Hands entries to the key-holder as they are committed, ahead of their window's release.

What the key-holder has checked by the time a window is sealed need not be waited for then. Nothing
depends on it: what was not handed ahead is checked with the release.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.periodic import retry_delay_s
from gridveil_services.aggregator.release import chunks
from gridveil_services.aggregator.store.interface import Phase, Store, Window
from gridveil_services.aggregator.upstream import KeyHolderClient

_log = structlog.get_logger()

INTERVAL_S = 2.0
"""Metering time between two looks."""
SHORTEST_INTERVAL_S = 0.05
LONGEST_INTERVAL_S = 1.0


@dataclass
class _Course:
    """How far a window's entries were handed over."""

    after: int = 0
    """Up to which batch of the store."""
    taken: int = 0
    """Entries, each of another meter, that the key-holder took."""
    last: bytes = b""
    """One of them."""
    failures: int = 0
    due: float = 0.0
    """When to try again after a failure, on the real, monotonic clock."""


class Forerunner:
    """Follows what is committed to open windows."""

    def __init__(self, store: Store, keyholder: KeyHolderClient, clock: Clock) -> None:
        self._store = store
        self._keyholder = keyholder
        self._clock = clock
        self._courses: dict[int, _Course] = {}

    def step(self) -> float:
        """Hand over what is new; real seconds until the next look."""
        leads = self._store.leads
        windows = [w for w in self._store.windows() if leads and w.phase is Phase.OPEN]
        self._courses = {w.start: self._courses.get(w.start, _Course()) for w in windows}
        for window in windows:
            if self._courses[window.start].due <= time.monotonic():
                self._follow(window)
        return min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, self._clock.real(INTERVAL_S)))

    def _follow(self, window: Window) -> None:
        course = self._courses[window.start]
        try:
            self._confirm(window, course)
            while self._hand_over(window, course):
                course.failures = 0
        except GridveilError as error:
            course.failures += 1
            course.due = time.monotonic() + retry_delay_s(course.failures, self._clock)
            _log.info("entries are not checked ahead", window=window.start, reason=error.reason)

    def _confirm(self, window: Window, course: _Course) -> None:
        """Begin anew if the key-holder has forgotten what it took: perhaps it was restarted."""
        if course.last and self._send(window, course.last) < course.taken:
            course.after, course.taken, course.last = 0, 0, b""

    def _hand_over(self, window: Window, course: _Course) -> bool:
        """The next entries of a window; whether there were any."""
        entries, after = self._store.entries_after(window.start, course.after)
        for _, chunk in chunks(iter([entries]), 0):
            self._send(window, chunk)
        if entries:
            course.after, course.last = after, entries[-ENTRY_BYTES:]
            course.taken += len(entries) // ENTRY_BYTES
        return bool(entries)

    def _send(self, window: Window, entries: bytes) -> int:
        return self._keyholder.precheck(
            window.start, window.parameters_digest, window.roster_version, entries
        )
