"""The order of a replay: which readings are due to become reports, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Entry, Outbox, State, Verdict
from gridveil.protocol.errors import Conflict, Reason
from gridveil.protocol.windows import WindowRules
from gridveil.reporting import signed_reading
from gridveil.simulator.readings import ReadingBounds, ReadingSource

_TABLE_CELLS = 16 * 2**20
"""Readings held at a time, at the most."""


@dataclass
class Tally:
    """What became of a replay's readings."""

    first_window: int | None = None
    windows: int = 0
    planned: int = 0
    """Meters times windows."""
    missing: int = 0
    """Meters without a reading of a window."""
    late: int = 0
    """Readings whose window was closed before a report could be made."""
    recorded: int = 0
    """Reports made and kept in the outbox, by this run or an earlier one."""
    accepted: int = 0
    """Reports with a receipt, duplicates included."""
    duplicates: int = 0
    """Receipts of this run for reports that an earlier attempt had brought."""
    refused: Counter[Reason] = field(default_factory=Counter)
    """Reports that an answer of the aggregator ended, by reason."""

    @property
    def readings(self) -> int:
        """Readings that there are."""
        return self.planned - self.missing

    @property
    def unsettled(self) -> int:
        """Readings whose fate is open: not sent yet, or given up without an answer."""
        return self.readings - self.late - self.accepted - self.refused.total()

    def count(self, ended: Verdict | Entry) -> None:
        """Add a report that ended; others are ignored."""
        if ended.state is State.SETTLED:
            self.accepted += 1
        elif ended.state is State.GAVE_UP and ended.answered and ended.reason:
            self.refused[ended.reason] += 1
        if isinstance(ended, Verdict):
            self.duplicates += ended.duplicate


class Plan:
    """Hands out readings in chunks, window by window, once each window has ended."""

    def __init__(
        self,
        fleet: Sequence[MeterKeys],
        source: ReadingSource,
        windows: Sequence[int],
        rules: WindowRules,
        bounds: ReadingBounds,
        tally: Tally,
    ) -> None:
        self._fleet = fleet
        self._source = source
        self._rules = rules
        self._bounds = bounds
        self._tally = tally
        tally.planned = len(fleet) * len(windows)
        tally.windows = len(windows)
        tally.first_window = windows[0] if windows else None
        self._unopened = self._read(windows)
        self._ahead = next(self._unopened, None)
        self._open: _Window | None = None

    @property
    def done(self) -> bool:
        """Whether every reading was handed out or is late."""
        return self._open is None and self._ahead is None

    @property
    def window(self) -> int | None:
        """The window that readings are handed out of now."""
        return self._open.start if self._open else None

    def next_time(self) -> float | None:
        """When the next window ends; None while one is handed out, or after the last."""
        if self._open or self._ahead is None:
            return None
        return self._rules.end(self._ahead.start)

    def advance(self, now: float, outbox: Outbox) -> None:
        """Open the next window if it has ended, and count what is late.

        Raises:
            Conflict: EQUIVOCATION if the outbox holds another reading of a meter and window.
        """
        while True:
            if self._open is None:
                if self._ahead is None or now < self._rules.end(self._ahead.start):
                    return
                self._open, self._ahead = self._ahead, next(self._unopened, None)
                self._leave_out_recorded(self._open, outbox)
            if now >= self._rules.closes(self._open.start):
                self._tally.late += len(self._open.places)
            elif self._open.places:
                return
            self._open = None

    def take(self, most: int) -> tuple[tuple[MeterKeys, ...], tuple[int, ...]]:
        """Up to ``most`` meters of the open window and their signed Wh."""
        if self._open is None:
            return (), ()
        taken, self._open.places = self._open.places[:most], self._open.places[most:]
        meters = tuple(self._fleet[place] for place in taken)
        return meters, tuple(int(self._open.wh[place]) for place in taken)

    def _read(self, windows: Sequence[int]) -> Iterator[_Window]:
        """The windows' readings, read in blocks that fit in memory."""
        block = max(1, _TABLE_CELLS // max(1, len(self._fleet)))
        labels = [meter.label for meter in self._fleet]
        for first in range(0, len(windows), block):
            asked = windows[first : first + block]
            table = self._source.read(labels, asked, self._bounds)
            for at, start in enumerate(asked):
                places = np.flatnonzero(table.present[at]).tolist()
                self._tally.missing += len(self._fleet) - len(places)
                yield _Window(start, table.wh[at], places)

    def _leave_out_recorded(self, window: _Window, outbox: Outbox) -> None:
        """Readings that an earlier run recorded are the outbox's to bring to an end."""
        known = {entry.meter_id: entry for entry in outbox.entries(window.start)}
        left = []
        for place in window.places:
            entry = known.get(self._fleet[place].meter_id)
            if entry is None:
                left.append(place)
            elif entry.values != signed_reading(int(window.wh[place])):
                raise Conflict(
                    Reason.EQUIVOCATION, "the outbox holds other readings of these windows"
                )
            else:
                self._tally.recorded += 1
                self._tally.count(entry)
        window.places = left


@dataclass
class _Window:
    start: int
    wh: NDArray[np.int64]
    places: list[int]
    """Meters whose readings are not handed out yet."""
