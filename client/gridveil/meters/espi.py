"""Green Button files (NAESB REQ.21, ESPI 1.1 to 3.3): Atom feeds of interval blocks, strictly.

Entries refer to each other by links: an interval block to the collection that its meter reading
has, the meter reading to its usage point and to the reading type that says what the values are.
Times are Unix seconds. XML with a document type or entities is refused before anything is read.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gridveil.meters.registers import DRAWN, FED_IN
from gridveil.meters.slots import (
    MOST_SLOTS,
    Grade,
    MeterSlots,
    Slot,
    SlotTable,
    fault,
    micro_of,
)
from gridveil.protocol.errors import MalformedInput, Reason

_ATOM = "{http://www.w3.org/2005/Atom}"
_ESPI = "{http://naesb.org/espi}"
_MOST_ENTRIES = 100_000
_MOST_DEPTH = 32
_MOST_ELEMENTS = 1_000_000
"""Of one entry; a year of five-minute values has some 700,000."""

_PIECE = 2**20
_NUMBER = re.compile(r"-?[0-9]{1,15}")
_HREF = re.compile(r"[!-~]{1,512}")

_DELTA, _ELECTRICITY = 4, {0, 1}
"""accumulationBehaviour: energy of each interval. commodity: not said, or electricity."""

_CODES = {(72, 1): "1-0:1.8.0", (72, 19): "1-0:2.8.0", (73, 1): "1-0:3.8.0", (73, 19): "1-0:4.8.0"}
"""By uom (72 Wh, 73 varh) and flowDirection (1 to the customer, 19 from it)."""

_REGISTERS = {DRAWN: ("1-0:1.8.0",), FED_IN: ("1-0:2.8.0",)}
_MEASURED = {0, 14, 17, 18, 19}
"""quality: valid, raw, validated, verified, revenue-quality. All others are no measurement."""

_POWERS = range(-9, 10)


@dataclass
class _Entry:
    """What is kept of an entry: its links, and what it holds."""

    itself: str = ""
    up: str = ""
    related: list[str] = field(default_factory=list)
    kind: str = ""
    code: str | None = None
    """OBIS code of a reading type that is energy of intervals."""
    power: int = 0
    default: int | None = None
    """defaultQuality of a reading type."""
    slots: list[tuple[int, int, int, frozenset[int]]] = field(default_factory=list)
    """Start, seconds, value and qualities, of an interval block."""


def read_espi(data: bytes) -> list[MeterSlots]:
    """The usage points of a file, by the last part of their link; channels by OBIS code.

    Reading types that are no electric energy of intervals (power, cost, registers, gas) are passed
    over.

    Raises:
        MalformedInput: READING_INVALID with the fault; CONFIG_INVALID if the extra
            ``gridveil[meters]`` is not installed.
    """
    entries = list(_entries(data))
    by_kind: dict[str, list[_Entry]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry)
    types = _by_link(by_kind.get("ReadingType", []))
    points = _collections(by_kind.get("UsagePoint", []))
    readings = _collections(by_kind.get("MeterReading", []))
    table = SlotTable()
    for block in by_kind.get("IntervalBlock", []):
        reading = readings.get(block.up)
        point = points.get(reading.up) if reading else None
        if not reading or not point:
            raise fault("link", "a block whose meter reading or usage point is not in the file")
        _take_block(block, _type_of(reading, types), point, table)
    return [
        MeterSlots(name, channels, {n: c for n, c in _REGISTERS.items() if c[0] in channels})
        for name, channels in table.meters().items()
    ]


def _by_link(entries: list[_Entry]) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for entry in entries:
        if not entry.itself or entry.itself in found:
            raise fault("link", "an entry without a link to itself, or with another's")
        found[entry.itself] = entry
    return found


def _collections(entries: list[_Entry]) -> dict[str, _Entry | None]:
    """Entries by the collections that hang below them; None for what several refer to."""
    found: dict[str, _Entry | None] = {}
    for entry in _by_link(entries).values():
        for link in dict.fromkeys(entry.related):
            found[link] = None if link in found else entry
    return found


def _type_of(reading: _Entry, types: dict[str, _Entry]) -> _Entry:
    named = [types[link] for link in reading.related if link in types]
    if len(named) != 1:
        raise fault("link", "a meter reading without its one reading type")
    return named[0]


def _take_block(block: _Entry, kind: _Entry, point: _Entry, table: SlotTable) -> None:
    if kind.code is None:
        return
    channel = table.channel(point.itself.rstrip("/").rpartition("/")[2] or "meter", kind.code)
    for start, seconds, value, qualities in block.slots:
        said = qualities or ({kind.default} if kind.default is not None else set())
        grade = Grade.MEASURED if said <= _MEASURED else Grade.ESTIMATED
        micro = micro_of(Decimal(value), 1, kind.power)
        table.take(channel, Slot(start, seconds, micro, grade))


def _entries(data: bytes) -> Iterator[_Entry]:
    count, values = 0, 0
    for element in _elements(data):
        entry = _entry(element)
        count, values = count + 1, values + len(entry.slots)
        if count > _MOST_ENTRIES or values > MOST_SLOTS:
            raise fault("length", f"more than {_MOST_ENTRIES:,} entries or {MOST_SLOTS:,} values")
        yield entry


def _elements(data: bytes) -> Iterator[Any]:
    """Each entry once it is whole; XML that may hold more than it says is refused."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, iterparse
    except ModuleNotFoundError:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "Green Button needs defusedxml: install the extra with pip install 'gridveil[meters]'",
        ) from None
    depth, held = 0, 0
    root: Any = None
    try:
        for event, element in iterparse(_Pieces(data), ("start", "end"), forbid_dtd=True):
            if event == "start":
                depth, held = depth + 1, held + 1
                root = element if root is None else root
                if depth > _MOST_DEPTH or held > _MOST_ELEMENTS:
                    raise fault("length", "elements nested too deep, or too many in one entry")
                continue
            depth -= 1
            if element.tag == f"{_ATOM}entry":
                yield element
                root.clear()
                held = 0
    except DefusedXmlException:
        raise fault("xml", "a document type or entities: not read") from None
    except (ParseError, ValueError, LookupError):
        # ValueError and LookupError: an encoding that there is not.
        raise fault("xml", "not well-formed XML") from None
    if root is None or root.tag not in {f"{_ATOM}feed", f"{_ATOM}entry"}:
        raise fault("xml", "not a feed of Atom")


