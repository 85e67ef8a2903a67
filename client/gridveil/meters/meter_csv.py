"""Plain CSV of one meter's interval values, strictly.

The header is ``timestamp``, then a column for each register, named by its unit (``import_kwh``,
``export_wh``, ``reactive_kvarh``), then ``quality`` if there is one. A row is an interval, named by
its start: ISO 8601 with an offset or ``Z``, Unix seconds, or a local time if its zone is given. An
empty cell is a missing value, and never zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from gridveil.meters.slots import (
    Grade,
    MeterSlots,
    Slot,
    SlotTable,
    csv_rows,
    fault,
    micro_of,
    placed,
)
from gridveil.protocol.errors import MalformedInput

_COLUMN = re.compile(r"([a-z][a-z0-9_]{0,25})_(wh|kwh|varh|kvarh)")
_UNITS = {"wh": ("wh", 1), "kwh": ("wh", 1000), "varh": ("varh", 1), "kvarh": ("varh", 1000)}
_VALUE = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?")
_UNIX = re.compile(r"[0-9]{9,11}")
_GRADES = {
    "": Grade.MEASURED,
    "measured": Grade.MEASURED,
    "estimated": Grade.ESTIMATED,
    "missing": Grade.MISSING,
}
_MOST_COLUMNS = 16
_LENGTHS = range(60, 3601, 60)


def read_csv(data: bytes, name: str, zone: ZoneInfo | None, seconds: int) -> list[MeterSlots]:
    """The one meter of a file; channels by register, in Wh or varh (``import_wh``).

    Of a local hour that comes twice the rows come twice, in their order.

    Args:
        data: the file.
        name: of the meter.
        zone: of times without an offset; None if there are to be none.
        seconds: length of every interval.

    Raises:
        MalformedInput: READING_INVALID with the fault and the line.
    """
    if seconds not in _LENGTHS:
        raise fault("interval", "intervals are whole minutes, one to sixty")
    rows = csv_rows(data)
    _, header = next(rows, (1, []))
    columns, has_quality = _columns(header)
    table, times = SlotTable(), _Times(zone)
    channels = [(table.channel(name, column), unit) for column, unit in columns]
    for line, row in rows:
        try:
            _take_row(row, channels, has_quality, times, seconds, table)
        except MalformedInput as error:
            raise placed(error, line) from None
    times.finish()
    return [
        MeterSlots(meter, found, {column: (column,) for column in found})
        for meter, found in table.meters().items()
    ]


def _columns(header: Sequence[str]) -> tuple[list[tuple[str, int]], bool]:
    """Register and unit of each column, and whether qualities follow."""
    has_quality = header[-1:] == ["quality"]
    named = header[1:-1] if has_quality else header[1:]
    matches = [_COLUMN.fullmatch(column) for column in named]
    columns = [
        (f"{found[1]}_{_UNITS[found[2]][0]}", _UNITS[found[2]][1]) for found in matches if found
    ]
    known = len(columns) == len(named) and 1 <= len(named) <= _MOST_COLUMNS
    if header[:1] != ["timestamp"] or not known or len(dict(columns)) != len(columns):
        raise fault("register", "the header is not timestamp and registers such as import_kwh", 1)
    return columns, has_quality


def _take_row(
    row: list[str],
    channels: Sequence[tuple[list[Slot], int]],
    has_quality: bool,
    times: _Times,
    seconds: int,
    table: SlotTable,
) -> None:
    if len(row) != 1 + len(channels) + has_quality:
        raise fault("record", "another number of columns than the header has")
    start = times.read(row[0])
    grade = _GRADES.get(row[-1] if has_quality else "")
    if grade is None:
        raise fault("quality", "neither measured, estimated nor missing")
    for text, (channel, unit) in zip(row[1:], channels, strict=False):
        table.take(channel, _slot(text, unit, start, seconds, grade))


def _slot(text: str, unit: int, start: int, seconds: int, grade: Grade) -> Slot:
    if not text or grade is Grade.MISSING:
        return Slot(start, seconds, 0, Grade.MISSING)
    if not _VALUE.fullmatch(text):
        raise fault("value", "no amount of energy")
    return Slot(start, seconds, micro_of(Decimal(text), unit), grade)


class _Times:
    """Reads times; of local ones, tells the two of the hour that comes twice by their order."""

    def __init__(self, zone: ZoneInfo | None) -> None:
        self._zone = zone
        self._seen: dict[datetime, int] = {}
        """How often a local time that there is twice has come."""

    def read(self, text: str) -> int:
        if _UNIX.fullmatch(text):
            return int(text)
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise fault("time", "neither a time in ISO 8601 nor Unix seconds") from None
        if time.microsecond:
            raise fault("time", "not a whole second")
        return _seconds(time if time.tzinfo else self._placed(time))

    def _placed(self, time: datetime) -> datetime:
        if self._zone is None:
            raise fault("time", "a local time, and no zone that it is of")
        local = time.replace(tzinfo=self._zone)
        if local.utcoffset() == local.replace(fold=1).utcoffset():
            return local
        if not _exists(local):
            raise fault("time", "a local time that there is not")
        fold = self._seen.get(time, 0)
        if fold > 1:
            raise fault("time", "a local time that comes more often than there is")
        self._seen[time] = fold + 1
        return local.replace(fold=fold)

    def finish(self) -> None:
        """Which of two hours it was is told by their order alone: there must be both."""
        if any(count == 1 for count in self._seen.values()):
            raise fault("time", "of a local time that there is twice, only one")


def _exists(local: datetime) -> bool:
    back = local.astimezone(UTC).astimezone(local.tzinfo)
    return back.replace(tzinfo=None) == local.replace(tzinfo=None)


def _seconds(time: datetime) -> int:
    try:
        return int(time.timestamp())
    except (OverflowError, ValueError):
        raise fault("time", "a time that there is not") from None
