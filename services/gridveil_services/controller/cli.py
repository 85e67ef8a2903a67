"""``gridveil control``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, load_profile, parse_bound
from gridveil.cli.output import ExitCode, console, print_json, utc, window_json
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.rpc.commands import ClockOrigin, ClockRate, one_line_on_failure

if TYPE_CHECKING:
    from gridveil_services.controller.core import Signal
    from gridveil_services.controller.replay import Replayed
    from gridveil_services.controller.rules import ControlRules

app = typer.Typer(add_completion=False)

_JOURNAL_FAILED = 3


@app.callback()
def control() -> None:
    """Turn released totals into control signals."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The city's controller/controller.toml.")],
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
) -> None:
    """Signal what released totals ask for, until SIGTERM.

    Prints one JSON line when it serves; logs go to standard error. Every signal is in the journal
    before it is shown, and the next start goes on from there. Ends with 2 if the configuration,
    the rules or the journal are not what they must be, and with 3 if the journal has failed.

    Example: gridveil control serve --config springfield/controller/controller.toml
    """
    from gridveil.clock import make_clock
    from gridveil_services.controller.config import ControllerConfig
    from gridveil_services.controller.serve import ControllerProcess
    from gridveil_services.rpc.logging import configure_logging

    configure_logging("controller")
    with one_line_on_failure():
        loaded = ControllerConfig.load(config)
        clock = make_clock(clock_origin, clock_rate, development=loaded.development)
        process = ControllerProcess(loaded, clock)
    if not process.run():
        raise typer.Exit(_JOURNAL_FAILED)


@app.command()
def replay(
    totals: Annotated[
        Path | None, typer.Option(help="What gridveil totals list --json printed.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="The city's control.toml.")] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="A controller's controller.db instead, while no controller uses it."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="An operator's profile: check that its key-holder signed every total."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Go on until this window, which is left out; Unix seconds or ISO 8601."),
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

    With --journal, show what its events lead to by the rules that it keeps, a line a signal. Ends
    with 1 if anything else was signalled.

    Example: gridveil control replay --totals totals.json --rules control.toml
    """
    if journal is not None:
        _replay_journal(journal, json)
        return
    if totals is None or rules is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "name a file of totals and the rules, or a journal"
        )
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
    _show([(one.window_start, one.signal) for one in found], "window")
    if pinned is None:
        typer.echo("signatures not checked: name an operator's profile with --profile", err=True)


def _replay_journal(path: Path, json: bool) -> None:
    import msgspec

    from gridveil_services.controller.journal_file import read_journal

    found = read_journal(path)
    if json:
        rows = (
            {
                "number": one.number,
                "signal": msgspec.to_builtins(one.signal),
                "as_shown": one.holds,
            }
            for one in found
        )
        print_json({"signals": list(rows)})
    else:
        _show([(one.signal.at, one.signal) for one in found], "at")
    others = [one.number for one in found if not one.holds]
    if others:
        typer.echo(f"{len(others)} signals were others, the first of them {others[0]}", err=True)
        raise typer.Exit(ExitCode.NO)


def _row(rules: ControlRules, one: Replayed, program: str | None) -> dict[str, Any]:
    import msgspec

    from gridveil_services.controller.openadr import events

    row = window_json(one.window_start) | {"signal": msgspec.to_builtins(one.signal)}
    return row | ({"events": events(rules, program, one.signal)} if program else {})


def _show(found: Sequence[tuple[int, Signal]], named: str) -> None:
    from rich.table import Table

    table = Table(named, "level", "basis", "cause")
    for heading in ("measured W", "estimated W", "ramp W"):
        table.add_column(heading, justify="right")
    for time, signal in found:
        reason = f" ({signal.reason})" if signal.reason else ""
        figures = (signal.measured_w, signal.estimated_w, signal.ramp_w)
        table.add_row(
            utc(time),
            str(signal.level),
            signal.basis,
            signal.cause + reason,
            *("" if figure is None else f"{figure:,}" for figure in figures),
        )
    console().print(table)
