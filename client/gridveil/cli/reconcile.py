"""``gridveil totals reconcile``: losses, theft and faulty meters at the level of the city."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

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
from gridveil.days import time_zone
from gridveil.feeder import check_grid, read_feeder
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.reconcile import (
    Comparison,
    Day,
    Reconciliation,
    Terms,
    Verdict,
    Window,
    reconcile,
    window_length,
)


def reconcile_totals(
    feeder: Annotated[Path, typer.Option(help="CSV of what was fed in: window_start,wh.")],
    profile: ProfileOrFileOption = None,
    totals: TotalsOption = None,
    from_window: FromOption = None,
    until: UntilOption = None,
    zone: Annotated[str, typer.Option(help="Where days begin, as Europe/Zurich.")] = "UTC",
    losses_percent: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Most technical losses expected, of what was fed in."),
    ] = None,
    deviations: Annotated[
        float,
        typer.Option(min=0, max=10, help="Standard deviations that noise is given credit for."),
    ] = 2.0,
    min_coverage_percent: Annotated[
        float, typer.Option(min=1, max=100, help="Scale no total of a smaller share of meters.")
    ] = 80.0,
    windows: Annotated[bool, typer.Option("--windows", help="Show every window as well.")] = False,
    fail_if_beyond: Annotated[
        bool,
        typer.Option("--fail-if-beyond", help="End with 1 if losses are beyond what is expected."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare totals with what a feeder measured: losses by window and by local day.

    The difference is technical losses, theft and faulty meters in one. Totals of fewer meters
    than are enrolled are scaled to all and labelled ESTIMATED; windows that one side lacks are
    listed, never taken for zero. Without --from and --until it is about the windows from the
    feeder's first to its last.

    Example: gridveil totals reconcile --feeder feeder.csv --profile springfield/operator
    """
    if fail_if_beyond and losses_percent is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "--fail-if-beyond needs --losses-percent to go by"
        )
    measured = read_feeder(feeder)
    first = parse_bound(from_window) or min(measured, default=0)
    end = parse_bound(until) or max(measured, default=0) + 1
    pinned = load_profile(profile) if profile else None
    settled = settled_windows(pinned, totals, first, end)
    within = {window: wh for window, wh in measured.items() if first <= window < end}
    check_grid(within, window_length(settled))
    terms = Terms(time_zone(zone), losses_percent, deviations, min_coverage_percent / 100)
    found = reconcile(settled, within, terms)
    if json:
        checked = {"signatures_checked": pinned is not None}
        print_json(checked | reconciliation_json(found, terms.zone))
    else:
        _show(found, terms, every=windows)
        warn_unchecked(pinned)
    if fail_if_beyond and (found.beyond or found.empty):
        raise typer.Exit(ExitCode.NO)


def reconciliation_json(found: Reconciliation, zone: tzinfo) -> dict[str, Any]:
    """A reconciliation as programs read it."""
    return {
        "zone": str(zone),
        "windows": [_window_json(window) for window in found.windows],
        "days": [
            {
                "day": day.day.isoformat(),
                "windows": day.windows,
                "compared": day.compared,
                "estimated": day.estimated,
                **(_comparison_json(day.comparison) if day.comparison else {}),
            }
            for day in found.days
        ],
        "beyond": found.beyond,
    }


def _window_json(window: Window) -> dict[str, Any]:
    row = window_json(window.window_start) | {"coverage": window.coverage}
    if window.compared is None:
        return row | {"missing": window.missing}
    return row | _comparison_json(window.compared)


def _comparison_json(found: Comparison) -> dict[str, Any]:
    return {
        "basis": found.basis,
        "feeder_wh": found.feeder_wh,
        "city_wh": found.city_wh,
        "difference_wh": found.difference_wh,
        "percent": found.percent,
        "noise_standard_deviation_wh": found.noise_wh,
        "within_noise": found.within_noise,
        "verdict": found.verdict,
    }


def _show(found: Reconciliation, terms: Terms, *, every: bool) -> None:
    from rich.table import Table

    table = Table("", "compared", "basis")
    for heading in ("feeder kWh", "meters kWh", "difference kWh", "%"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for day in found.days:
        table.add_row(day.day.isoformat(), f"{day.compared} of {day.windows}", *_cells(day))
    for window in found.windows:
        if window.compared and (every or window.compared.verdict not in (None, Verdict.WITHIN)):
            coverage = f"{window.coverage:.1%} of meters"
            table.add_row(utc(window.window_start), coverage, *_cells(window))
    table.caption = _caption(found, terms)
    console().print(table)
    for line in _gaps(found.windows):
        typer.echo(line)


def _cells(row: Day | Window) -> tuple[str, ...]:
    found = row.comparison if isinstance(row, Day) else row.compared
    if found is None:
        return "", "", "", "", "", "nothing to compare"
    noise = f" ± {found.noise_wh / 1000:,.1f}" if found.noise_wh else ""
    said = "" if found.verdict is None else found.verdict.value
    return (
        _basis(row),
        f"{found.feeder_wh / 1000:,.1f}",
        f"{found.city_wh / 1000:,.1f}{noise}",
        f"{found.difference_wh / 1000:,.1f}",
        "" if found.percent is None else f"{found.percent:.2f}",
        f"{said}, within noise".lstrip(", ") if found.within_noise else said,
    )


def _basis(row: Day | Window) -> str:
    if isinstance(row, Day):
        return f"ESTIMATED, {row.estimated} of them" if row.estimated else "MEASURED"
    return row.compared.basis.value if row.compared else ""


def _caption(found: Reconciliation, terms: Terms) -> str:
    said = [f"Days are those of {terms.zone}."]
    if any(day.estimated for day in found.days):
        said.append("ESTIMATED: scaled from the meters that reported to all enrolled.")
    if any(day.comparison and day.comparison.noise_wh for day in found.days):
        said.append("± is one standard deviation of noise.")
    return " ".join(said)


def _gaps(windows: Sequence[Window]) -> Iterator[str]:
    """A line for each run of windows that were not compared, for the same reason."""
    for missing, run in groupby(windows, key=lambda window: window.missing):
        if missing:
            starts = [window.window_start for window in run]
            until = f" to {utc(starts[-1])}" if len(starts) > 1 else ""
            count = f"{len(starts):,} window" + ("s" if until else "")
            yield f"not compared: {utc(starts[0])}{until}, {count}: {missing}"
