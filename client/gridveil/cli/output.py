"""What commands print, and how they end."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import typer

from gridveil.protocol.errors import (
    Exhausted,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotFound,
    Reason,
    Unavailable,
)

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 160


class ExitCode(IntEnum):
    """How a command ends; the same for all of them."""

    OK = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4


EXIT_CODES = (
    "Exit codes: 0 done; 1 the answer is no: not released, not found, or it does not verify;"
    " 2 wrong usage or configuration; 3 a service is out of reach or busy, try again;"
    " 4 refused, or not allowed."
)

_NO_REASONS = {
    Reason.NOT_RELEASED,
    Reason.NO_SIGNAL,
    Reason.KEY_NOT_PINNED,
    Reason.PROOF_INVALID,
}
_FAMILIES: tuple[tuple[type[GridveilError], ExitCode], ...] = (
    (NotFound, ExitCode.NO),
    (IntegrityLost, ExitCode.NO),
    (MalformedInput, ExitCode.USAGE),
    (Unavailable, ExitCode.UNREACHABLE),
    (Exhausted, ExitCode.UNREACHABLE),
)


def exit_code(error: GridveilError) -> ExitCode:
    """How a command ends that failed with ``error``."""
    if error.reason in _NO_REASONS:
        return ExitCode.NO
    matching = (code for family, code in _FAMILIES if isinstance(error, family))
    return next(matching, ExitCode.REFUSED)


def fail(error: GridveilError) -> typer.Exit:
    """Print ``REASON: message`` on standard error; the exit to raise."""
    typer.echo(one_line(error), err=True)
    return typer.Exit(exit_code(error))


def one_line(error: GridveilError) -> str:
    """``REASON: message``; what a service wrote cannot steer the terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(shown.split())


def print_line(line: str) -> None:
    """One line, at once also into a pipe."""
    typer.echo(line)
    sys.stdout.flush()


def print_json(value: object) -> None:
    """One line of JSON, at once."""
    print_line(json.dumps(value, ensure_ascii=False, allow_nan=False))


def console() -> Console:
    """Where tables are drawn; wide when nobody looks, so that nothing is cut off."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDE)


def utc(seconds: int) -> str:
    """A window start as people read it: ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def window_json(window_start: int) -> dict[str, Any]:
    """How every JSON answer names a window."""
    return {"window_start": window_start, "window": utc(window_start)}
