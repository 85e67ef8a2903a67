"""``gridveil totals serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import ClockOrigin, ClockRate, one_line_on_failure

app = typer.Typer(add_completion=False)


@app.callback()
def totals() -> None:
    """Serve released totals to operators and auditors."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The city's totals/totals.toml.")],
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
) -> None:
    """Serve what the key-holder released, read-only, until SIGTERM.

    Prints one JSON line when it serves; logs go to standard error. Ends with 2 if the configuration
    or the release log is not what it must be.

    Example: gridveil totals serve --config springfield/totals/totals.toml
    """
    from gridveil.clock import make_clock
    from gridveil_services.rpc.logging import configure_logging
    from gridveil_services.totals.config import TotalsConfig
    from gridveil_services.totals.serve import TotalsProcess

    configure_logging("totals")
    with one_line_on_failure():
        loaded = TotalsConfig.load(config)
        # Totals are answered at any time; the options are those of every service, and checked.
        make_clock(clock_origin, clock_rate, development=loaded.development)
        process = TotalsProcess(loaded)
    process.run()
