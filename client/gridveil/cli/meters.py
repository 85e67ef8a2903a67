"""``gridveil meters simulate``: a fleet's readings, played through one gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridveil.cli.arguments import (
    ClockOriginOption,
    ClockRateOption,
    JsonOption,
    ProfileOption,
    load_profile,
    parse_window,
)
from gridveil.cli.output import ExitCode, print_json, window_json
from gridveil.clock import make_clock
from gridveil.meter_identity import read_fleet
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

if TYPE_CHECKING:
    from gridveil.simulator import CsvSource, StandardLoadSource, Tally


def simulate(
    profile: ProfileOption,
    fleet: Annotated[Path, typer.Option(help="File with the keys of the simulated meters.")],
    windows: Annotated[int, typer.Option(min=1, help="How many windows to play.")],
    readings: Annotated[
        Path | None,
        typer.Option(help="CSV of whole signed Wh, wide or long, gzipped or not."),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make up households on the load profile H0.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(help="Start of a wide file's first interval: Unix seconds or ISO 8601."),
    ] = None,
    start_window: Annotated[
        str | None,
        typer.Option(
            help="First window to play. Default: --start, or else the window in progress."
        ),
    ] = None,
    meters: Annotated[
        int | None, typer.Option(min=1, help="Use only so many meters of the fleet.")
    ] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(help="Where reports are kept until settled. Default: beside the fleet."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count bad rows and readings, and go on.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of made-up households.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that encrypt. Default: by the fleet's size."),
    ] = None,
    clock_origin: ClockOriginOption = None,
    clock_rate: ClockRateOption = 1.0,
    json: JsonOption = False,
) -> None:
    """Play readings as the reports of simulated meters, window by window as time passes.

    Every reading is encrypted when its window has ended and sent within the grace period. Stop
    and start again with the same outbox: what was recorded is carried on with.

    A wide file has the header meter_id and then one column an interval; a long file has
    meter_id,timestamp,wh. What is below zero goes to export_wh. Exit code 1: some readings were
    refused or came too late; 3: some have no answer.

    Example: gridveil meters simulate --profile springfield/gateway --fleet fleet.jsonl
    --generate --windows 4
    """
    source = _source(readings, generate, start, skip_bad, seed)
    loaded = load_profile(profile)
    clock = make_clock(clock_origin, clock_rate, development=loaded.development)
    first = start_window or start
    keys = list(islice(read_fleet(fleet), meters))
    if not keys:
        raise _usage(f"{fleet.name} holds no meters; gridveil meters enrol --count makes some")

    from gridveil.simulator import Simulator

    kept = outbox or fleet.with_name("outbox.db")
    with (
        Simulator(loaded, keys, source, kept, clock=clock, workers=workers) as simulator,
        _progress(json) as shown,
    ):
        tally = simulator.run(None if first is None else parse_window(first), windows, shown)
    _show(tally, source, json)
    if tally.late or tally.refused:
        raise typer.Exit(ExitCode.NO)
    if tally.unsettled:
        raise typer.Exit(ExitCode.UNREACHABLE)


def _source(
    readings: Path | None, generate: bool, start: str | None, skip_bad: bool, seed: int
) -> CsvSource | StandardLoadSource:
    from gridveil.simulator import CsvSource, StandardLoadSource

    if (readings is None) is not generate:
        raise _usage("give either --readings or --generate")
    if readings is None:
        return StandardLoadSource(seed)
    return CsvSource(readings, None if start is None else parse_window(start), skip_bad)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Tally], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or not shown.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=shown, disable=hidden) as bars:
        recorded = bars.add_task("encrypted", total=None)
        settled = bars.add_task("settled", total=None)

        def advance(tally: Tally) -> None:
            total = tally.readings
            bars.update(recorded, total=total, completed=tally.recorded + tally.late)
            bars.update(settled, total=total, completed=total - tally.unsettled)

        yield advance


def _show(tally: Tally, source: CsvSource | StandardLoadSource, json: bool) -> None:
    if json:
        print_json(_summary(tally, source))
        return
    again = f", {tally.duplicates:,} of them twice" if tally.duplicates else ""
    typer.echo(f"{tally.accepted:,} of {tally.readings:,} readings accepted{again}.")
    remarks = {
        "refused": tally.refused.total(),
        "too late: their window was closed before they could be encrypted": tally.late,
        "without an answer": tally.unsettled,
        "missing in the readings": tally.missing,
        "bad rows and readings skipped": source.skipped,
    }
    for what, count in remarks.items():
        if count:
            typer.echo(f"{count:,} {what}.")
    for reason, count in tally.refused.most_common():
        typer.echo(f"  {reason}: {count:,}")


def _summary(tally: Tally, source: CsvSource | StandardLoadSource) -> dict[str, Any]:
    first = {} if tally.first_window is None else window_json(tally.first_window)
    return {
        **first,
        "windows": tally.windows,
        "readings": tally.readings,
        "recorded": tally.recorded,
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "refused": {reason.value: count for reason, count in tally.refused.items()},
        "late": tally.late,
        "unsettled": tally.unsettled,
        "missing": tally.missing,
        "skipped": source.skipped,
    }


def _usage(message: str) -> GridveilError:
    return MalformedInput(Reason.CONFIG_INVALID, message)
