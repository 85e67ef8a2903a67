"""Files of interval values, of made-up energy, as utilities give them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

NMI = "NEM1200001"


def nem12_day(
    date: str, values: Sequence[object], quality: str = "A", events: Iterable[str] = ()
) -> list[str]:
    """A 300 record with its 400s."""
    amounts = ",".join(str(value) for value in values)
    return [f"300,{date},{amounts},{quality},,,20260201120000,", *(f"400,{e}" for e in events)]


def nem12_channel(
    suffix: str, days: Iterable[list[str]], minutes: int = 15, unit: str = "kWh", nmi: str = NMI
) -> list[str]:
    """A 200 record with its days."""
    details = f"200,{nmi},E1B1,{suffix},{suffix},N1,METSER123,{unit},{minutes},20260301"
    return [details, *(line for day in days for line in day)]


def nem12(*channels: list[str]) -> bytes:
    """A whole file."""
    lines = ["100,NEM12,202602011200,MDP1,Retailer1"]
    for channel in channels:
        lines += channel
    return "\r\n".join([*lines, "900", ""]).encode()


def espi(*readings: str, head: str = "") -> bytes:
    """A feed of one usage point with these meter readings."""
    point = "https://utility.example/espi/1_1/UsagePoint/7"
    entry = _entry(
        "<UsagePoint xmlns='http://naesb.org/espi'><ServiceCategory><kind>0</kind>"
        "</ServiceCategory></UsagePoint>",
        self=point,
        up="https://utility.example/espi/1_1/UsagePoint",
        related=[f"{point}/MeterReading", "https://utility.example/espi/1_1/LocalTimeParameters/1"],
    )
    body = "".join([entry, *readings])
    return (
        f"<?xml version='1.0' encoding='UTF-8'?>{head}"
        f"<feed xmlns='http://www.w3.org/2005/Atom'><title>Green Button</title>{body}</feed>"
    ).encode()


def espi_reading(number: int, blocks: Iterable[Iterable[str]], **kind: int) -> str:
    """A meter reading with its type and its blocks."""
    root = "https://utility.example/espi/1_1"
    point = f"{root}/UsagePoint/7"
    reading = f"{point}/MeterReading/{number}"
    said: Mapping[str, int] = {
        "accumulationBehaviour": 4,
        "commodity": 1,
        "flowDirection": 1,
        "intervalLength": 900,
        "kind": 12,
        "powerOfTenMultiplier": 0,
        "uom": 72,
    } | kind
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in said.items())
    entries = [
        _entry(
            "<MeterReading xmlns='http://naesb.org/espi'/>",
            self=reading,
            up=f"{point}/MeterReading",
            related=[f"{reading}/IntervalBlock", f"{root}/ReadingType/{number}"],
        ),
        _entry(
            f"<ReadingType xmlns='http://naesb.org/espi'>{fields}</ReadingType>",
            self=f"{root}/ReadingType/{number}",
            up=f"{root}/ReadingType",
        ),
    ]
    for at, block in enumerate(blocks):
        entries.append(
            _entry(
                "<IntervalBlock xmlns='http://naesb.org/espi'><interval><duration>86400</duration>"
                f"<start>0</start></interval>{''.join(block)}</IntervalBlock>",
                self=f"{reading}/IntervalBlock/{at}",
                up=f"{reading}/IntervalBlock",
            )
        )
    return "".join(entries)


def espi_value(start: int, value: object, seconds: int = 900, qualities: Sequence[int] = ()) -> str:
    """An interval reading."""
    said = "".join(
        f"<ReadingQuality><quality>{one}</quality></ReadingQuality>" for one in qualities
    )
    return (
        f"<IntervalReading>{said}<timePeriod><duration>{seconds}</duration><start>{start}</start>"
        f"</timePeriod><value>{value}</value></IntervalReading>"
    )


def _entry(content: str, *, self: str, up: str, related: Iterable[str] = ()) -> str:
    links = "".join(f"<link rel='related' href='{href}'/>" for href in related)
    return (
        f"<entry><id>urn:uuid:0</id><link rel='self' href='{self}'/><link rel='up' href='{up}'/>"
        f"{links}<title/><content>{content}</content></entry>"
    )


def at(text: str) -> int:
    """Unix seconds of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
