"""``gridveil aggregator``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import ClockOrigin, ClockRate, explain, one_line_on_failure

app = typer.Typer(
    no_args_is_help=True, help="The aggregator: adds encrypted readings and cannot read them."
)

_STORE_FAILED = 3


@app.callback()
def aggregator() -> None:
    """The aggregator: adds encrypted readings and cannot read them."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="Path of aggregator.toml.", show_default=False)],
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
    workers: Annotated[
        int,
        typer.Option(help="So many processes share the port; their windows must be in Redis."),
    ] = 1,
    worker: Annotated[
        int, typer.Option(hidden=True, help="Which of them this process is; given by their parent.")
    ] = 0,
) -> None:
    """Take reports, add them, and have the key-holder release each window, until SIGTERM.

    Prints one JSON line with the address when it serves. Exits with code 2 if the configuration
    is wrong, and with code 3 if the store is damaged, in use, or has failed: the next start checks
    it. Every report that was acknowledged is durable. With --workers each process has a folder of
    its own below the configured state, and one that ends is started again.

    Example: gridveil aggregator serve --config springfield/aggregator/aggregator.toml
    """
    from gridveil.clock import make_clock
    from gridveil_services.aggregator import serve as process
    from gridveil_services.aggregator.config import AggregatorConfig
    from gridveil_services.aggregator.store.interface import StoreFailed
    from gridveil_services.aggregator.workers import (
        Workers,
        check_workers,
        of_worker,
        worker_command,
    )
    from gridveil_services.rpc.logging import configure_logging

    configure_logging("aggregator")
    with one_line_on_failure():
        loaded = AggregatorConfig.load(config)
        clock = make_clock(clock_origin, clock_rate, development=loaded.development)
        check_workers(loaded, workers)
        try:
            if workers > 1:
                origin = [] if clock_origin is None else ["--clock-origin", clock_origin]
                told = [*origin, "--clock-rate", repr(clock_rate)]
                code = Workers(loaded, workers, worker_command(config, told)).run()
                raise typer.Exit(code)
            process.serve(of_worker(loaded, worker) if worker else loaded, clock, shared=worker > 0)
        except StoreFailed as error:
            explain(error)
            raise typer.Exit(_STORE_FAILED) from None
