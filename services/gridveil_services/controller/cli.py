"""``gridveil control``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, load_profile, parse_bound
from gridveil.cli.output import EXIT_CODES, console, print_json, utc, window_json

if TYPE_CHECKING:
    from gridveil_services.controller.replay import Replayed
    from gridveil_services.controller.rules import ControlRules

app = typer.Typer(add_completion=False, no_args_is_help=True, epilog=EXIT_CODES)


@app.callback()
def control() -> None:
    """Turn released totals into control signals."""


@app.command()
def replay(
    totals: Annotated[Path, typer.Option(help="What gridveil totals list --json printed.")],
    rules: Annotated[Path, typer.Option(help="The city's control.toml.")],
    profile: Annotated[
        Path | None,
        typer.Option(help="An operator's profile: check that its key-holder signed every total."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Go on to this window, left out; Unix seconds or ISO 8601."),
    ] = None,
    settle: Annotated[
        int,
        typer.Option(min=0, max=86_400, help="Seconds from a window's end until it was settled."),
    ] = 120,
    program: Annotated[
        str | None,
        typer.Option(help="With --json: OpenADR events as well, for the program with this id."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="With --json: an OpenADR report as well, to the event with this id."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what would have been signalled, a line a window.

    The same totals and rules give the same signals, to the byte. Windows that the file has not are
    taken for not settled. Ends with 1 if the pinned key-holder did not sign a total.

    Example: gridveil control replay --totals totals.json --rules control.toml
    """
    from gridveil.totals_file import read_totals
    from gridveil_services.controller.openadr import usage_report
    from gridveil_services.controller.replay import replay as replayed
    from gridveil_services.controller.rules import ControlRules

    pinned = load_profile(profile) if profile else None
    rows, loaded = read_totals(totals, pinned), ControlRules.load(rules)
    found = list(replayed(loaded, rows, settle, parse_bound(until)))
    if json:
        shown: dict[str, Any] = {"signals": [_row(loaded, one, program) for one in found]}
        if report:
            windows = [(one.window_start, one.event) for one in found]
            shown["report"] = usage_report(loaded, report, "gridveil", windows)
        print_json({"signatures_checked": pinned is not None, **shown})
        return
    _show(found)
    if pinned is None:
        typer.echo("signatures not checked: name an operator's profile with --profile", err=True)


def _row(rules: ControlRules, one: Replayed, program: str | None) -> dict[str, Any]:
    import msgspec

    from gridveil_services.controller.openadr import events

    row = window_json(one.window_start) | {"signal": msgspec.to_builtins(one.signal)}
    return row | ({"events": events(rules, program, one.signal)} if program else {})


def _show(found: Sequence[Replayed]) -> None:
    from rich.table import Table

    table = Table("window", "level", "basis", "cause")
    for heading in ("measured W", "estimated W", "ramp W"):
        table.add_column(heading, justify="right")
    for window, _, signal in found:
        reason = f" ({signal.reason})" if signal.reason else ""
        figures = (signal.measured_w, signal.estimated_w, signal.ramp_w)
        table.add_row(
            utc(window),
            str(signal.level),
            signal.basis,
            signal.cause + reason,
            *("" if figure is None else f"{figure:,}" for figure in figures),
        )
    console().print(table)
