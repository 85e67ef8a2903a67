"""Commands that other distributions add, through entry points of the group ``gridveil.commands``.

An entry point's name is the command; its value a :class:`typer.Typer`. One that has the name of a
group of the client adds its commands to that group. Nothing is imported before it is used, so
that each service's process loads its own modules and no other's.
"""

from __future__ import annotations

import errno
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
    "apsw": "gridveil[meter]",
    "numpy": "gridveil[meter]",
    "tenseal": "gridveil[meter]",
    "zstandard": "gridveil[meter]",
    "hdrh": "gridveil[loadtest]",
    "river": "gridveil[watchdog]",
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
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise fail(_not_possible(error)) from None
        except ModuleNotFoundError as error:
            extension = extensions().get(ctx.invoked_subcommand or "")
            package = (error.name or "").partition(".")[0]
            wanted = (_extra(extension) if extension else None) or _EXTRAS.get(package)
            if wanted is None:
                raise
            raise fail(_needs(ctx.invoked_subcommand, error, wanted)) from None


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
    wanted = _extra(extension) or (extension.dist.name if extension.dist else None)

    def refuse() -> None:
        raise _needs(extension.name, error, wanted)

    return TyperCommand(
        extension.name,
        callback=refuse,
        help="Not available here: something that it needs is not installed.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )


def _extra(extension: EntryPoint) -> str | None:
    """What to install for a command that has an extra of its own name."""
    if extension.dist is None:
        return None
    offered = extension.dist.metadata.get_all("Provides-Extra") or ()
    return f"{extension.dist.name}[{extension.name}]" if extension.name in offered else None


def _not_possible(error: OSError) -> MalformedInput:
    what = f"{error.filename}: " if error.filename else ""
    return MalformedInput(Reason.CONFIG_INVALID, f"{what}{error.strerror or 'cannot be used'}")


def _needs(command: str, error: ImportError, install: str | None) -> MalformedInput:
    missing = f"the module {error.name}" if error.name else "a module that is not installed"
    how = f"; install it with: pip install '{install}'" if install else ""
    return MalformedInput(Reason.CONFIG_INVALID, f"gridveil {command} needs {missing}{how}")
