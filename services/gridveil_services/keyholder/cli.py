"""``gridveil keyholder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import ClockOrigin, ClockRate, one_line_on_failure

app = typer.Typer(
    no_args_is_help=True, help="The key-holder: opens city-wide totals and nothing else."
)


@app.callback()
def keyholder() -> None:
    """The key-holder: opens city-wide totals and nothing else."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="Path of keyholder.toml.", show_default=False)],
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
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
    with one_line_on_failure():
        loaded = KeyHolderConfig.load(config)
        clock = make_clock(clock_origin, clock_rate, development=loaded.policy.development)
        process.serve(loaded, clock)
