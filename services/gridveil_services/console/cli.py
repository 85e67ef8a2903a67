"""``gridveil console serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import ClockOrigin, ClockRate, one_line_on_failure

app = typer.Typer(add_completion=False)


@app.callback()
def console() -> None:
    """The operator's page: demand, signals, and the proof of each total."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The city's console/console.toml.")],
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
) -> None:
    """Serve the operator's page and the page for citizens, until SIGTERM.

    Prints one JSON line when it serves; logs go to standard error. In a development city without
    [oidc] that line has an address that logs one person in, once. Ends with 2 if the configuration
    is not what it must be.

    Example: gridveil console serve --config springfield/console/console.toml
    """
    from gridveil.clock import make_clock
    from gridveil_services.console.config import ConsoleConfig
    from gridveil_services.console.serve import ConsoleProcess
    from gridveil_services.rpc.logging import configure_logging

    configure_logging("console")
    with one_line_on_failure():
        loaded = ConsoleConfig.load(config)
        development = loaded.profile.development
        clock = make_clock(clock_origin, clock_rate, development=development)
        process = ConsoleProcess(loaded, clock)
    process.run()
