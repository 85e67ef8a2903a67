"""``gridveil keyholder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil.protocol.errors import GridveilError

app = typer.Typer(
    no_args_is_help=True, help="The key-holder: opens city-wide totals and nothing else."
)

_REFUSES_TO_START = 2


@app.callback()
def keyholder() -> None:
    """The key-holder: opens city-wide totals and nothing else."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="Path of keyholder.toml.", show_default=False)],
    clock_origin: Annotated[
        str | None,
        typer.Option(
            metavar="METERING@REAL",
            help="Two Unix times that fall together; development cities only.",
        ),
    ] = None,
    clock_rate: Annotated[
        float, typer.Option(help="Metering seconds per real second; development cities only.")
    ] = 1.0,
) -> None:
    """Serve releases and the roster until SIGTERM.

    Prints one JSON line with the address when it serves. Refuses to start, with one line on
    standard error and exit code 2, if the configuration, a key, the roster or the release log is
    not what it must be: it never opens anything in doubt.

    Example: gridveil keyholder serve --config springfield/keyholder/keyholder.toml
    """
    from gridveil.clock import make_clock
    from gridveil_services.keyholder import serve as process
    from gridveil_services.keyholder.config import KeyHolderConfig
    from gridveil_services.rpc.logging import configure_logging

    configure_logging("keyholder")
    try:
        loaded = KeyHolderConfig.load(config)
        clock = make_clock(clock_origin, clock_rate, development=loaded.policy.development)
        process.serve(loaded, clock)
    except (GridveilError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(_REFUSES_TO_START) from None
