"""``gridveil meters check``: whether a meter's own report was counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import (
    JsonOption,
    ProfileOption,
    WindowArgument,
    load_profile,
    parse_window,
)
from gridveil.cli.output import ExitCode, print_json, utc, window_json
from gridveil.household import Household, OwnReport, Standing
from gridveil.meter_identity import MeterKeys, read_fleet
from gridveil.protocol.errors import MalformedInput, Reason

_MEANINGS = {
    Standing.COUNTED: "counted",
    Standing.LANE_LEFT_OUT: "not counted: their lane was left out",
    Standing.NOT_COUNTED: "not counted, says the totals service",
    Standing.NOT_RELEASED: "not counted: the window has no total",
}


def check(
    window: WindowArgument,
    profile: ProfileOption,
    keys: Annotated[Path | None, typer.Option(help="File with the keys of one meter.")] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="File with the keys of many: all of them are checked.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check that a released total counts a meter's own report.

    Fetches the signed total, the meter's own entry, which nobody else can find or read, and the
    proof that the total counts it. Works whoever may see the entries of other meters. Ends with 1
    if a report is not counted.

    Example: gridveil meters check 2026-05-04T12:15Z --keys meter.key --profile springfield/meter
    """
    if (keys is None) == (fleet is None):
        raise MalformedInput(Reason.CONFIG_INVALID, "give either --keys or --fleet")
    meters = [MeterKeys.load(keys)] if keys else list(read_fleet(fleet or Path()))
    with Household.open(load_profile(profile)) as household:
        found = [household.check(parse_window(window), meter) for meter in meters]
    if json:
        print_json([own_json(own) for own in found])
    else:
        _show(parse_window(window), found)
    if any(own.standing is not Standing.COUNTED for own in found):
        raise typer.Exit(ExitCode.NO)


def own_json(own: OwnReport) -> dict[str, Any]:
    """One meter's report as programs read it."""
    return window_json(own.window_start) | {
        "meter_id": own.meter_id.hex(),
        "standing": own.standing.value,
        "index": own.index,
        "count": None if own.total is None else own.total.count,
        "report_digest": None if own.report_digest is None else own.report_digest.hex(),
    }


def _show(window_start: int, found: list[OwnReport]) -> None:
    for standing, meters in Counter(own.standing for own in found).items():
        what = "1 report is" if meters == 1 else f"{meters:,} reports are"
        typer.echo(f"{utc(window_start)}  {what} {_MEANINGS[standing]}")
