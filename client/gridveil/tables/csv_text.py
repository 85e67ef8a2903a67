"""A table of totals as CSV (RFC 4180, with lines that end in a line feed only), in UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO

from gridveil.tables.rows import Column, Kind, Layout, Row, Value, columns


def csv_lines(rows: Iterable[Row], layout: Layout) -> Iterator[str]:
    """The header, then a line a row, each with its line feed. What is null is empty.

    Times are in ISO 8601: ``window_start`` in UTC with a Z, ``local_start`` without an offset.
    """
    found = columns(layout)
    yield _line(column.name for column in found)
    for row in rows:
        yield _line(_shown(column, column.value(row)) for column in found)


def write_csv(rows: Iterable[Row], layout: Layout, file: BinaryIO) -> None:
    """Write the lines as they come."""
    for line in csv_lines(rows, layout):
        file.write(line.encode())


def _shown(column: Column, value: Value) -> Value:
    if column.kind not in {Kind.INSTANT, Kind.WALL_CLOCK} or not isinstance(value, int):
        return value
    shown = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{shown}Z" if column.kind is Kind.INSTANT else shown


def _line(values: Iterable[Value]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
