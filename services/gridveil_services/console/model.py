"""What the console knows of the city, and the views of it: no I/O, all of it checked before.

Power is in W, the mean over a window. A window without a figure has None: a gap is never a zero.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, tzinfo
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

import msgspec

from gridveil.days import same_time_before, windows_of
from gridveil.operator import NotReleased, Outcome, ReleasedTotal
from gridveil.protocol.errors import MalformedInput, Reason

HISTORY_DAYS = 400
"""So far back totals are kept in memory: a year, and the same weeks of the year before it."""
_DAY_S = 86_400
SIGNALS_LISTED = 20
RELEASED = "released"


class Row(msgspec.Struct, frozen=True):
    """A settled window."""

    window_start: int
    status: str
    """``released``, or the reason in lower case why there is no total."""
    sum: int | None = None
    """Of the register that the console shows, in its unit."""
    count: int | None = None
    enrolled: int | None = None
    lanes: int | None = None
    left_out: Sequence[int] = ()
    noisy: bool = False
    opened_at: int | None = None
    """When the log says that it was settled: Unix seconds of the key-holder's clock."""
    parameters: str | None = None
    """Digest of the city parameters that the total names, in hex."""


class SignalRow(msgspec.Struct, frozen=True):
    """A signal of the controller, as shown."""

    number: int
    at: int
    window_start: int | None
    level: int
    basis: str
    cause: str
    reason: str
    measured_w: int | None
    estimated_w: int | None
    openadr: Sequence[Mapping[str, str]] = ()
    """Each with ``json`` and ``delivery``."""

    def says_more_than(self, before: SignalRow) -> bool:
        """Whether it is more than that no news has come."""
        if self.cause == "WAITING":
            return self.level != before.level
        said = (self.level, self.basis, self.cause, self.reason)
        return self.measured_w is not None or said != (
            before.level,
            before.basis,
            before.cause,
            before.reason,
        )


class ForecastPoint(NamedTuple):
    """What is expected of a window, W."""

    expected_w: int | None = None
    low_w: int | None = None
    high_w: int | None = None
    yesterday_w: int | None = None
    last_week_w: int | None = None


Columns = dict[str, list[int | None]]
"""A value a window."""


class CityModel:
    """Settled windows and signals, by window.

    Args:
        register: in Wh, whose sum is the demand.
        length: of a window, seconds.
        zone: where days begin and end.
    """

    def __init__(self, register: str, length: int, zone: tzinfo) -> None:
        self.register = register
        self.length = length
        self.zone = zone
        self._rows: dict[int, Row] = {}
        self._newest = -1
        self._signals: dict[int, SignalRow] = {}
        self._levels: list[tuple[int, int]] = []
        self._newest_signal: SignalRow | None = None
        self._recent: deque[SignalRow] = deque(maxlen=SIGNALS_LISTED)

    def settle(self, outcome: Outcome) -> Row:
        """Take a verified outcome.

        Raises:
            MalformedInput: CONFIG_INVALID if the city has no such register in Wh, or windows of
                another length.
        """
        if isinstance(outcome, ReleasedTotal) and outcome.total.window_length != self.length:
            raise MalformedInput(Reason.CONFIG_INVALID, "the windows have another length")
        row = row_of(outcome, self.register)
        self.take([row])
        return row

    def take(self, rows: Iterable[Row]) -> None:
        """Take rows as they are."""
        for row in rows:
            self._rows[row.window_start] = row
            if row.status == RELEASED:
                self._newest = max(self._newest, row.window_start)

    def add_signal(self, signal: SignalRow) -> None:
        """Take the next signal; the first one about a window is the one shown with it.

        Later ones about it say that no news came.
        """
        newest = self._newest_signal
        if newest and signal.number <= newest.number and signal.at <= newest.at:
            return
        self._newest_signal = signal
        if not self._recent or signal.says_more_than(self._recent[-1]):
            self._recent.append(signal)
        if not self._levels or self._levels[-1][1] != signal.level:
            self._levels.append((signal.at, signal.level))
        if signal.window_start is not None:
            self._signals.setdefault(signal.window_start, signal)

    def update_signal(self, signal: SignalRow) -> bool:
        """Take the newest signal with another delivery of its events; whether it is another."""
        newest = self._newest_signal
        if newest is None or signal.number != newest.number or signal == newest:
            return False
        self._newest_signal = signal
        return True

    def forget(self, before: int) -> None:
        """Drop what begins before a time."""
        self._rows = {at: row for at, row in self._rows.items() if at >= before}
        self._signals = {at: one for at, one in self._signals.items() if at >= before}
        # The last one before it stands until the next.
        self._levels = self._levels[max(0, self._place(before)) :]

    @property
    def newest(self) -> Row | None:
        """The newest window that was released."""
        return self._rows.get(self._newest)

    @property
    def newest_signal(self) -> SignalRow | None:
        """The signal that stands."""
        return self._newest_signal

    def signal(self, window_start: int) -> SignalRow | None:
        """What was signalled for a window."""
        return self._signals.get(window_start)

    def level_at(self, at: int) -> int | None:
        """The level that stands at a time; None before the first signal."""
        place = self._place(at)
        return self._levels[place][1] if place >= 0 else None

    def levels(self, first: int, end: int) -> list[tuple[int, int]]:
        """Levels and since when, from the one that stands at ``first``."""
        return [one for one in self._levels[max(0, self._place(first)) :] if one[0] < end]

    def _place(self, at: int) -> int:
        return bisect_right(self._levels, at, key=itemgetter(0)) - 1

    @property
    def level_since(self) -> int | None:
        """From when on the level that stands was signalled."""
        return self._levels[-1][0] if self._levels else None

    @property
    def recent_signals(self) -> list[SignalRow]:
        """Newest first: those that said anything new."""
        return list(reversed(self._recent))

    def row(self, window_start: int) -> Row | None:
        """A settled window."""
        return self._rows.get(window_start)

    def released(self, most: int) -> list[Row]:
        """The newest windows with a total, newest first."""
        # Back from the newest, which is where they are: anybody may ask for them.
        oldest = max(self._newest - HISTORY_DAYS * _DAY_S, -1)
        rows = (self._rows.get(at) for at in range(self._newest, oldest, -self.length))
        return list(islice((row for row in rows if row and row.status == RELEASED), most))

    def measured_w(self, window_start: int) -> int | None:
        """Mean power of the meters in a total."""
        row = self._rows.get(window_start)
        if row is None or row.sum is None:
            return None
        return row.sum * 3600 // self.length

    def estimated_w(self, window_start: int) -> int | None:
        """That scaled up to all enrolled meters; None where none is missing."""
        row = self._rows.get(window_start)
        if row is None or row.sum is None or not row.count or row.enrolled is None:
            return None
        if row.count == row.enrolled:
            return None
        return row.sum * 3600 * row.enrolled // (self.length * row.count)

    def demand_w(self, window_start: int) -> int | None:
        """Of all enrolled meters: measured, or estimated where some are missing."""
        estimated = self.estimated_w(window_start)
        return self.measured_w(window_start) if estimated is None else estimated

    def earlier_w(self, window_start: int, days: int) -> int | None:
        """Demand at the same local time some days before."""
        return self.demand_w(same_time_before(window_start, days, self.zone))


