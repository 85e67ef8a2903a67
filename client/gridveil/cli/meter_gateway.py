"""``gridveil meters run``: the gateway of one home, from a real meter's telegrams."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridveil.cli.arguments import (
    ClockOriginOption,
    ClockRateOption,
    JsonOption,
    ProfileOption,
    load_profile,
)
from gridveil.cli.output import ExitCode, one_line, print_json, print_line, utc, window_json
from gridveil.clock import make_clock
from gridveil.protocol.errors import GridveilError

if TYPE_CHECKING:
    from gridveil.meter import ReportStatus
    from gridveil.meters.gateway import News, Tally, Tell


def run(
    profile: ProfileOption,
    p1: Annotated[
        str, typer.Option("--p1", help="Serial port, tcp://host:port, or file of telegrams.")
    ],
    keys: Annotated[Path, typer.Option(help="File with the meter's keys.")],
    outbox: Annotated[
        Path | None,
        typer.Option(help="Where reports are kept until settled. Default: beside the keys."),
    ] = None,
    register: Annotated[
        list[str] | None,
        typer.Option(
            help="A register of the city and the OBIS codes it is the sum of, as in"
            " import_wh=1-0:1.8.0. Default: import_wh and export_wh, both tariffs of each."
        ),
    ] = None,
    tolerance: Annotated[
        int,
        typer.Option(
            min=0,
            max=300,
            help="How many seconds after its end a window's last telegram may come.",
        ),
    ] = 30,
    clock_origin: ClockOriginOption = None,
    clock_rate: ClockRateOption = 1.0,
    json: JsonOption = False,
) -> None:
    """Report a home's energy from the P1 port of its meter, window by window.

    Runs until it is stopped; with a file, to its end. What a window's two ends were not read for
    is not sent: no estimate, and no zero for a gap. Stop and start again with the same outbox: the
    registers at the last boundary are kept beside it, in the clear. A telegram that is damaged is
    named and dropped. Exit code 1, after a file: some windows were refused or came too late; 3:
    some have no answer.

    Example: gridveil meters run --p1 /dev/ttyUSB0 --keys meter.key --profile springfield/meter
    """
    from gridveil.meter import Meter
    from gridveil.meter_identity import MeterKeys
    from gridveil.meters.gateway import HomeGateway, check_registers, run_p1
    from gridveil.meters.intervals import Rules
    from gridveil.meters.p1 import TelegramReader
    from gridveil.meters.registers import P1_REGISTERS, parse_registers
    from gridveil.meters.sources import open_source
    from gridveil.meters.state import StateFile

    loaded = load_profile(profile)
    clock = make_clock(clock_origin, clock_rate, development=loaded.development)
    registers = parse_registers(register) if register else P1_REGISTERS
    reader, identity = TelegramReader(registers), MeterKeys.load(keys)
    kept = outbox or keys.with_name("outbox.db")
    with Meter.open(loaded, keys=identity, outbox=kept, clock=clock) as meter:
        policy = meter.policy()
        check_registers(policy, registers)
        state = StateFile(kept.with_name(kept.name + ".registers"), identity.meter_id)
        rules = Rules(policy.window_length, registers, tolerance)
        gateway = HomeGateway(meter, state, clock, rules, _teller(json))
        try:
            reports = run_p1(
                gateway, reader, meter, clock, lambda: open_source(p1), threading.Event()
            )
        except KeyboardInterrupt:
            reports = None
    _end(gateway.tally, reports, json)


def _teller(json: bool) -> Tell:
    """Prints each window, and each kind of fault once until the next window."""
    told = set[str]()

    def tell(news: News | GridveilError) -> None:
        if isinstance(news, GridveilError):
            if news.message not in told:
                told.add(news.message)
                typer.echo(one_line(news), err=True)
            return
        told.clear()
        if json:
            more = {"fate": news.fate.value, "windows": news.windows, "why": news.why}
            print_json(window_json(news.start) | more)
            return
        several = f", {news.windows:,} windows" if news.windows > 1 else ""
        why = f": {news.why}" if news.why else ""
        print_line(f"{utc(news.start)}  {news.fate.value}{several}{why}")

    return tell


def _end(tally: Tally, reports: list[ReportStatus] | None, json: bool) -> None:
    from gridveil.meter import State
    from gridveil.meters.gateway import Fate

    fates = {fate.value: tally.windows[fate] for fate in Fate}
    if json:
        faults = {"telegrams": tally.telegrams, "faults": dict(tally.faults)}
        print_json(faults | {"windows": fates})
    else:
        dropped = "".join(f", {count:,} dropped ({what})" for what, count in tally.faults.items())
        print_line(f"{tally.telegrams:,} telegrams{dropped}")
    if reports is None:
        return
    refused = [report for report in reports if report.state is State.GAVE_UP]
    if any(report.answered for report in refused) or fates["late"] or fates["refused"]:
        raise typer.Exit(ExitCode.NO)
    if refused or any(report.state is State.WAITING for report in reports):
        raise typer.Exit(ExitCode.UNREACHABLE)
