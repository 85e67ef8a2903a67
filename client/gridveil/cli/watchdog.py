"""``gridveil totals watchdog``: what goes wrong in a city, without anybody's reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, load_profile, parse_bound
from gridveil.cli.output import ExitCode, console, print_json, utc, window_json
from gridveil.cli.settled import (
    ProfileOrFileOption,
    TotalsOption,
    UntilOption,
    settled_windows,
    warn_unchecked,
)
from gridveil.cli.totals import FromOption
from gridveil.feeder import check_grid, read_feeder
from gridveil.reconcile import window_length

if TYPE_CHECKING:
    from gridveil.watchdog.detector import Finding


def watch_over(
    profile: ProfileOrFileOption = None,
    totals: TotalsOption = None,
    from_window: FromOption = None,
    until: UntilOption = None,
    feeder: Annotated[
        Path | None, typer.Option(help="CSV of what was fed in (window_start,wh): for losses.")
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(help="Prometheus' answer to a range query: for refusals, latency, lanes."),
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(help="The city's watchdog.toml; without it the defaults.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Learn from what was before this window, and tell what came then."),
    ] = None,
    fail_if_found: Annotated[
        bool, typer.Option("--fail-if-found", help="End with 1 if something was found.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Look for outages, theft, steps of demand, refusals and frozen totals.

    It learns what is usual as it goes through the windows: give it three weeks or more. The same
    windows give the same findings. They are hints of where to look, and never a verdict.

    Example: gridveil totals watchdog --feeder feeder.csv --profile springfield/operator
    """
    from gridveil.watchdog.detector import replay
    from gridveil.watchdog.limits import Limits
    from gridveil.watchdog.observation import observations
    from gridveil.watchdog.series import read_series

    chosen = Limits.load(limits) if limits else Limits()
    measured = read_feeder(feeder) if feeder else {}
    pinned = load_profile(profile) if profile else None
    settled = settled_windows(pinned, totals, parse_bound(from_window), parse_bound(until))
    length, first = window_length(settled), parse_bound(since)
    check_grid(measured, length)
    told = read_series(series, length) if series else {}
    seen = observations(settled, measured, told)
    found = [one for one in replay(chosen, seen) if one.window_start >= first]
    if json:
        print_json(
            {
                "signatures_checked": pinned is not None,
                "windows": len(seen),
                "with_feeder": feeder is not None,
                "with_series": series is not None,
                "findings": [finding_json(one) for one in found],
            }
        )
    else:
        _show(found, len(seen))
        warn_unchecked(pinned)
    if fail_if_found and found:
        raise typer.Exit(ExitCode.NO)


def finding_json(found: Finding) -> dict[str, Any]:
    """A finding as programs read it."""
    return {
        "kind": found.kind,
        **window_json(found.window_start),
        "observed": found.observed,
        "expected": found.expected,
        "unit": found.unit,
        "lane": found.lane,
    }


def _show(found: Sequence[Finding], windows: int) -> None:
    from rich.table import Table

    table = Table("window", "finding", "lane")
    for heading in ("observed", "expected"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for one in found:
        figures = (f"{one.observed:,.4g}", f"{one.expected:,.4g}")
        table.add_row(utc(one.window_start), one.kind, one.lane or "", *figures, one.unit)
    table.caption = f"{len(found):,} findings in {windows:,} windows"
    console().print(table)
