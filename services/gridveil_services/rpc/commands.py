"""What the ``serve`` commands of all services have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from gridveil.protocol.errors import GridveilError

REFUSES_TO_START = 2

ClockOrigin = Annotated[
    str | None,
    typer.Option(
        "--clock-origin",
        metavar="METERING@REAL",
        help="Two Unix times that fall together; development cities only.",
    ),
]
ClockRate = Annotated[
    float,
    typer.Option("--clock-rate", help="Metering seconds per real second; development cities only."),
]


@contextmanager
def one_line_on_failure() -> Iterator[None]:
    """A refusal or an unreadable file as one line on standard error, and exit code 2."""
    try:
        yield
    except (GridveilError, OSError) as error:
        explain(error)
        raise typer.Exit(REFUSES_TO_START) from None


def explain(error: Exception) -> None:
    """One line on standard error."""
    typer.echo(" ".join(str(error).split()), err=True)
