"""``gridveil meters``: the roster's meters, enrolled and withdrawn by a registrar."""

from __future__ import annotations

import typer

from gridveil.cli.extensions import ExtensibleGroup
from gridveil.cli.output import EXIT_CODES

app = typer.Typer(
    cls=ExtensibleGroup,
    no_args_is_help=True,
    help="Enrol, withdraw and simulate meters.",
    epilog=EXIT_CODES,
)
