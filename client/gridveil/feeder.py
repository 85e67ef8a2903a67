"""What was measured at a feeder: a CSV file of windows, read strictly.

The first line is ``window_start,wh``; each other one is a window's start, in Unix seconds or in
ISO 8601 (RFC 3339) with its offset, and the energy that went through the feeder in it, whole Wh,
negative if more came back. A local time without an offset is refused: once a year it means two
windows. Windows that were not measured are left out, never written as zero.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from gridveil.protocol.errors import MalformedInput, Reason

HEADER = ["window_start", "wh"]
MOST_BYTES = 64 * 2**20
MOST_ROWS = 1_000_000
"""Some 28 years of quarter-hours."""
LATEST = 2**37
"""Unix seconds; what calendars have."""

_NUMBER = re.compile(r"-?[0-9]{1,15}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


def read_feeder(path: Path) -> dict[int, int]:
    """Wh by window start (Unix seconds), ascending.

    Raises:
        MalformedInput: MESSAGE_TOO_LARGE above 64 MiB; RANGE_INVALID for more than 1,000,000 rows
            or a window that is there twice; MALFORMED_MESSAGE for what is no such CSV; FIELD_FORMAT
            for a time or a number that is none. Rows are named by their line, values never.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise MalformedInput(Reason.MESSAGE_TOO_LARGE, "a feeder's file has at most 64 MiB")
    found: dict[int, int] = {}
    for line, window, wh in _rows(_text(data)):
        if window in found:
            raise MalformedInput(Reason.RANGE_INVALID, f"line {line} has a window a second time")
        if len(found) == MOST_ROWS:
            raise MalformedInput(Reason.RANGE_INVALID, "a feeder's file has at most 1,000,000 rows")
        found[window] = wh
    return dict(sorted(found.items()))


def check_grid(feeder: Mapping[int, int], length: int) -> None:
    """Whether a feeder was measured in windows of ``length`` seconds.

    Args:
        feeder: as :func:`read_feeder` returns it.
        length: of the city's windows.

    Raises:
        MalformedInput: WINDOW_MISALIGNED for a row between two windows; CONFIG_INVALID if no two
            rows are as near as two windows: such a file has longer ones.
    """
    if any(window % length for window in feeder):
        raise MalformedInput(
            Reason.WINDOW_MISALIGNED, f"the feeder has rows that begin no window of {length} s"
        )
    nearest = min((after - before for before, after in pairwise(feeder)), default=length)
    if nearest != length:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"the feeder's rows are {nearest} s apart, and the city's windows {length} s",
        )


def _text(data: bytes) -> str:
    try:
        # Spreadsheets begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "a feeder's file is text in UTF-8") from None


def _rows(text: str) -> Iterator[tuple[int, int, int]]:
    """Line, window and Wh of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if next(reader, None) != HEADER:
            raise MalformedInput(
                Reason.MALFORMED_MESSAGE, "the first line of a feeder's file is window_start,wh"
            )
        for row in reader:
            yield reader.line_num, *_row(row, reader.line_num)
    except csv.Error:
        raise MalformedInput(
            Reason.MALFORMED_MESSAGE, f"line {reader.line_num} is not CSV"
        ) from None


def _row(row: list[str], line: int) -> tuple[int, int]:
    if len(row) != len(HEADER):
        raise MalformedInput(Reason.MALFORMED_MESSAGE, f"line {line} has not two columns")
    if not _NUMBER.fullmatch(row[1]):
        raise MalformedInput(Reason.FIELD_FORMAT, f"line {line} has no whole number of Wh")
    return _window(row[0], line), int(row[1])


def _window(value: str, line: int) -> int:
    seconds = float(value) if _SECONDS.fullmatch(value) else _instant(value)
    if seconds is None or not seconds.is_integer() or not 0 <= seconds <= LATEST:
        raise MalformedInput(
            Reason.FIELD_FORMAT,
            f"line {line} begins with neither Unix seconds nor a time in ISO 8601 with its offset",
        )
    return int(seconds)


def _instant(value: str) -> float | None:
    try:
        time = datetime.fromisoformat(value)
        return time.timestamp() if time.tzinfo else None
    except (ValueError, OverflowError):
        return None
