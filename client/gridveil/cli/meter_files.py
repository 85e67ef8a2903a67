"""``gridveil meters import``: a meter's file of interval values, checked and made into windows."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from gridveil.cli.arguments import JsonOption
from gridveil.cli.output import print_json, print_line, utc, window_json
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

if TYPE_CHECKING:
    from gridveil.meters.history import Day, Summary
    from gridveil.meters.intervals import Finding, Lapse
    from gridveil.meters.slots import MeterSlots

_REGISTER = re.compile(r"([a-z][a-z0-9_]{0,31})=([A-Za-z0-9_:.+-]{1,400})")
_DAY_S = 24 * 3600


class Format(StrEnum):
    """Of a file of interval values."""

    ESPI = "espi"
    NEM12 = "nem12"
    CSV = "csv"


def import_file(
    file: Annotated[Path, typer.Argument(help="The file that the utility or the meter gave.")],
    form: Annotated[
        Format,
        typer.Option("--format", help="espi: Green Button XML; nem12: of AEMO; csv: of one meter."),
    ],
    csv: Annotated[
        Path | None,
        typer.Option(help="Write what was measured here, to be replayed: meter_id,timestamp,wh."),
    ] = None,
    register: Annotated[
        list[str] | None,
        typer.Option(
            help="A register and the channels of the file it is the sum of, as in"
            " import_wh=E1+E2. Default: import_wh and export_wh as far as the file has them."
        ),
    ] = None,
    meter: Annotated[
        str | None,
        typer.Option(help="Only this meter of the file; of a CSV file, its meter's name."),
    ] = None,
    window: Annotated[
        int, typer.Option(min=60, max=_DAY_S, help="Length of the city's windows, seconds.")
    ] = 900,
    interval: Annotated[
        int | None,
        typer.Option(
            min=60,
            max=3600,
            help="Of a CSV file, how long its intervals are, seconds. Default: --window.",
        ),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(help="IANA name: of a CSV file's times without an offset, and of local days."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read a file of interval values: which windows were measured, estimated or missing.

    Such files come hours or days after the windows have closed, so nothing is sent. What was
    measured can be written as CSV and replayed with gridveil meters simulate --readings or gridveil
    demo --readings. Estimated and missing windows are told, and are not in that CSV.

    Example: gridveil meters import usage.xml --format espi --csv readings.csv
    """
    where = _zone(zone)
    if _DAY_S % window:
        raise _invalid("--window divides a day")
    found = _selected(_read(file, form, meter, where, interval or window), meter, form)
    checked = {one.name: _checked(one, register, window) for one in found}
    if csv is not None:
        _write(csv, file, checked)
    for name, findings in checked.items():
        _show(name, findings, window, where, json)


def _read(
    file: Path, form: Format, meter: str | None, zone: ZoneInfo | None, seconds: int
) -> list[MeterSlots]:
    from gridveil.meters.espi import read_espi
    from gridveil.meters.meter_csv import read_csv
    from gridveil.meters.nem12 import read_nem12
    from gridveil.meters.slots import read_bounded

    data = read_bounded(file)
    if form is Format.ESPI:
        return read_espi(data)
    if form is Format.NEM12:
        return read_nem12(data)
    return read_csv(data, meter or file.stem, zone, seconds)


def _selected(found: list[MeterSlots], meter: str | None, form: Format) -> list[MeterSlots]:
    if meter is not None and form is not Format.CSV:
        found = [one for one in found if one.name == meter]
    if not found:
        raise _invalid("the file has no such meter, or none with energy")
    return found


def _checked(one: MeterSlots, register: list[str] | None, length: int) -> Sequence[Finding]:
    from gridveil.meters.validation import validate

    return validate(one.channels, _registers(register) if register else one.registers, length)


def _registers(texts: list[str]) -> dict[str, tuple[str, ...]]:
    named: dict[str, tuple[str, ...]] = {}
    for text in texts:
        found = _REGISTER.fullmatch(text)
        if not found or found[1] in named:
            raise _invalid("--register is NAME=CHANNEL+CHANNEL, once for each name")
        named[found[1]] = tuple(found[2].split("+"))
    used = [channel for channels in named.values() for channel in channels]
    if len(set(used)) != len(used):
        raise _invalid("a channel of the file would be counted twice")
    return named


def _write(csv: Path, file: Path, checked: Mapping[str, Sequence[Finding]]) -> None:
    from csv import writer

    from gridveil.files import write_durably
    from gridveil.meters.history import replay_rows

    text = io.StringIO()
    writer(text, lineterminator="\n").writerows(replay_rows(checked))
    try:
        if csv.resolve() == file.resolve():
            raise _invalid("--csv is the file itself")
        write_durably(csv, text.getvalue().encode())
    except OSError:
        raise _invalid(f"{csv.name} cannot be written") from None


def _show(
    name: str, findings: Sequence[Finding], length: int, zone: ZoneInfo | None, json: bool
) -> None:
    from gridveil.meters.history import days, summarize

    summary = summarize(findings, length)
    found = days(findings, zone, length) if zone else None
    if json:
        for finding in findings:
            print_json({"meter": name} | _finding(finding, length))
        print_json({"meter": name} | _summary(summary, found))
        return
    print_line(
        f"{name}: {summary.validated:,} windows measured, {summary.estimated:,} estimated,"
        f" {summary.missing:,} missing"
    )
    for line in _lines(findings, summary, found, length):
        print_line(f"  {line}")


def _lines(
    findings: Sequence[Finding], summary: Summary, found: list[Day] | None, length: int
) -> list[str]:
    from gridveil.meters.intervals import Lapse

    lines = [
        f"{utc(one.start)}  missing, {_windows(one, length)}: {one.cause}"
        for one in findings
        if isinstance(one, Lapse)
    ]
    lines += [f"{name} stood still in {n:,} windows" for name, n in summary.still.items()]
    if found is not None:
        whole = sum(day.validated == day.windows for day in found)
        lines.append(f"{whole:,} of {len(found):,} local days are whole")
        lines += [f"{d.day} has {d.windows} windows" for d in found if d.windows * length != _DAY_S]
    return lines


def _windows(lapse: Lapse, length: int) -> str:
    count = (lapse.end - lapse.start) // length
    return f"{count:,} window" + ("s" if count != 1 else "")


def _finding(finding: Finding, length: int) -> dict[str, Any]:
    from gridveil.meters.intervals import Lapse

    if isinstance(finding, Lapse):
        windows = (finding.end - finding.start) // length
        return window_json(finding.start) | {
            "quality": "missing",
            "windows": windows,
            "why": finding.cause.value,
        }
    said = {"quality": finding.quality.value, "values": dict(finding.values)}
    return window_json(finding.start) | said | {"still": sorted(finding.still)}


def _summary(summary: Summary, found: list[Day] | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "validated": summary.validated,
        "estimated": summary.estimated,
        "missing": {cause.value: count for cause, count in summary.causes.items()},
        "still": dict(summary.still),
    }
    if found is not None:
        told["days"] = [
            {"day": f"{day.day}", "windows": day.windows, "validated": day.validated}
            for day in found
        ]
    return told


def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise _invalid("--zone is an IANA name such as Europe/Berlin") from None


def _invalid(what: str) -> GridveilError:
    return MalformedInput(Reason.CONFIG_INVALID, what)
