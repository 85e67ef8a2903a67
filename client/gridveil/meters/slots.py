"""What a file of interval values holds, whatever its format: energy by meter, channel and time.

Readers parse strictly and at once, within bounds: a file is read as a whole or refused as a whole,
with the place of its first fault and never with a value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from gridveil.protocol.errors import MalformedInput, Reason

MOST_BYTES = 64 * 1024 * 1024
"""Of a file."""

MOST_SLOTS = 500_000
"""Values of a file: 14 years of quarter-hours of one channel."""

MOST_CHANNELS = 1_000
MICRO = 1_000_000
"""Parts of a Wh or varh: the finest amount that a file may state."""

_EARLIEST, _LATEST = 0, 2**33
_MOST_MICRO = 10**15 * MICRO


class Grade(StrEnum):
    """What a file says a value is."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    """Estimated, substituted, derived or edited: everything that no meter showed."""
    MISSING = "missing"


class Slot(NamedTuple):
    """Energy of one interval."""

    start: int
    """Unix seconds UTC."""
    seconds: int
    micro: int
    """Millionths of a Wh or varh; 0 if missing."""
    grade: Grade


@dataclass(frozen=True)
class MeterSlots:
    """The values of one meter, in the order of the file."""

    name: str
    channels: Mapping[str, list[Slot]] = field(repr=False)
    registers: Mapping[str, tuple[str, ...]]
    """Which channels a register is the sum of, unless the user says otherwise."""


class SlotTable:
    """Collects the slots of a file within its bounds."""

    def __init__(self) -> None:
        self._meters: dict[str, dict[str, list[Slot]]] = {}
        self._channels = 0
        self._size = 0

    def channel(self, meter: str, channel: str) -> list[Slot]:
        """The slots of a channel; made if there is none."""
        channels = self._meters.setdefault(meter, {})
        if channel not in channels:
            self._channels += 1
            if self._channels > MOST_CHANNELS:
                raise fault("length", f"more than {MOST_CHANNELS:,} channels")
        return channels.setdefault(channel, [])

    def take(self, slots: list[Slot], slot: Slot) -> None:
        """Append to a channel; READING_INVALID for what no meter counts, or too many of them."""
        self._size += 1
        if self._size > MOST_SLOTS:
            raise fault("length", f"more than {MOST_SLOTS:,} values")
        if slot.seconds <= 0 or not _EARLIEST <= slot.start <= _LATEST:
            raise fault("time", "an interval that there is not")
        slots.append(slot)

    def meters(self) -> dict[str, dict[str, list[Slot]]]:
        """Channels by name, by meter."""
        return self._meters


def read_bounded(path: Path) -> bytes:
    """The bytes of a file of at most :data:`MOST_BYTES`.

    Raises:
        MalformedInput: CONFIG_INVALID if it cannot be read, READING_INVALID if it is longer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} cannot be read") from None
    if len(data) > MOST_BYTES:
        raise fault("length", f"longer than {MOST_BYTES:,} bytes")
    return data


def micro_of(value: Decimal, unit: int, power: int = 0) -> int:
    """Millionths of a Wh of ``value`` x 10^``power`` units of so many Wh.

    Raises:
        MalformedInput: READING_INVALID with the fault ``value`` for what is finer, or absurd.
    """
    amount = value.scaleb(power) * unit * MICRO
    if abs(amount) >= _MOST_MICRO or amount != int(amount):
        raise fault("value", "not an amount in millionths of a Wh, below 10^15 Wh")
    return int(amount)


def csv_rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Rows of CSV text in UTF-8 that are not empty, each with its number from 1 on."""
    line = 0
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        for line, row in enumerate(csv.reader(text, strict=True), 1):
            if row:
                yield line, row
    except (UnicodeDecodeError, csv.Error):
        raise fault("bytes", "not CSV text in UTF-8", line + 1) from None


def fault(name: str, what: str, line: int | None = None) -> MalformedInput:
    """READING_INVALID, naming what is wrong with a file and where; never a value."""
    if line is None:
        return MalformedInput(Reason.READING_INVALID, f"file: {what}", fault=name)
    told = f"file, line {line}: {what}"
    return MalformedInput(Reason.READING_INVALID, told, fault=name, line=str(line))


def placed(error: MalformedInput, line: int) -> MalformedInput:
    """A fault of a record, with its line."""
    return fault(error.metadata["fault"], error.message.removeprefix("file: "), line)
