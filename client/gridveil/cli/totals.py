"""``gridveil totals``: what operators and auditors read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import (
    JsonOption,
    ProfileOption,
    WindowArgument,
    load_profile,
    parse_bound,
    parse_window,
)
from gridveil.cli.extensions import ExtensibleGroup
from gridveil.cli.output import (
    EXIT_CODES,
    ExitCode,
    console,
    fail,
    one_line,
    print_json,
    print_line,
    utc,
    window_json,
)
from gridveil.export import encode_export
from gridveil.files import write_durably
from gridveil.operator import NotReleased, Operator, Outcome, ReleasedTotal
from gridveil.protocol.errors import (
    GridveilError,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.noise import Noise
from gridveil.protocol.release import RegisterTotal
from gridveil.registrar import Registrar, Roster
from gridveil.verification import Verification

app = typer.Typer(
    cls=ExtensibleGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read released totals: sums, means and coverage, each with its signature checked.",
    epilog=EXIT_CODES,
)

_NOT_VERIFIED = {Reason.KEY_NOT_PINNED, Reason.SIGNATURE_INVALID, Reason.SIGNATURE_MISSING}

FromOption = Annotated[
    str | None, typer.Option("--from", help="First window; Unix seconds or ISO 8601.")
]


@app.command()
def get(window: WindowArgument, profile: ProfileOption, json: JsonOption = False) -> None:
    """Show one window's total, verified against the pinned key-holder.

    Ends with 1 if the window was not released, or is not settled yet.

    Example: gridveil totals get 2026-05-04T12:15Z --profile springfield/operator
    """
    with Operator.open(load_profile(profile)) as operator:
        outcome = operator.get(parse_window(window))
        _print(outcome, deviations_of(operator, outcome), json)
    if isinstance(outcome, NotReleased):
        raise typer.Exit(ExitCode.NO)


@app.command("list")
def list_totals(
    profile: ProfileOption,
    from_window: FromOption = None,
    until: Annotated[
        str | None, typer.Option(help="First window that is left out; Unix seconds or ISO 8601.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many windows.")] = None,
    json: JsonOption = False,
) -> None:
    """List settled windows, oldest first; gaps are shown as what they are.

    A window that is missing is not settled yet.

    Example: gridveil totals list --from 2026-05-04 --limit 96 --profile springfield/operator
    """
    with Operator.open(load_profile(profile)) as operator:
        outcomes = operator.list(parse_bound(from_window), parse_bound(until))
        found = [(found, deviations_of(operator, found)) for found in islice(outcomes, limit)]
    if json:
        print_json([outcome_json(outcome, deviations) for outcome, deviations in found])
    else:
        _show(found)


@app.command()
def watch(
    profile: ProfileOption,
    from_window: FromOption = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many windows.")] = None,
    give_up_after: Annotated[
        float | None, typer.Option(help="End with 3 after so many seconds without the service.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print each window as it settles, and reconnect whenever that is needed.

    With --from, what settled since then comes first. --json prints one object a line.

    Example: gridveil totals watch --from 2026-05-04 --profile springfield/operator
    """
    with Operator.open(load_profile(profile)) as operator:
        outcomes = operator.watch(
            parse_bound(from_window), give_up_after_s=give_up_after, on_failure=_trying_again
        )
        for outcome in islice(outcomes, count):
            deviations = deviations_of(operator, outcome)
            if json:
                print_json(outcome_json(outcome, deviations))
            else:
                print_line(_line(outcome, deviations))


