"""The ``gridveil`` command. Services add their subcommands through entry points."""

from gridveil.cli.app import main

__all__ = ["main"]
