"""``gridveil keyholder``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gridveil_services.rpc.commands import ClockOrigin, ClockRate, one_line_on_failure

app = typer.Typer(
    no_args_is_help=True, help="The key-holder: opens city-wide totals and nothing else."
)

ConfigOption = Annotated[Path, typer.Option(help="Path of keyholder.toml.", show_default=False)]


@app.callback()
def keyholder() -> None:
    """The key-holder: opens city-wide totals and nothing else."""


@app.command()
def serve(
    config: ConfigOption,
    clock_origin: ClockOrigin = None,
    clock_rate: ClockRate = 1.0,
    unlock: Annotated[
        int | None,
        typer.Option(
            metavar="INDEX",
            min=0,
            help="Release again although that record of the release log locked the key-holder.",
        ),
    ] = None,
) -> None:
    """Serve releases and the roster until SIGTERM.

    Prints one JSON line with the address when it serves. Refuses to start, with one line on
    standard error and exit code 2, if the configuration, a key, the roster or the release log is
    not what it must be: it never opens anything in doubt.

    If the key-encrypting key is sealed, it waits for officers to give their shares with "gridveil
    keyholder unseal" first.

    When refused windows have locked it, it releases nothing until it is started with --unlock and
    the index of the record that its alarm names. No other index is taken.

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
        process.serve(loaded, clock, unlock)


@app.command()
def split_kek(
    config: ConfigOption,
    shares: Annotated[int, typer.Option(help="How many shares to make, at most 16.")],
    threshold: Annotated[int, typer.Option(help="How many of them are needed, at least 2.")],
    out: Annotated[Path, typer.Option(help="Folder for the shares; must be new or empty.")],
    share: Annotated[
        list[Path] | None,
        typer.Option(
            help="Open the sealed key with these shares instead of reading the plain one."
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace the sealed key: old shares open only old copies of it."
        ),
    ] = False,
    destroy_plain: Annotated[
        bool,
        typer.Option("--destroy-plain", help="Overwrite and remove the plain key at the end."),
    ] = False,
) -> None:
    """Split who can start the key-holder: seal its key under one that is shared out.

    The sealed key is read back and opened with the written shares before anything is replaced or
    destroyed. Give each officer one share and keep none on this machine.

    Example: gridveil keyholder split-kek --config springfield/keyholder/keyholder.toml --shares 5
    --threshold 3 --out shares
    """
    from gridveil_services.keyholder import key_custody
    from gridveil_services.keyholder.config import KeyHolderConfig

    with one_line_on_failure():
        loaded = KeyHolderConfig.load(config)
        key_custody.split_kek(
            loaded,
            out,
            count=shares,
            threshold=threshold,
            shares=share or (),
            replace=replace,
            destroy_plain=destroy_plain,
        )
    typer.echo(f"Wrote {shares} shares to {out}: any {threshold} of them open the sealed key.")
    typer.echo("Give each officer one, and leave none on this machine.")
    if loaded.key_encrypting_key_file.exists():
        typer.echo("The plain key is still there, and as long as it is, no share is needed.")


@app.command()
def unseal(
    config: ConfigOption,
    share: Annotated[
        list[Path], typer.Option(help="A share's file; - for standard input. Repeatable.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Write the key there in the clear instead; all shares are needed at once."
        ),
    ] = None,
) -> None:
    """Give shares of the sealed key to the key-holder that waits for them.

    Officers can do so one after the other, each with their own share; once enough were given, it
    serves. With --to no key-holder is needed: the key is written to a new file, which should be
    in memory (such as below /run), where it outlives a restart of the process but not of the
    machine. Exit code 2, and nothing changed, if a share is not one of this key's.

    Example: gridveil keyholder unseal --config springfield/keyholder/keyholder.toml
    --share share-2.json
    """
    from gridveil_services.keyholder import key_custody
    from gridveil_services.keyholder.config import KeyHolderConfig
    from gridveil_services.keyholder.key_shares import LONGEST_SHARE
    from gridveil_services.keyholder.unsealing import give_shares

    with one_line_on_failure():
        loaded = KeyHolderConfig.load(config)
        stdin = sys.stdin.buffer.read(LONGEST_SHARE + 1) if Path("-") in share else b""
        given = key_custody.read_shares(loaded, share, stdin)
        if to is not None:
            key_custody.write_key(loaded, given, to)
            typer.echo(f"Wrote the key-encrypting key to {to}, in the clear.")
            return
        progress = give_shares(loaded.state, given)
    if progress.given < progress.needed:
        typer.echo(f"{progress.given} of {progress.needed} shares given: still sealed.")
    else:
        typer.echo("Unsealed.")