@app.command()
def verify(
    window: WindowArgument,
    profile: ProfileOption,
    registrar: Annotated[
        Path | None,
        typer.Option(help="A registrar's profile: check every meter's signature as well."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write what was verified to a file, for docs/verify_total.py."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Recompute a total from the entries that the key-holder opened.

    Fetches the total, the signed city parameters and the entries, and adds up the commitments of
    all meters. Ends with 1 if anything does not fit. Auditors may fetch entries, and everybody
    if the city's policy makes them public.

    Example: gridveil totals verify 2026-05-04T12:15Z --profile springfield/auditor
    """
    with Operator.open(load_profile(profile)) as operator:
        outcome = operator.get(parse_window(window))
        if isinstance(outcome, NotReleased):
            _print(outcome, {}, json)
            raise typer.Exit(ExitCode.NO)
        deviations = deviations_of(operator, outcome)
        roster, entries = _roster(registrar, outcome), bytearray()
        members = {member.meter_id: member for member in roster.members} if roster else None
        try:
            found = operator.verify(outcome, members, entries.extend if export else None)
            if export:
                proof = operator.inclusion_proof(outcome)
                key = load_profile(profile).identity_key
                exported = encode_export(outcome, bytes(entries), proof, key, roster)
                write_durably(export, exported, mode=0o644)
        except MalformedInput as error:
            raise _unverified(outcome, deviations, error, json) from None
        except NotAuthentic as error:
            if error.reason not in _NOT_VERIFIED:
                raise
            raise _unverified(outcome, deviations, error, json) from None
    if json:
        verification = {"verification": verification_json(found)}
        print_json(outcome_json(outcome, deviations) | verification)
        return
    _show([(outcome, deviations)])
    for line in checked(found):
        typer.echo(f"  ok  {line}")


def deviations_of(operator: Operator, outcome: Outcome) -> Mapping[str, float]:
    """Standard deviation of the noise in each sum.

    Empty if there is none, or if the signed parameters that it follows from are out of reach.
    """
    if isinstance(outcome, NotReleased) or outcome.noise is None:
        return {}
    try:
        return operator.deviations(outcome)
    except Unavailable as error:
        typer.echo(f"{one_line(error)}; showing no deviations", err=True)
        return {}


def outcome_json(outcome: Outcome, deviations: Mapping[str, float]) -> dict[str, Any]:
    """A settled window as programs read it."""
    if isinstance(outcome, NotReleased):
        return window_json(outcome.window_start) | {
            "status": "not_released",
            "reason": outcome.reason.value,
        }
    total = outcome.total
    return window_json(total.window_start) | {
        "status": "released",
        "registers": [
            {
                "name": register.name,
                "unit": register.unit,
                "sum": register.sum,
                "mean": outcome.mean(register.name),
                **_deviation_json(register.name, deviations),
            }
            for register in total.registers
        ],
        "noise": outcome.noise and _noise_json(outcome.noise),
        "count": total.count,
        "enrolled": total.enrolled,
        "coverage": total.coverage,
        "window_length": total.window_length,
        "roster_version": total.roster_version,
        "epoch_id": total.epoch_id.hex(),
        "release_digest": total.release_digest.hex(),
        "signed_total": outcome.encoded.hex(),
        "signature": outcome.signature.hex(),
    }


def _deviation_json(name: str, deviations: Mapping[str, float]) -> dict[str, float]:
    return {"standard_deviation": deviations[name]} if name in deviations else {}


def _noise_json(noise: Noise) -> dict[str, Any]:
    return {"mechanism": noise.mechanism.name.lower(), noise.loss_name: noise.loss}


def verification_json(found: Verification) -> dict[str, Any]:
    """What was verified, as programs read it."""
    return {
        "meters": found.meters,
        "lanes": found.lanes,
        "meter_signatures_checked": found.signatures_checked,
        "noisy": found.noisy,
        "checked": checked(found),
    }


def checked(found: Verification) -> list[str]:
    """What held, in sentences."""
    lines = [
        "the key-holder signed this total for this city and window",
        "parameters, cohort and coverage follow the signed city policy",
        f"the {found.meters} entries are those the total names, of distinct meters in"
        f" {found.lanes} lanes",
        "every commitment is the one its meter reported",
        "the meters' commitments add up to the total"
        + (", with noise that the key-holder committed to" if found.noisy else ""),
    ]
    if found.signatures_checked:
        lines.insert(4, "every report was signed by its enrolled meter")
    return lines


def _roster(profile: Path | None, outcome: ReleasedTotal) -> Roster | None:
    if profile is None:
        return None
    with Registrar.open(load_profile(profile)) as registrar:
        return registrar.roster(outcome.window_start)


def _unverified(
    outcome: ReleasedTotal, deviations: Mapping[str, float], error: GridveilError, json: bool
) -> typer.Exit:
    if json:
        failure = {"reason": error.reason.value, "message": error.message}
        shown = outcome_json(outcome, deviations)
        print_json(shown | {"verification": None, "failure": failure})
    fail(error)
    return typer.Exit(ExitCode.NO)


def _trying_again(error: GridveilError) -> None:
    typer.echo(f"{one_line(error)}; trying again", err=True)


def _line(outcome: Outcome, deviations: Mapping[str, float]) -> str:
    if isinstance(outcome, NotReleased):
        return f"{utc(outcome.window_start)}  not released: {outcome.reason}"
    total, noisy = outcome.total, ", with noise" if outcome.noise else ""
    sums = ", ".join(f"{r.name} {_sum(r, deviations)}" for r in total.registers)
    meters = f"{total.count:,} of {total.enrolled:,} meters"
    return f"{utc(total.window_start)}  {sums}  ({meters}{noisy})"


def _sum(register: RegisterTotal, deviations: Mapping[str, float]) -> str:
    deviation = deviations.get(register.name)
    plus_minus = "" if deviation is None else f" ± {deviation:,.0f}"
    return f"{register.sum:,}{plus_minus} {register.unit}"


def _print(outcome: Outcome, deviations: Mapping[str, float], json: bool) -> None:
    if json:
        print_json(outcome_json(outcome, deviations))
    else:
        _show([(outcome, deviations)])


def _show(outcomes: Sequence[tuple[Outcome, Mapping[str, float]]]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("window", "register"):
        table.add_column(heading)
    for heading in ("sum", "mean", "meters", "coverage"):
        table.add_column(heading, justify="right")
    for outcome, deviations in outcomes:
        for row in _rows(outcome, deviations):
            table.add_row(*row)
    if any(deviations for _, deviations in outcomes):
        table.caption = "± is one standard deviation of the noise in a sum"
    console().print(table)


def _rows(outcome: Outcome, deviations: Mapping[str, float]) -> Iterable[tuple[str, ...]]:
    if isinstance(outcome, NotReleased):
        yield utc(outcome.window_start), f"not released: {outcome.reason}", "", "", "", ""
        return
    total = outcome.total
    for at, register in enumerate(total.registers):
        yield (
            "" if at else utc(total.window_start),
            register.name,
            _sum(register, deviations),
            f"{outcome.mean(register.name):,.1f} {register.unit}",
            "" if at else f"{total.count:,}",
            "" if at else f"{total.coverage:.1%}",
        )
