"""What is known of past demand: released totals, and the operator's own record from before them.

For the forecast and for comparison; no signal depends on it.
"""

from __future__ import annotations

import csv
import threading
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.core import Gap, Settled
from gridveil_services.controller.journal import Window
from gridveil_services.controller.rules import ControlRules

MOST_BYTES = 16 * 2**20
"""Some ten years of quarter-hours."""
_HEADING = ["window_start", "wh"]


class History:
    """Settled windows by their start. A window without a total has no figure: never 0 for it."""

    def __init__(
        self,
        rules: ControlRules,
        windows: Iterable[Window] = (),
        recorded_wh: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Know these windows.

        Args:
            rules: which totals are ones to go by.
            windows: settled ones.
            recorded_wh: what the operator's own meter recorded; a settled window counts instead.
        """
        self._rules = rules
        self._recorded = dict(recorded_wh)
        self._windows = {window.window_start: window for window in windows}
        self._starts = sorted(self._windows)
        self._lock = threading.Lock()

    def add(self, event: Settled | Gap) -> None:
        """Know another settled window."""
        with self._lock:
            if event.window_start not in self._windows:
                insort(self._starts, event.window_start)
            self._windows[event.window_start] = Window.of(event)

    def forget(self, before: int) -> None:
        """Know nothing of windows before a time any more."""
        with self._lock:
            at = bisect_left(self._starts, before)
            for start in self._starts[:at]:
                del self._windows[start]
            del self._starts[:at]

    def knows(self, window_start: int) -> bool:
        """Whether it is known how a window was settled."""
        with self._lock:
            return window_start in self._windows

    @property
    def newest(self) -> int | None:
        """The newest window that is known to be settled."""
        with self._lock:
            return self._starts[-1] if self._starts else None

    def settled_before(self, time: int) -> int:
        """How many windows before a time are known: what is made of them is good until it grows."""
        with self._lock:
            return bisect_left(self._starts, time)

    def demand_w(self) -> dict[int, float]:
        """Demand of all enrolled meters by window, W: scaled up where some are missing."""
        with self._lock:
            known = list(self._windows.values())
        demand = {start: self._power(wh) for start, wh in self._recorded.items()}
        for window in known:
            demand.pop(window.window_start, None)
            wh, count, enrolled = window.energy_wh, window.count, window.enrolled
            if wh is not None and count and enrolled and self._rules.covers(count, enrolled):
                demand[window.window_start] = self._power(wh * enrolled / count)
        return demand

    def measured_w(self, window_start: int) -> int | None:
        """What was released for a window, W, or else recorded; None where there is no figure."""
        with self._lock:
            window = self._windows.get(window_start)
        if window is None:
            wh = self._recorded.get(window_start)
        elif window.count and window.enrolled and self._rules.covers(window.count, window.enrolled):
            wh = window.energy_wh
        else:
            wh = None
        return None if wh is None else wh * 3600 // self._rules.window_length

    def _power(self, wh: float) -> float:
        return wh * 3600 / self._rules.window_length


def read_recorded(path: Path, window_length: int) -> dict[int, int]:
    """Wh by window start from a CSV file ``window_start,wh``, both whole numbers.

    Args:
        path: with a heading, then a window a line: Unix seconds, Wh. Windows may be missing.
        window_length: seconds; windows start on the grid of it.

    Raises:
        MalformedInput: CONFIG_INVALID names the line that is wrong.
    """
    found: dict[int, int] = {}
    heading, *rows = _lines(path) or [[]]
    if heading != _HEADING:
        raise _invalid("its first line is window_start,wh")
    for number, row in enumerate(rows, 2):
        start, wh = _figures(row, number)
        if start % window_length:
            raise _invalid(f"line {number}: a window starts on the grid of its length")
        if start in found:
            raise _invalid(f"line {number}: the window is there twice")
        found[start] = wh
    return found


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _invalid("it has more than 16 MiB")
        return list(csv.reader(data.decode("ascii").splitlines(), strict=True))
    except OSError:
        raise _invalid("it cannot be read") from None
    except (UnicodeDecodeError, csv.Error):
        raise _invalid("it is no CSV in ASCII") from None


def _figures(row: Sequence[str], number: int) -> tuple[int, int]:
    # What a city draws has no sign; and int() takes more than digits.
    if len(row) != 2 or not all(cell.isdigit() and len(cell) <= 15 for cell in row):
        raise _invalid(f"line {number} is not two whole numbers")
    start, wh = map(int, row)
    return start, wh


def _invalid(how: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"history: {how}", field="history")
