"""``gridveil meters run``: the gateway of one home or of many, from real meters' messages."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
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
from gridveil.clock import Clock, make_clock
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

if TYPE_CHECKING:
    from gridveil.meter import ReportStatus
    from gridveil.meters.fleet import Fleet
    from gridveil.meters.following import Follower
    from gridveil.meters.gateway import News, Tally, Tell
    from gridveil.meters.homes import Home
    from gridveil.profile import Profile


def run(
    profile: ProfileOption,
    p1: Annotated[
        str | None,
        typer.Option("--p1", help="P1 telegrams: serial port, tcp://host:port, or file."),
    ] = None,
    dlms: Annotated[
        str | None,
        typer.Option(
            "--dlms",
            help="DLMS pushes: serial port, tcp://host:port, tcp-listen://address:port, or file.",
        ),
    ] = None,
    gateway: Annotated[
        Path | None, typer.Option("--gateway", help="Many homes: a file with a [[home]] for each.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="File with the meter's keys.")] = None,
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
        int | None,
        typer.Option(
            min=0,
            max=300,
            help="How many seconds after its end a window's last message may come. Default: 30.",
        ),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option(help="Of a serial port. Default: 115200-8N1 for P1, 2400-8N1 for DLMS."),
    ] = None,
    encryption_key: Annotated[
        Path | None, typer.Option(help="File with the key that pushes are encrypted with, in hex.")
    ] = None,
    authentication_key: Annotated[
        Path | None, typer.Option(help="File with the key that pushes are authenticated with.")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="IANA name of the zone of pushes that do not say theirs.")
    ] = None,
    unit_wh: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Wh a count, of pushes that do not say their unit."),
    ] = None,
    clock_origin: ClockOriginOption = None,
    clock_rate: ClockRateOption = 1.0,
    json: JsonOption = False,
) -> None:
    """Report a home's energy from its meter's messages, window by window; or that of many homes.

    Runs until it is stopped; with files, to their end. What a window's two ends were not read for
    is not sent: no estimate, and no zero for a gap. Stop and start again with the same outbox: the
    registers at the last boundary are kept beside it, in the clear. A message that is damaged is
    named and dropped. Exit code 1, after files: some windows were refused or came too late, or a
    home was left; 3: some have no answer.

    Example: gridveil meters run --p1 /dev/ttyUSB0 --keys meter.key --profile springfield/meter
    """
    from gridveil.meters.homes import HomeSection, load_homes, make_home

    loaded = load_profile(profile)
    clock = make_clock(clock_origin, clock_rate, development=loaded.development)
    if sum(source is not None for source in (p1, dlms, gateway)) != 1:
        raise _usage("give one of --p1, --dlms and --gateway")
    of_a_home = (keys, outbox, register, tolerance, line, zone, unit_wh)
    if gateway is not None:
        if any(option is not None for option in (*of_a_home, encryption_key, authentication_key)):
            raise _usage("with --gateway, what is of a home is in its file")
        homes, kept = load_homes(gateway)
        _run_many(loaded, homes, kept, clock, json)
        return
    if keys is None:
        raise _usage("--keys is needed")
    section = HomeSection(
        name="home",
        keys=str(keys),
        p1=p1,
        dlms=dlms,
        register=tuple(register or ()),
        tolerance=30 if tolerance is None else tolerance,
        line=line,
        encryption_key=None if encryption_key is None else str(encryption_key),
        authentication_key=None if authentication_key is None else str(authentication_key),
        zone=zone,
        unit_wh=unit_wh,
    )
    home = make_home(section, Path())
    _run_one(loaded, home, outbox or keys.with_name("outbox.db"), clock, json)


def _run_one(loaded: Profile, home: Home, outbox: Path, clock: Clock, json: bool) -> None:
    from gridveil.meter import Meter
    from gridveil.meters.following import run_home

    with Meter.open(loaded, keys=home.identity, outbox=outbox, clock=clock) as meter:
        state = outbox.with_name(outbox.name + ".registers")
        follower = home.follower(meter, state, meter.policy(), clock, _teller(json))
        try:
            reports = run_home(meter, follower, threading.Event())
        except KeyboardInterrupt:
            reports = None
    tally = follower.gateway.tally
    if json:
        print_json(_counts([tally]))
    else:
        print_line(_messages([tally]))
    _end([tally], reports)


def _run_many(loaded: Profile, homes: list[Home], outbox: Path, clock: Clock, json: bool) -> None:
    from gridveil.files import make_folder
    from gridveil.meters.fleet import Fleet
    from gridveil.meters.homes import run_homes

    states = outbox.with_name(outbox.name + ".registers")
    make_folder(states)
    with Fleet(loaded, [home.identity for home in homes], outbox, clock) as fleet:
        policy = fleet.policy()
        followers, left = _followers(fleet, homes, states, clock, json)
        progress = _Progress(fleet, followers, clock, policy.window_length, json)
        try:
            left |= run_homes(fleet, followers, threading.Event(), progress.turn)
            reports = fleet.flush()
        except KeyboardInterrupt:
            reports = None
        progress.show()
    _end([follower.gateway.tally for follower in followers.values()], reports)
    if left:
        raise typer.Exit(ExitCode.NO)


def _followers(
    fleet: Fleet, homes: Iterable[Home], states: Path, clock: Clock, json: bool
) -> tuple[dict[str, Follower], dict[str, GridveilError]]:
    """A follower for each home; and why some have none, as when their state is damaged."""
    followers: dict[str, Follower] = {}
    left: dict[str, GridveilError] = {}
    for home in homes:
        meter_id = home.identity.meter_id
        kept, meter = states / f"{meter_id.hex()}.json", fleet.home(meter_id)
        try:
            followers[home.name] = home.follower(
                meter, kept, fleet.policy(), clock, _teller(json, home.name)
            )
        except GridveilError as error:
            left[home.name] = error
            typer.echo(f"{home.name}: {one_line(error)}", err=True)
    return followers, left


class _Progress:
    """A line of counts, once a window."""

    def __init__(
        self,
        fleet: Fleet,
        followers: Mapping[str, Follower],
        clock: Clock,
        length: int,
        json: bool,
    ) -> None:
        self._fleet = fleet
        self._followers = followers
        self._clock = clock
        self._length = length
        self._json = json
        self._next = clock.now() + length

    def turn(self) -> None:
        if self._clock.now() >= self._next:
            self._next = self._clock.now() + self._length
            self.show()

    def show(self) -> None:
        tallies = [follower.gateway.tally for follower in self._followers.values()]
        waiting = self._fleet.waiting()
        if self._json:
            more = {"homes": len(tallies), "waiting": waiting}
            print_json(more | _counts(tallies))
            return
        fates = ", ".join(f"{count:,} {fate}" for fate, count in _fates(tallies).items() if count)
        print_line(
            f"{len(tallies):,} homes; windows: {fates or 'none yet'}; {_messages(tallies)};"
            f" {waiting:,} waiting to be sent"
        )


def _teller(json: bool, home: str | None = None) -> Tell:
    """Prints each window, and each kind of fault once until the next window.

    Of one home among many, windows that were recorded are told by the counts.
    """
    told = set[str]()
    prefix = "" if home is None else f"{home}: "

    def tell(news: News | GridveilError) -> None:
        if isinstance(news, GridveilError):
            if news.message not in told:
                told.add(news.message)
                typer.echo(prefix + one_line(news), err=True)
            return
        told.clear()
        if json:
            print_json(({} if home is None else {"home": home}) | _news_json(news))
        elif home is None or news.fate != "recorded" or news.still:
            print_line(prefix + _news_line(news))

    return tell


def _news_json(news: News) -> dict[str, object]:
    more = {"fate": news.fate.value, "windows": news.windows, "why": news.why}
    return window_json(news.start) | more | {"still": sorted(news.still)}


def _news_line(news: News) -> str:
    several = f", {news.windows:,} windows" if news.windows > 1 else ""
    why = f": {news.why}" if news.why else ""
    still = f"; stands still: {', '.join(sorted(news.still))}" if news.still else ""
    return f"{utc(news.start)}  {news.fate.value}{several}{why}{still}"


def _fates(tallies: Iterable[Tally]) -> dict[str, int]:
    from gridveil.meters.gateway import Fate

    total = sum((Counter(tally.windows) for tally in tallies), Counter[Fate]())
    return {fate.value: total[fate] for fate in Fate}


def _counts(tallies: list[Tally]) -> dict[str, object]:
    faults = sum((Counter(tally.faults) for tally in tallies), Counter[str]())
    messages = sum(tally.telegrams for tally in tallies)
    return {"telegrams": messages, "faults": dict(faults), "windows": _fates(tallies)}


def _messages(tallies: list[Tally]) -> str:
    faults = sum((Counter(tally.faults) for tally in tallies), Counter[str]())
    dropped = "".join(f", {count:,} dropped ({what})" for what, count in faults.items())
    return f"{sum(tally.telegrams for tally in tallies):,} telegrams{dropped}"


def _end(tallies: list[Tally], reports: list[ReportStatus] | None) -> None:
    from gridveil.meter import State

    if reports is None:
        return
    fates = _fates(tallies)
    refused = [report for report in reports if report.state is State.GAVE_UP]
    if any(report.answered for report in refused) or fates["late"] or fates["refused"]:
        raise typer.Exit(ExitCode.NO)
    if refused or any(report.state is State.WAITING for report in reports):
        raise typer.Exit(ExitCode.UNREACHABLE)


def _usage(message: str) -> GridveilError:
    return MalformedInput(Reason.CONFIG_INVALID, message)