class _Pieces(io.BytesIO):
    """Read in large pieces: with each one, Expat before 2.6 begins an unfinished tag anew."""

    def read(self, _size: int | None = -1, /) -> bytes:
        return super().read(_PIECE)


def _entry(element: Any) -> _Entry:
    entry = _Entry()
    for link in element.findall(f"{_ATOM}link"):
        href, relation = link.get("href", ""), link.get("rel", "")
        if not _HREF.fullmatch(href):
            raise fault("link", "no link")
        if relation == "self":
            entry.itself = href
        elif relation == "up":
            entry.up = href
        elif relation == "related":
            entry.related.append(href)
    contents = [child for content in element.findall(f"{_ATOM}content") for child in content]
    kinds = Counter(child.tag.removeprefix(_ESPI) for child in contents)
    if len(kinds) > 1:
        raise fault("xml", "an entry of several kinds")
    for child in contents:
        _take_content(entry, child)
    return entry


def _take_content(entry: _Entry, child: Any) -> None:
    entry.kind = child.tag.removeprefix(_ESPI)
    if entry.kind == "ReadingType":
        _take_type(entry, child)
    elif entry.kind == "IntervalBlock":
        entry.slots.extend(_slot(reading) for reading in child.findall(f"{_ESPI}IntervalReading"))


def _take_type(entry: _Entry, child: Any) -> None:
    unit, flow = _optional(child, "uom"), _optional(child, "flowDirection")
    energy = (
        _optional(child, "accumulationBehaviour") == _DELTA
        and (_optional(child, "commodity") or 0) in _ELECTRICITY
    )
    entry.code = _CODES.get((unit or 0, flow or 0)) if energy else None
    entry.power = _optional(child, "powerOfTenMultiplier") or 0
    entry.default = _optional(child, "defaultQuality")
    if entry.power not in _POWERS:
        raise fault("value", "a powerOfTenMultiplier that there is not")


def _slot(reading: Any) -> tuple[int, int, int, frozenset[int]]:
    period = reading.find(f"{_ESPI}timePeriod")
    if period is None:
        raise fault("time", "a value without its time")
    qualities = frozenset(
        _number(quality, "quality") for quality in reading.findall(f"{_ESPI}ReadingQuality")
    )
    return (
        _number(period, "start"),
        _number(period, "duration"),
        _number(reading, "value"),
        qualities,
    )


def _number(parent: Any, name: str) -> int:
    found = _optional(parent, name)
    if found is None:
        raise fault("value" if name == "value" else "xml", f"{name} is missing")
    return found


def _optional(parent: Any, name: str) -> int | None:
    found = parent.findall(f"{_ESPI}{name}")
    if not found:
        return None
    text = (found[0].text or "").strip()
    if len(found) > 1 or not _NUMBER.fullmatch(text):
        raise fault("value" if name == "value" else "xml", f"{name} is no whole number, once")
    return int(text)
