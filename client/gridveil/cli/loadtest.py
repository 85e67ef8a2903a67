"""``gridveil loadtest``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridveil.cli.arguments import JsonOption, load_profile
from gridveil.cli.output import ExitCode, print_json
from gridveil.clock import make_clock
from gridveil.files import write_durably
from gridveil.meter_identity import read_fleet
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

if TYPE_CHECKING:
    from gridveil.loadtest.city import City, LocalSetup
    from gridveil.loadtest.load import Load
    from gridveil.loadtest.run import Advance, Result
    from gridveil.loadtest.thresholds import Threshold

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%", re.ASCII)


def loadtest(
    meters: Annotated[int, typer.Option(help="Meters that report in every window, 100 or more.")],
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The gateway's profile of a development city. Without it a city is made and run"
            " on this machine.",
            show_default=False,
        ),
    ] = None,
    operator: Annotated[
        Path | None, typer.Option(help="With --profile: an operator's, to fetch the totals with.")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="With --profile: file with the keys of enrolled meters.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Make and run a city on this machine; the default.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            help="Of a city on this machine: aggregator processes. Several share a Redis Cluster"
            " that is started for them; needs redis-server."
        ),
    ] = 1,
    kill_worker: Annotated[
        bool, typer.Option("--kill-worker", help="Kill one of the workers in the middle.")
    ] = False,
    windows: Annotated[int | None, typer.Option(help="How many windows to play.")] = None,
    duration: Annotated[
        float | None, typer.Option(help="Or: as many as begin in so many seconds.")
    ] = None,
    rate: Annotated[
        str, typer.Option(help="Reports a second (open loop), or max: as fast as answers come.")
    ] = "max",
    processes: Annotated[
        int, typer.Option(help="Processes that send; as many more prepare reports.")
    ] = 2,
    batch: Annotated[int, typer.Option(help="Reports a call.")] = 32,
    in_flight: Annotated[int, typer.Option(help="With max: calls of a process at a time.")] = 4,
    duplicates: Annotated[
        str, typer.Option(help="Share of the meters whose report is sent again, such as 1%.")
    ] = "0%",
    late: Annotated[
        str, typer.Option(help="Share whose report is sent after the window closed, up to 20%.")
    ] = "0%",
    bad: Annotated[
        str, typer.Option(help="Share that also has a forged, foreign or malformed report sent.")
    ] = "0%",
    seed: Annotated[int, typer.Option(help="Of which meters those are.")] = 0,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition under which the test has failed, repeatable: errors>0, p99>1s,"
            " rate<500/s, accepted<19999, total!=exact.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the result to this file as JUnit XML.")
    ] = None,
    clock_origin: Annotated[
        str | None, typer.Option(help="With --profile: METERING@REAL, as the services have it.")
    ] = None,
    clock_rate: Annotated[
        float, typer.Option(help="With --profile: metering seconds a second.")
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Load a city with reports of made-up readings, and check that its totals are exact.

    Without --profile a city is made, run and removed on this machine. Latency counts from when a
    call was meant to be sent (--rate), or from when it was sent (max). A report is an error if
    it did not get in before its window's grace period was over, or was answered otherwise than
    it must be.

    Exit code 1: a condition of --fail-if is met, or a window's total is not that of the accepted
    reports; 130: interrupted.

    Example: gridveil loadtest --meters 20000 --rate max --duration 60 --fail-if 'errors>0'
    --junit out.xml

    Example: gridveil loadtest --meters 5000 --workers 2 --kill-worker --windows 3 --fail-if
    'errors>0'

    Example: gridveil loadtest --profile springfield/gateway --operator springfield/operator
    --fleet fleet.jsonl --meters 5000 --windows 4 --rate 20 --duplicates 1% --bad 0.5%
    """
    from gridveil.loadtest.city import LocalSetup
    from gridveil.loadtest.load import Load, Mixture
    from gridveil.loadtest.thresholds import Threshold

    thresholds = [Threshold.parse(text) for text in fail_if or ()]
    load = Load(
        meters=meters,
        windows=windows,
        duration_s=duration,
        rate=_rate(rate),
        processes=processes,
        batch=batch,
        in_flight=in_flight,
        mixture=Mixture(
            _share("--duplicates", duplicates), _share("--late", late), _share("--bad", bad)
        ),
        seed=seed,
    )
    if junit and not junit.parent.is_dir():
        raise _usage("the folder of --junit does not exist")
    if profile is None:
        if operator or fleet or clock_origin:
            raise _usage("--operator, --fleet and --clock-origin go with --profile")
        setup = LocalSetup(workers, kill_worker)
        city: AbstractContextManager[City] = _local(load, setup, quiet=json)
    elif local or workers > 1 or kill_worker:
        raise _usage("--local, --workers and --kill-worker go without --profile")
    else:
        city = nullcontext(_there(load, profile, operator, fleet, clock_origin, clock_rate))
    result = _run(load, city, json)
    _show(thresholds, result, junit, json)


def _run(load: Load, city: AbstractContextManager[City], json: bool) -> Result:
    from gridveil.loadtest.run import run

    try:
        with city as running, _progress(json) as advance:
            return run(load, running, advance)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _local(load: Load, setup: LocalSetup, *, quiet: bool) -> AbstractContextManager[City]:
    from gridveil.loadtest.city import local_city

    make = local_city()
    return make(load, setup, lambda text: None if quiet else typer.echo(f"* {text}", err=True))


def _there(
    load: Load,
    profile: Path,
    operator: Path | None,
    fleet: Path | None,
    clock_origin: str | None,
    clock_rate: float,
) -> City:
    from gridveil.loadtest.city import City

    if operator is None or fleet is None:
        raise _usage("--profile needs --operator and --fleet as well")
    gateway = load_profile(profile)
    clock = make_clock(clock_origin, clock_rate, development=gateway.development)
    meters = list(islice(read_fleet(fleet), load.meters))
    return City(gateway, load_profile(operator), meters, clock)


@contextmanager
def _progress(quiet: bool) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    shown = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or not shown.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=shown, disable=hidden) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, count: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.advance(tasks[what], count)

        yield advance


def _show(thresholds: Sequence[Threshold], result: Result, junit: Path | None, json: bool) -> None:
    """Print and write the result; ends the command unless the test has passed."""
    from gridveil.loadtest.junit import as_junit
    from gridveil.loadtest.report import as_json, as_lines, passed

    if junit:
        write_durably(junit, as_junit(thresholds, result), mode=0o644)
    if json:
        print_json(as_json(thresholds, result))
    else:
        for line in as_lines(thresholds, result):
            typer.echo(line)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not passed(thresholds, result):
        raise typer.Exit(ExitCode.NO)


def _rate(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan  # which no load accepts


def _share(option: str, text: str) -> float:
    found = _SHARE.fullmatch(text)
    if found is None:
        raise _usage(f"{option} is a share in percent, such as 1% or 0.5%")
    return float(found[1]) / 100


def _usage(message: str) -> GridveilError:
    return MalformedInput(Reason.CONFIG_INVALID, message)
