"""``gridveil witness``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import one_line_on_failure

app = typer.Typer(
    no_args_is_help=True,
    help="A witness: remembers how far a city's log has come, so that nobody can take it back.",
)


@app.callback()
def witness() -> None:
    """A witness: remembers how far a city's log has come, so that nobody can take it back."""


@app.command()
def create_key(
    name: Annotated[str, typer.Argument(help="The witness's name, such as witness.example/1.")],
    file: Annotated[Path, typer.Option(help="Where to keep the secret key.")] = Path("witness.key"),
) -> None:
    """Make a witness's key and print what key-holders and operators write into their files.

    Example: gridveil witness create-key witness.example/1 --file witness/witness.key
    """
    from gridveil_services.witness import config

    with one_line_on_failure():
        config.public_key(name, bytes(32))
        key = config.create_key(file)
    typer.echo(config.public_key(name, bytes(key.verify_key)).encode())


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="Path of witness.toml.", show_default=False)],
) -> None:
    """Cosign checkpoints of the configured logs over HTTP (C2SP tlog-witness) until SIGTERM.

    Prints one JSON line with the address when it serves; logs go to standard error. Ends with 2 if
    the configuration, the key or what was seen before is not what it must be.

    Example: gridveil witness serve --config witness/witness.toml
    """
    import json
    import time

    from gridveil_services.rpc.logging import configure_logging
    from gridveil_services.witness.config import WitnessConfig
    from gridveil_services.witness.server import WitnessServer
    from gridveil_services.witness.witness import Witness

    configure_logging("witness")
    with one_line_on_failure():
        loaded = WitnessConfig.load(config)
        server = WitnessServer(Witness(loaded, time.time), loaded.listen)
    line = {"event": "serving", "role": "witness", "address": server.address}
    typer.echo(json.dumps(line))
    server.run_until_signal()
