"""Commands that other distributions add, through entry points of the group ``gridveil.commands``.

An entry point's name is the command; its value a :class:`typer.Typer`. One that has the name of a
group of the client adds its commands to that group. Nothing is imported before it is used, so
that each service's process loads its own modules and no other's.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import MarkupMode, TyperCommand, TyperGroup
from typer.main import get_group

from gridveil.cli.output import fail
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason

GROUP = "gridveil.commands"
Command = TyperCommand | TyperGroup

_MARKUP: MarkupMode = "markdown"
"""Paragraphs of a help text are wrapped to the terminal."""

_EXTRAS = {
    "tenseal": "gridveil[meter]",
    "zstandard": "gridveil[meter]",
    "demandlib": "gridveil[profiles]",
    "pandas": "gridveil[profiles]",
}


class ExtensibleGroup(TyperGroup):
    """A group whose commands may also come from the entry point with its name."""

    def list_commands(self, ctx: Any) -> list[str]:
        added = self._extension()
        names = added.commands if isinstance(added, TyperGroup) else ()
        return [*self.commands, *sorted(set(names) - set(self.commands))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        added = self._extension()
        return added.commands.get(cmd_name) if isinstance(added, TyperGroup) else added

    def _extension(self) -> Command | None:
        extension = extensions().get(self.name or "")
        return load(extension) if extension else None


class RootGroup(TyperGroup):
    """All commands; turns every refusal into one line on standard error and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *sorted(set(extensions()) - set(self.commands))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        extension = extensions().get(cmd_name)
        return load(extension) if extension else None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GridveilError as error:
            raise fail(error) from None
        except ModuleNotFoundError as error:
            wanted = _EXTRAS.get(error.name or "")
            if wanted is None:
                raise
            raise fail(_needs(f"the module {error.name}", wanted)) from None


@cache
def extensions() -> dict[str, EntryPoint]:
    """Installed extensions, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load(extension: EntryPoint) -> Command:
    """The command of an extension; if it cannot be imported, one that says what is missing."""
    try:
        app: typer.Typer = extension.load()
    except ImportError as error:
        return _unavailable(extension, error)
    app.rich_markup_mode = _MARKUP
    group = get_group(app)
    group.name = extension.name
    only: Any = group.commands.get(extension.name) if len(group.commands) == 1 else None
    return only or group


def _unavailable(extension: EntryPoint, error: ImportError) -> Command:
    distribution = extension.dist.name if extension.dist else "the distribution it came with"
    offered = extension.dist.metadata.get_all("Provides-Extra") if extension.dist else None
    wanted = f"{distribution}[{extension.name}]" if extension.name in (offered or ()) else None

    def refuse() -> None:
        missing = f"the module {error.name}" if error.name else "something that is not installed"
        raise _needs(f"{extension.name} needs {missing}", wanted or distribution)

    return TyperCommand(
        extension.name,
        callback=refuse,
        help=f"Not available here: install {wanted or distribution}.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )


def _needs(what: str, install: str) -> MalformedInput:
    return MalformedInput(
        Reason.CONFIG_INVALID, f"{what}; install it with: pip install '{install}'"
    )
