"""Readings from CSV files, gzipped or not, strictly: every fault is named by line and column.

Wide: header ``meter_id`` and one column an interval, one row a meter, the intervals ascending
without a gap. Long: header ``meter_id,timestamp,wh``, one row a reading, in any order;
timestamps are interval starts, ISO 8601 with an offset or ``Z``, or Unix seconds. Values are
whole signed Wh. The text is streamed; only the readings asked for are kept.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.simulator.readings import ReadingBounds, Readings

_LONG_HEADER = ["meter_id", "timestamp", "wh"]
_WHOLE = re.compile(r"-?[0-9]{1,12}")
_UNIX = re.compile(r"[0-9]{1,12}")
_GZIP_MAGIC = b"\x1f\x8b"

_FAULTS = (UnicodeDecodeError, csv.Error, EOFError, zlib.error, OSError)


class BadReading(Exception):
    """A fault in one row, or in one of its cells; ``column`` counts from 1."""

    def __init__(self, column: int, what: str) -> None:
        super().__init__(what)
        self.column = column
        self.what = what


@dataclass
class CsvSource:
    """A CSV file of readings."""

    path: Path
    start: int | None = None
    """Start of a wide file's first interval, Unix seconds UTC."""
    skip_bad: bool = False
    """Pass over bad rows and readings, and count them, instead of refusing the file."""
    skipped: int = 0
    unassigned: int = 0
    """Meters of the file that the fleet has no keys for."""
    _reads: int = 0

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        """As :class:`gridveil.simulator.readings.ReadingSource` says."""
        table = Readings.none(windows, len(labels))
        places = _Places(labels)
        line = 1
        try:
            with _open(self.path) as file:
                rows = csv.reader(file, strict=True)
                reader = self._layout(next(rows, []), windows, bounds)
                for line, row in enumerate(rows, 2):
                    self._take_row(line, row, reader, table, places)
        except _FAULTS as error:
            raise self._unreadable(error, line) from None
        self.unassigned = len(places.unassigned)
        self._reads += 1
        return table

    def intervals(self) -> int | None:
        """How many intervals a wide file has; None for a long one."""
        try:
            with _open(self.path) as file:
                header = next(csv.reader(file, strict=True), [])
        except _FAULTS as error:
            raise self._unreadable(error, 0) from None
        return None if header == _LONG_HEADER else max(0, len(header) - 1)

    def names(self) -> list[str]:
        """The meters of the file, in the order in which they first appear."""
        line, names = 1, dict[str, None]()
        try:
            with _open(self.path) as file:
                rows = csv.reader(file, strict=True)
                next(rows, None)
                for line, row in enumerate(rows, 2):
                    try:
                        names[_name(row[0] if row else "")] = None
                    except BadReading as fault:
                        self._pass_over(line, fault, False)
        except _FAULTS as error:
            raise self._unreadable(error, line) from None
        return list(names)

    def _layout(
        self, header: list[str], windows: Sequence[int], bounds: ReadingBounds
    ) -> _WideRows | _LongRows:
        if header == _LONG_HEADER:
            return _LongRows({start: at for at, start in enumerate(windows)}, bounds)
        if len(header) < 2 or header[0] != "meter_id" or "timestamp" in header:
            raise self._bad(
                1, 1, "the header is neither meter_id,timestamp,wh nor meter_id and intervals"
            )
        if self.start is None:
            raise self._config("needs the start of its first interval (--start)")
        if self.start % bounds.window_length:
            raise self._config(f"must start at a multiple of {bounds.window_length} s")
        columns = [1 + (start - self.start) // bounds.window_length for start in windows]
        if columns and not (columns[0] >= 1 and columns[-1] < len(header)):
            last = self.start + (len(header) - 1) * bounds.window_length
            raise self._config(f"has intervals from {self.start} to {last} only")
        return _WideRows(len(header), columns, bounds)

    def _take_row(
        self,
        line: int,
        row: list[str],
        reader: _WideRows | _LongRows,
        table: Readings,
        places: _Places,
    ) -> None:
        try:
            cells = list(reader.cells(row, places))
        except BadReading as fault:
            # A file is read once for each block of windows; its rows are counted the first time.
            self._pass_over(line, fault, self._reads == 0)
            return
        for cell in cells:
            try:
                _take_cell(cell, reader.bounds, table)
            except BadReading as fault:
                self._pass_over(line, fault, True)

    def _pass_over(self, line: int, fault: BadReading, counts: bool) -> None:
        if not self.skip_bad:
            raise self._bad(line, fault.column, fault.what)
        self.skipped += counts

    def _bad(self, line: int, column: int, what: str) -> MalformedInput:
        return MalformedInput(
            Reason.READING_INVALID,
            f"{self.path.name}, line {line}, column {column}: {what}",
            line=str(line),
            column=str(column),
        )

    def _config(self, what: str) -> MalformedInput:
        return MalformedInput(Reason.CONFIG_INVALID, f"{self.path.name} {what}")

    def _unreadable(self, error: Exception, line: int) -> MalformedInput:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            return self._config("cannot be read")
        return MalformedInput(
            Reason.READING_INVALID,
            f"{self.path.name} is not whole CSV text in UTF-8 after line {line}",
            line=str(line),
        )


class _Places:
    """Which column of the table a meter of the file has."""

    def __init__(self, labels: Sequence[str | None]) -> None:
        self._known = {label: at for at, label in enumerate(labels) if label is not None}
        self._free = iter([at for at, label in enumerate(labels) if label is None])
        self.unassigned: set[str] = set()
        self.rows: set[str] = set()

    def find(self, name: str) -> int | None:
        """Its place; unlabelled meters take the file's others in the order they appear."""
        if name not in self._known and name not in self.unassigned:
            place = next(self._free, None)
            if place is None:
                self.unassigned.add(name)
            else:
                self._known[name] = place
        return self._known.get(name)


Cell = tuple[int, int, int, str]
"""Column in the file, window and meter in the table, text."""


@dataclass(frozen=True)
class _WideRows:
    width: int
    columns: list[int]
    """Place in a row of each window asked for."""
    bounds: ReadingBounds

    def cells(self, row: list[str], places: _Places) -> Iterator[Cell]:
        if len(row) != self.width:
            raise BadReading(len(row) or 1, f"the row has {len(row)} columns, not {self.width}")
        name = _name(row[0])
        if name in places.rows:
            raise BadReading(1, "the meter has a row already")
        places.rows.add(name)
        place = places.find(name)
        if place is not None:
            for window, column in enumerate(self.columns):
                yield column + 1, window, place, row[column]


@dataclass(frozen=True)
class _LongRows:
    windows: dict[int, int]
    bounds: ReadingBounds

    def cells(self, row: list[str], places: _Places) -> Iterator[Cell]:
        if len(row) != len(_LONG_HEADER):
            raise BadReading(len(row) or 1, f"the row has {len(row)} columns, not 3")
        name = _name(row[0])
        start = _timestamp(row[1])
        if start % self.bounds.window_length:
            raise BadReading(2, f"not a multiple of {self.bounds.window_length} s")
        # Whatever windows are asked for, a meter has the same place.
        window, place = self.windows.get(start), places.find(name)
        if window is not None and place is not None:
            yield 3, window, place, row[2]


def _take_cell(cell: Cell, bounds: ReadingBounds, table: Readings) -> None:
    column, window, meter, text = cell
    value = _whole(text, column, bounds)
    if table.present[window, meter]:
        raise BadReading(column, "the meter has a reading of this interval already")
    table.wh[window, meter] = value
    table.present[window, meter] = True


def _name(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise BadReading(1, "not a meter's name")
    return text


def _whole(text: str, column: int, bounds: ReadingBounds) -> int:
    if not _WHOLE.fullmatch(text):
        raise BadReading(column, "not a whole number of Wh" if text else "no reading")
    value = int(text)
    if not bounds.least <= value <= bounds.most:
        raise BadReading(column, f"not within {bounds.least} and {bounds.most} Wh")
    return value


def _timestamp(text: str) -> int:
    if _UNIX.fullmatch(text):
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadReading(2, "neither a time in ISO 8601 nor Unix seconds") from None
    if time.tzinfo is None:
        raise BadReading(2, "the time has neither a UTC offset nor Z")
    if time.microsecond:
        raise BadReading(2, "not a whole second")
    return int(time.timestamp())


def _open(path: Path) -> TextIO:
    """Text of a file, decompressed if it is gzip whatever its name."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")
