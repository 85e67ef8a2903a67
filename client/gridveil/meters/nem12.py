"""NEM12 interval files of Australian meters (AEMO, MDFF specification 2.6), strictly.

Times are the market's, ten hours ahead of UTC all year. aemo-mdff-reader reads the records; what it
lets pass is refused before it sees it: an empty value, which it takes for zero, a record too long,
an indicator that it does not know, a file without its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from gridveil.meters.registers import DRAWN, FED_IN
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
from gridveil.protocol.errors import MalformedInput, Reason

if TYPE_CHECKING:
    from aemo_mdff_reader import IntervalReading

MARKET_OFFSET = timedelta(hours=10)
"""Eastern Australian standard time, which has no summer."""

_UNITS = {"WH": 1, "KWH": 1_000, "MWH": 1_000_000, "VARH": 1, "KVARH": 1_000, "MVARH": 1_000_000}
_LENGTHS = {"5", "15", "30"}
_DATE = re.compile(r"[0-9]{8}")
_VALUE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_NMI = re.compile(r"[A-Z0-9]{10}")
_SUFFIX = re.compile(r"[A-Z][0-9A-Z]")
_QUALITY = re.compile(r"A|V|N|[AEFSN][0-9]{2}")
_TRAILING = 5
"""Fields of a 300 record after its values."""

_GRADES = {
    "A": Grade.MEASURED,
    "E": Grade.ESTIMATED,
    "F": Grade.ESTIMATED,
    "S": Grade.ESTIMATED,
    "N": Grade.MISSING,
}
_REGISTERS = {DRAWN: "E", FED_IN: "B"}
"""First letter of the channels that master meters have: E to the customer, B from it."""


def read_nem12(data: bytes) -> list[MeterSlots]:
    """The meters of a file, by NMI; channels by suffix, such as ``E1``, as far as they are energy.

    Raises:
        MalformedInput: READING_INVALID with the fault and the line; CONFIG_INVALID if the extra
            ``gridveil[meters]`` is not installed.
    """
    _check_installed()
    reading = _File()
    for line, row in csv_rows(data):
        try:
            reading.take(row)
        except MalformedInput as error:
            raise placed(error, line) from None
    reading.finish()
    return [
        MeterSlots(nmi, channels, _registers(channels))
        for nmi, channels in reading.table.meters().items()
    ]


def _check_installed() -> None:
    try:
        import aemo_mdff_reader  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "NEM12 needs aemo-mdff-reader: install the extra with pip install 'gridveil[meters]'",
        ) from None


def _registers(channels: dict[str, list[Slot]]) -> dict[str, tuple[str, ...]]:
    named = {
        name: tuple(sorted(channel for channel in channels if channel.startswith(letter)))
        for name, letter in _REGISTERS.items()
    }
    return {name: suffixes for name, suffixes in named.items() if suffixes}


@dataclass
class _Day:
    """A 300 record whose qualities may follow."""

    readings: Sequence[tuple[IntervalReading, str]]
    """Each with its value as it is written."""
    channel: list[Slot]
    unit: int
    grades: list[Grade | None]


@dataclass
class _File:
    """The records so far. Their order: 100, then 200 with its 300s and their 400s, then 900."""

    table: SlotTable = field(default_factory=SlotTable)
    begun: bool = False
    ended: bool = False
    details: list[str] | None = None
    passed_over: bool = False
    """Whether the channel of the last 200 is no energy."""
    day: _Day | None = None
    a_day: int = 0

    def take(self, row: list[str]) -> None:
        if self.ended:
            raise fault("record", "goes on after its end")
        indicator = row[0]
        if not self.begun:
            if row[:2] != ["100", "NEM12"]:
                raise fault("record", "does not begin with a 100 record of NEM12")
            self.begun = True
        elif indicator == "200":
            self._close_day()
            self._begin_channel(row)
        elif indicator == "300":
            self._close_day()
            self._begin_day(row)
        elif indicator == "400":
            self._take_event(row)
        elif indicator == "900":
            self._close_day()
            self.ended = True
        elif indicator != "500":
            raise fault("record", "not a record that NEM12 has here")

    def finish(self) -> None:
        if not self.ended:
            raise fault("cut_off", "cut off: it has no 900 record")

    def _begin_channel(self, row: list[str]) -> None:
        if not 9 <= len(row) <= 10:
            raise fault("record", "a 200 record has ten fields")
        if not _NMI.fullmatch(row[1]) or not _SUFFIX.fullmatch(row[4]):
            raise fault("meter", "no NMI, or no suffix of a channel")
        if row[8] not in _LENGTHS:
            raise fault("interval", "intervals are 5, 15 or 30 minutes")
        self.details = row
        self.passed_over = row[7].upper() not in _UNITS
        self.a_day = 24 * 60 // int(row[8])

    def _begin_day(self, row: list[str]) -> None:
        if self.details is None:
            raise fault("record", "a 300 record before any 200")
        if not self.a_day + 3 <= len(row) <= self.a_day + 2 + _TRAILING:
            raise fault("record", "a 300 record of another number of values than its day has")
        if self.passed_over:
            return
        values = row[2 : 2 + self.a_day]
        quality = row[2 + self.a_day]
        if not _DATE.fullmatch(row[1]):
            raise fault("time", "no date of eight digits")
        if not _QUALITY.fullmatch(quality):
            raise fault("quality", "no quality of A, E, F, N, S or V with its method")
        for value in values:
            if not _VALUE.fullmatch(value):
                raise fault("value", "no amount of energy")
        self.day = _Day(
            list(zip(self._read(row), values, strict=True)),
            self.table.channel(self.details[1], self.details[4]),
            _UNITS[self.details[7].upper()],
            [_GRADES.get(quality[0])] * self.a_day,
        )

    def _read(self, row: list[str]) -> list[IntervalReading]:
        from aemo_mdff_reader import parse

        # Only what is used: the reasons behind the values are texts of any kind.
        bare = row[: self.a_day + 3]
        try:
            return list(parse([[*(self.details or [])[:9]], bare]))
        except ValueError:
            raise fault("time", "a date that there is not") from None

    def _take_event(self, row: list[str]) -> None:
        if self.passed_over:
            return
        if self.day is None:
            raise fault("record", "a 400 record before any 300")
        first, last = (_whole(text) for text in (*row[1:3], "", "")[:2])
        if not 1 <= first <= last <= self.a_day:
            raise fault("quality", "a 400 record of intervals that the day has not")
        quality = row[3] if len(row) > 3 else ""
        if not _QUALITY.fullmatch(quality) or quality[0] == "V":
            raise fault("quality", "no quality of A, E, F, N or S with its method")
        self.day.grades[first - 1 : last] = [_GRADES[quality[0]]] * (last - first + 1)

    def _close_day(self) -> None:
        day, self.day = self.day, None
        if day is None:
            return
        for (reading, text), grade in zip(day.readings, day.grades, strict=True):
            if grade is None:
                raise fault("quality", "a day of varying quality that 400 records do not cover")
            start = reading.interval_start.replace(tzinfo=UTC) - MARKET_OFFSET
            micro = 0 if grade is Grade.MISSING else micro_of(Decimal(text), day.unit)
            slot = Slot(int(start.timestamp()), reading.interval_length * 60, micro, grade)
            self.table.take(day.channel, slot)


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
