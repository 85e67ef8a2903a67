"""``gridveil demo``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from gridveil.protocol.errors import MalformedInput, Reason

WINDOWS = 4
WINDOWS_WATCHED = 16

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    readings: Annotated[
        Path | None,
        typer.Option(
            help="CSV of readings in Wh, plain or gz: meter_id,timestamp,wh, or one row a meter"
            " and one column an interval. Without it households are made up (BDEW H0)."
        ),
    ] = None,
    meters: Annotated[int, typer.Option(help="Households, 100 or more.")] = 120,
    windows: Annotated[
        int | None, typer.Option(help="Quarter-hours to play: 4, with --console 16.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="First window, such as 2018-10-28T23:00Z; needed for timestamped files."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Make the city in this new folder, and leave it there.")
    ] = None,
    misbehaving: Annotated[
        int,
        typer.Option(
            help="So many meters misbehave, one in a window: their lanes are left out, the epoch"
            " ends when the failure budget is spent, and they become suspects."
        ),
    ] = 0,
    cluster: Annotated[
        int,
        typer.Option(
            help="So many aggregators share a Redis Cluster that is started for it; one of them is"
            " killed in the midst of a window's reports. Needs redis-server."
        ),
    ] = 0,
    console: Annotated[
        bool,
        typer.Option(
            "--console",
            help="Run a controller and the operator's page beside it, with a capacity that the"
            " highest window crosses; both stay until Ctrl-C.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Play a whole city on this machine: encrypted readings in, verified totals out.

    Key-holder, aggregator and totals service run as processes of their own, with mTLS, real
    encryption and durable storage, on a fast clock. Each total is shown beside the plain sum that
    only the demonstration knows. Exit code 0 if every window was released with its exact total, and
    the suspects are led by the meters that misbehaved.

    Example: gridveil demo --readings readings.csv.gz --meters 500 --windows 8

    Example: gridveil demo --meters 300 --windows 6 --misbehaving 3

    Example: gridveil demo --cluster 3 --meters 200 --windows 3

    Example: gridveil demo --console --readings readings.csv.gz --meters 500
    """
    from gridveil_services.demo.plan import DemoOptions, DemoPlan
    from gridveil_services.demo.run import run_demo
    from gridveil_services.demo.view import JsonView, TextView

    options = DemoOptions(
        readings=readings,
        meters=meters,
        windows=windows or (WINDOWS_WATCHED if console else WINDOWS),
        start=_instant(start),
        keep=keep,
        misbehaving=misbehaving,
        cluster=cluster,
        console=console,
    )
    view = JsonView() if json else TextView(options)
    result = run_demo(DemoPlan(options), view)
    view.finish(result)
    if not result.as_expected:
        raise typer.Exit(1)


def _instant(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "--start is a time with its offset, such as 2018-10-28T23:00Z"
        )
    return int(instant.timestamp())
