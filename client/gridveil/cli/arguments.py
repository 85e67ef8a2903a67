"""Options that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason

ProfileOption = Annotated[
    Path,
    typer.Option(
        "--profile",
        envvar="GRIDVEIL_PROFILE",
        help="Your role's profile.toml, or its folder.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ClockOriginOption = Annotated[
    str | None, typer.Option(help="METERING@REAL; development cities only.")
]
ClockRateOption = Annotated[
    float, typer.Option(help="Metering seconds a second; development cities only.")
]
WindowArgument = Annotated[
    str,
    typer.Argument(
        help="Start of the window: Unix seconds, or 2026-05-04T12:15Z.", show_default=False
    ),
]


def load_profile(path: Path) -> Profile:
    """The profile in a file, or in ``profile.toml`` of a folder."""
    return Profile.load(path / "profile.toml" if path.is_dir() else path)


def parse_window(value: str) -> int:
    """Unix seconds of a window start, or WINDOW_MISALIGNED if that is no time."""
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise MalformedInput(
            Reason.WINDOW_MISALIGNED, f"{value!r} is neither Unix seconds nor a time in ISO 8601"
        ) from None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


def parse_bound(value: str | None) -> int:
    """A window start, or 0 for an open end."""
    return 0 if value is None else parse_window(value)
