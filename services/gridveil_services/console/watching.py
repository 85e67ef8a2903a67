"""What goes wrong in the city, from the totals alone: the watchdog, a window at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec

from gridveil.operator import Outcome
from gridveil.watchdog.detector import Finding, Watchdog, learn
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.observation import Observation, observation

LEARNED_DAYS = 70
"""So many days of the past are learned from: as many weeks as the slowest of it needs, and more."""
MOST_FINDINGS = 50
MOST_MISSING = 10_000
"""Windows in a row that were never settled; after more it begins anew."""


class FindingRow(msgspec.Struct, frozen=True):
    """Something to look at, as shown."""

    kind: str
    window_start: int
    observed: float
    expected: float
    unit: str
    lane: str | None


class Watching:
    """Sees windows as they settle. One that settles after a later one counts as not settled.

    Findings are hints of where to look, and never a verdict (docs/watchfulness.md).
    """

    def __init__(self, limits: Limits, length: int) -> None:
        self._limits = limits
        self._length = length
        self._watchdog = Watchdog(limits, length)
        self._next: int | None = None
        self._findings: deque[FindingRow] = deque(maxlen=MOST_FINDINGS)

    @property
    def findings(self) -> list[FindingRow]:
        """Newest first."""
        return list(reversed(self._findings))

    def see(self, outcomes: Iterable[Outcome]) -> list[FindingRow]:
        """What is found in windows that have settled, in order of time; nothing in older ones.

        Raises:
            MalformedInput: as :func:`gridveil.watchdog.observation.observations`.
        """
        seen = chain.from_iterable(map(self._until, outcomes))
        self._watchdog, found = learn(self._watchdog, seen)
        rows = [_row(finding) for finding in found]
        self._findings.extend(rows)
        return rows

    def _until(self, outcome: Outcome) -> Iterator[Observation]:
        """The window, after those before it that have not settled."""
        window = outcome.window_start
        first = window if self._next is None else self._next
        if window < first:
            return
        if window - first > MOST_MISSING * self._length:
            first = window
        self._next = window + self._length
        for missing in range(first, window, self._length):
            yield observation(missing, self._length, None)
        yield observation(window, self._length, outcome)


def _row(found: Finding) -> FindingRow:
    return FindingRow(
        found.kind.value,
        found.window_start,
        found.observed,
        found.expected,
        found.unit,
        found.lane,
    )
