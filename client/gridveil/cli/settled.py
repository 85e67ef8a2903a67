"""Settled windows for commands that compare or watch: from the service, or from a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from gridveil.cli.totals import deviations_of
from gridveil.operator import Operator
from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.totals_file import Settled, read_settled

ProfileOrFileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        envvar="GRIDVEIL_PROFILE",
        help="An operator's profile.toml, or its folder; with --totals: whose key-holder signed.",
        show_default=False,
    ),
]
TotalsOption = Annotated[
    Path | None,
    typer.Option(help="What gridveil totals list --json printed, instead of the service."),
]
UntilOption = Annotated[
    str | None, typer.Option(help="First window that is left out; Unix seconds or ISO 8601.")
]


def settled_windows(
    profile: Profile | None, totals: Path | None, first: int, end: int
) -> list[Settled]:
    """The settled windows from ``first`` to before ``end``, ascending.

    Args:
        profile: whose key-holder must have signed; it names the service as well.
        totals: a file to read instead of asking the service.
        first: window start; 0 for the oldest there is.
        end: first window start that is left out; 0 for no end.

    Raises:
        GridveilError: as :func:`gridveil.totals_file.read_settled` and :class:`Operator` do;
            CONFIG_INVALID if there is neither a profile nor a file.
    """
    if totals is not None:
        return [row for row in read_settled(totals, profile) if _within(row, first, end)]
    if profile is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "name an operator's profile with --profile, or a file: --totals"
        )
    with Operator.open(profile) as operator:
        return list(takewhile(lambda row: _within(row, first, end), _asked(operator, first)))


def _asked(operator: Operator, first: int) -> Iterator[Settled]:
    for outcome in operator.list(first):
        yield Settled(outcome, deviations_of(operator, outcome))


def _within(row: Settled, first: int, end: int) -> bool:
    return row.outcome.window_start >= first and not 0 < end <= row.outcome.window_start


def warn_unchecked(profile: Profile | None) -> None:
    """Say so if nobody checked who signed."""
    if profile is None:
        typer.echo("signatures not checked: name an operator's profile with --profile", err=True)
