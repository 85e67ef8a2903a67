"""``gridveil totals export``: totals as a file of CSV or Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridveil.cli.arguments import ProfileOption, load_profile, parse_window
from gridveil.cli.output import utc
from gridveil.cli.totals import FromOption, deviations_of
from gridveil.days import time_zone, windows_of
from gridveil.files import replacing
from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.errors import MalformedInput, Reason, WrongState

if TYPE_CHECKING:
    from gridveil.tables import Layout, Row

_SHOWN_EVERY = 1_000
_FIRST_PAGE = 50


class Format(StrEnum):
    """Of the file."""

    CSV = "csv"
    PARQUET = "parquet"


def export(
    output: Annotated[
        Path,
        typer.Option(dir_okay=False, help="The file to write; it is replaced if it exists."),
    ],
    profile: ProfileOption,
    format: Annotated[Format, typer.Option(help="Parquet needs gridveil\\[tables].")] = Format.CSV,
    from_window: FromOption = None,
    until: Annotated[
        str | None, typer.Option(help="First window that is left out; Unix seconds or ISO 8601.")
    ] = None,
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="All windows of this local day, instead."),
    ] = None,
    zone: Annotated[
        str, typer.Option(help="Time zone of the local times, as in Europe/Zurich.")
    ] = "UTC",
) -> None:
    """Write totals into a file, a row a window.

    Every total is verified first. A window without a total has its row too: why it was not
    released, or that it is not settled; its figures are empty, never 0. A local day has all its
    windows, also in a day of 23 or 25 hours. Progress goes to standard error, and the file is
    there only once it is whole.

    Example: gridveil totals export --format csv --output day.csv --profile springfield/operator
    """
    from gridveil.tables import rows, survey

    local = time_zone(zone)
    if day and (from_window or until):
        raise MalformedInput(Reason.CONFIG_INVALID, "give either --day or --from and --until")
    first, end = _bound(from_window), _bound(until)
    with Operator.open(load_profile(profile)) as operator:
        known = _known_layout(operator, local)
        if day:
            windows = windows_of(day.date(), local, known.window_length or 1)
            first, end = windows.start, windows.stop
        layout, outcomes = survey(operator.list(first or 0, end or 0), local)
        if layout.window_length is None:
            layout = known
        found = rows(
            outcomes,
            layout,
            first=first,
            end=end,
            deviations=lambda released: deviations_of(operator, released),
        )
        _write(output, format, found, layout)


def _bound(value: str | None) -> int | None:
    return None if value is None else parse_window(value)


def _known_layout(operator: Operator, zone: tzinfo) -> Layout:
    """By the first total that the city has: of a range without totals as well."""
    from gridveil.tables import Layout

    for outcome in operator.list(page_size=_FIRST_PAGE):
        if isinstance(outcome, ReleasedTotal):
            return Layout.of(outcome.total, zone)
    raise WrongState(Reason.NOT_RELEASED, "no total of this city has been released yet")


def _write(output: Path, format: Format, rows: Iterable[Row], layout: Layout) -> None:
    from gridveil.tables import write_csv, write_parquet

    written = Counter[str]()
    write = write_csv if format is Format.CSV else write_parquet
    with replacing(output) as file:
        write(_shown(rows, written), layout, file)
    parts = ", ".join(f"{number:,} {status}" for status, number in sorted(written.items()))
    typer.echo(f"{output.name}: {written.total():,} windows ({parts or 'none'})", err=True)


def _shown(rows: Iterable[Row], written: Counter[str]) -> Iterator[Row]:
    for row in rows:
        written[row.status.value.replace("_", " ")] += 1
        if written.total() % _SHOWN_EVERY == 0:
            typer.echo(f"{utc(row.window_start)}: {written.total():,} windows", err=True)
        yield row
