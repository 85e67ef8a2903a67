"""``gridveil meters``: the roster's meters, enrolled and withdrawn by a registrar."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, ProfileOption, load_profile
from gridveil.cli.extensions import ExtensibleGroup
from gridveil.cli.output import EXIT_CODES, print_json, utc
from gridveil.files import make_folder
from gridveil.meter_identity import MeterKeys, append_fleet, read_fleet
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.roster import RosterVersion, open_enrolment
from gridveil.registrar import MOST_A_CALL, Registrar, Suspect

app = typer.Typer(
    cls=ExtensibleGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Enrol, withdraw, suspect, run and simulate meters.",
    epilog=EXIT_CODES,
)

Progress = Callable[[int], None]

_HINT = (
    "This is a hint and never a verdict: honest meters share lanes with others, and a lying"
    " aggregator can frame anyone. Only a proven meter has signed its fault."
)


@app.command()
def enrol(
    profile: ProfileOption,
    fleet: Annotated[
        Path | None, typer.Option(help="File with the keys of simulated meters; made if missing.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Add so many new meters to the fleet; none: enrol those in it."),
    ] = None,
    label_from: Annotated[
        Path | None,
        typer.Option(help="CSV of readings: the new meters get the names that it has for meters."),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(help="Enrolment requests of real meters, one a line, hex or base64."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Enrol meters from the next window on; enrolling a meter twice changes nothing.

    Keys of a fleet are on disk before they are enrolled: after a failure, the same command without
    --count enrols what is left.

    Example: gridveil meters enrol --fleet fleet.jsonl --count 1000 --profile springfield/registrar
    """
    if (fleet is None) == (requests is None) or (fleet is None and (count or label_from)):
        raise _usage("give either --fleet, with or without --count, or --requests")
    loaded = load_profile(profile)
    with Registrar.open(loaded) as registrar:
        if requests is not None:
            asked = list(_read_requests(requests, loaded.city_id))
            with _progress("enrolling", len(asked), json) as advance:
                version = registrar.enrol(asked, advance)
            done = len(asked)
        elif fleet is not None:
            labels = _labels(fleet, count, label_from)
            done, version = _enrol_fleet(registrar, loaded.city_id, fleet, labels, json)
    _show_version("enrolled", done, version, json)


@app.command()
def withdraw(
    meter_ids: Annotated[list[str], typer.Argument(help="Meter ids, 32 hexadecimal digits each.")],
    profile: ProfileOption,
    json: JsonOption = False,
) -> None:
    """Withdraw meters from the next window on; a withdrawn id never comes back.

    The window in progress still counts them.

    Example: gridveil meters withdraw 6f1e...90 --profile springfield/registrar
    """
    ids = [_parse_id(value) for value in meter_ids]
    with Registrar.open(load_profile(profile)) as registrar:
        version = registrar.withdraw(ids)
    _show_version("withdrawn", len(ids), version, json)


@app.command()
def suspects(
    profile: ProfileOption,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="How many at the most, the likeliest first.")
    ] = 20,
    json: JsonOption = False,
) -> None:
    """List meters that may make lanes fail: a hint, and never a verdict.

    A lane that does not open holds a misbehaving meter, if the aggregator is honest; each window
    deals the meters to the lanes anew. The score is the evidence in bits: 10 speak 1,000 to 1. An
    aggregator that lies can frame any meter. Only a seal that does not open is proof ("proven"):
    the meter, or who has its keys, signed it.

    Example: gridveil meters suspects --limit 5 --profile springfield/registrar
    """
    with Registrar.open(load_profile(profile)) as registrar:
        found = registrar.suspects(limit)
    if json:
        print_json({"hint": _HINT, "suspects": [suspect_json(suspect) for suspect in found]})
    else:
        _show_suspects(found)


def suspect_json(suspect: Suspect) -> dict[str, Any]:
    """How every JSON answer shows a suspect."""
    return vars(suspect) | {"meter_id": suspect.meter_id.hex()}


def _show_suspects(found: Sequence[Suspect]) -> None:
    if not found:
        typer.echo("No meter is under suspicion.")
        return
    typer.echo("meter                             windows  lanes failed  proven  score (bits)")
    for one in found:
        typer.echo(
            f"{one.meter_id.hex()}  {one.windows:>7,}  {one.failed:>12,}  {one.proven:>6,}"
            f"  {one.score:>12.1f}"
        )
    typer.echo(f"\n{_HINT}")


def _enrol_fleet(
    registrar: Registrar, city_id: bytes, fleet: Path, labels: Sequence[str | None], quiet: bool
) -> tuple[int, RosterVersion | None]:
    total = len(labels) or sum(1 for _ in read_fleet(fleet))
    meters = _new_meters(fleet, labels) if labels else read_fleet(fleet)
    with _progress("enrolling", total, quiet) as advance:
        version = registrar.enrol((meter.enrolment_request(city_id) for meter in meters), advance)
    return total, version


def _labels(fleet: Path, count: int | None, source: Path | None) -> Sequence[str | None]:
    """A label, or none, for each meter to be made."""
    if source is None:
        return [None] * (count or 0)
    from gridveil.simulator.csv_source import CsvSource

    known = {meter.label for meter in read_fleet(fleet)} if fleet.exists() else set()
    fresh = [name for name in CsvSource(source).names() if name not in known]
    if len(fresh) < (count or 1):
        raise _usage(f"{source.name} names {len(fresh)} meters that are not in the fleet yet")
    return fresh[:count]


def _new_meters(fleet: Path, labels: Iterable[str | None]) -> Iterator[MeterKeys]:
    """New meters, on disk before they are handed out."""
    make_folder(fleet.absolute().parent)
    fresh = (MeterKeys.create(label) for label in labels)
    while chunk := list(islice(fresh, MOST_A_CALL)):
        append_fleet(fleet, chunk)
        yield from chunk


def _read_requests(path: Path, city_id: bytes) -> Iterator[bytes]:
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise _usage(f"{path.name} cannot be read as text") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse_request(line.strip(), city_id, f"{path.name}, line {number}")


def _parse_request(line: str, city_id: bytes, where: str) -> bytes:
    try:
        request = bytes.fromhex(line)
    except ValueError:
        request = _from_base64(line)
    try:
        open_enrolment(request, city_id)
    except GridveilError as error:
        raise type(error)(error.reason, f"{where}: {error.message}") from None
    return request


def _from_base64(line: str) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        return b""


def _parse_id(value: str) -> bytes:
    try:
        meter_id = bytes.fromhex(value)
    except ValueError:
        meter_id = b""
    if len(meter_id) != ID_BYTES:
        raise MalformedInput(Reason.FIELD_FORMAT, f"{value!r} is not 32 hexadecimal digits")
    return meter_id


@contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bar

    shown = Console(stderr=True)
    with Bar(console=shown, disable=quiet or not shown.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def _show_version(what: str, done: int, version: RosterVersion | None, json: bool) -> None:
    if version is None:
        raise MalformedInput(Reason.BATCH_EMPTY, "there are no meters to enrol")
    if json:
        print_json(
            {
                what: done,
                "roster_version": version.version,
                "effective_window": version.effective_window,
                "effective": utc(version.effective_window),
                "meters": version.count,
            }
        )
        return
    typer.echo(
        f"{done:,} meters {what}. The roster is version {version.version} with {version.count:,}"
        f" meters, in force from {utc(version.effective_window)}."
    )


def _usage(message: str) -> GridveilError:
    return MalformedInput(Reason.CONFIG_INVALID, message)