def row_of(outcome: Outcome, register: str) -> Row:
    """A verified outcome as a row; CONFIG_INVALID if the city has no such register in Wh."""
    if isinstance(outcome, NotReleased):
        return Row(outcome.window_start, outcome.reason.value.lower())
    units = {found.name: found.unit for found in outcome.total.registers}
    if units.get(register) != "Wh":
        raise MalformedInput(Reason.CONFIG_INVALID, "the totals have no such register in Wh")
    return _released(outcome, register)


def _released(outcome: ReleasedTotal, register: str) -> Row:
    total = outcome.total
    return Row(
        total.window_start,
        RELEASED,
        outcome.sum(register),
        total.count,
        total.enrolled,
        total.lanes,
        total.left_out,
        total.noise is not None,
        parameters=total.parameters_digest.hex(),
    )


def day_view(
    model: CityModel, day: date, forecast: Mapping[int, ForecastPoint] | None = None
) -> dict[str, object]:
    """All that is drawn of a local day: a value for each of its 92, 96 or 100 quarter-hours."""
    windows = windows_of(day, model.zone, model.length)
    points = forecast or {}
    rows = [model.row(at) for at in windows]
    signals = [model.signal(at) for at in windows]
    return {
        "day": day.isoformat(),
        "windows": list(windows),
        "status": [row.status if row else None for row in rows],
        "count": [row.count if row else None for row in rows],
        "enrolled": [row.enrolled if row else None for row in rows],
        "lanes": [row.lanes if row else None for row in rows],
        "left_out": [list(row.left_out) if row else [] for row in rows],
        "noisy": [row.noisy if row else False for row in rows],
        "sum": [row.sum if row else None for row in rows],
        "levels": model.levels(windows.start, windows.stop),
        "level": [one.level if one else None for one in signals],
        "basis": [one.basis if one else None for one in signals],
        "cause": [one.cause if one else None for one in signals],
        **_series(model, windows),
        "expected": [_point(points, at).expected_w for at in windows],
        "low": [_point(points, at).low_w for at in windows],
        "high": [_point(points, at).high_w for at in windows],
        "yesterday": _earlier(model, windows, 1, points),
        "last_week": _earlier(model, windows, 7, points),
    }


def range_view(model: CityModel, windows: range) -> dict[str, object]:
    """A longer stretch: five series of one value a window."""
    return {
        "first": windows.start,
        "step": windows.step,
        **_series(model, windows),
        "yesterday": _earlier(model, windows, 1, {}),
        "last_week": _earlier(model, windows, 7, {}),
        "level": [model.level_at(at) for at in windows],
    }


def _series(model: CityModel, windows: Sequence[int]) -> Columns:
    return {
        "measured": [model.measured_w(at) for at in windows],
        "estimated": [model.estimated_w(at) for at in windows],
    }


def _earlier(
    model: CityModel, windows: Sequence[int], days: int, points: Mapping[int, ForecastPoint]
) -> list[int | None]:
    """From what was released; else what the controller knows from before the first total."""
    found = []
    for at in windows:
        own = model.earlier_w(at, days)
        point = _point(points, at)
        known = point.yesterday_w if days == 1 else point.last_week_w
        found.append(known if own is None else own)
    return found


def _point(points: Mapping[int, ForecastPoint], window_start: int) -> ForecastPoint:
    return points.get(window_start) or ForecastPoint()
