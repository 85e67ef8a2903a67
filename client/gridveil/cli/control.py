"""``gridveil control``: what the city's controller signals."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, ProfileOption, load_profile, parse_bound
from gridveil.cli.extensions import ExtensibleGroup
from gridveil.cli.output import EXIT_CODES, one_line, print_json, print_line, utc, window_json
from gridveil.protocol.errors import GridveilError

if TYPE_CHECKING:
    from gridveil.control import ControlSignal

app = typer.Typer(
    cls=ExtensibleGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Control signals: what released totals ask of the grid, from level 0 to 3.",
    epilog=EXIT_CODES,
)


@app.command()
def signal(profile: ProfileOption, json: JsonOption = False) -> None:
    """Show the signal that stands, and what it rests on.

    Ends with 1 if nothing was signalled yet.

    Example: gridveil control signal --profile springfield/operator
    """
    from gridveil.control import ControlClient

    with ControlClient.open(load_profile(profile)) as client:
        _print(client.signal(), json)


@app.command()
def watch(
    profile: ProfileOption,
    since: Annotated[
        str | None,
        typer.Option("--from", help="Signals from this time on; Unix seconds or ISO 8601."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many signals.")] = None,
    give_up_after: Annotated[
        float | None, typer.Option(help="End with 3 after so many seconds without the service.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print each signal as it is made, and reconnect whenever that is needed.

    With --from, those since then come first. --json prints one object a line.

    Example: gridveil control watch --from 2026-05-04 --profile springfield/operator
    """
    from gridveil.control import ControlClient

    with ControlClient.open(load_profile(profile)) as client:
        signals = client.watch(
            parse_bound(since), give_up_after_s=give_up_after, on_failure=_trying_again
        )
        for found in islice(signals, count):
            _print(found, json)


def _trying_again(error: GridveilError) -> None:
    typer.echo(f"{one_line(error)}; trying again", err=True)


def _print(found: ControlSignal, json: bool) -> None:
    if json:
        print_json(signal_json(found))
    else:
        print_line(_line(found))


def signal_json(found: ControlSignal) -> dict[str, Any]:
    """A signal as programs read it; what has no figure is null."""
    window = {"window_start": None, "window": None}
    if found.window_start is not None:
        window = window_json(found.window_start)
    return window | {
        "number": found.number,
        "at": found.at,
        "level": found.level,
        "basis": found.basis.value,
        "cause": found.cause,
        "reason": found.reason,
        "measured_w": found.measured_w,
        "estimated_w": found.estimated_w,
        "ramp_w": found.ramp_w,
        "openadr": [{"json": sent.json, "delivery": sent.delivery.value} for sent in found.openadr],
    }


def _line(found: ControlSignal) -> str:
    reason = f" ({found.reason})" if found.reason else ""
    line = f"{utc(found.at)}  level {found.level}  {found.basis} {found.cause}{reason}"
    if found.window_start is not None:
        line += f"  window {utc(found.window_start)}"
    if found.estimated_w is not None:
        line += f"  {found.estimated_w:,} W estimated"
    if found.measured_w is not None:
        line += f"  {found.measured_w:,} W measured"
    return line
