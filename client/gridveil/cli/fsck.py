"""``gridveil fsck``: whether what is stored is whole."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, load_profile
from gridveil.cli.output import one_line, print_json, print_line
from gridveil.fsck import Checker, Trust, checkers
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason


class Found(IntEnum):
    """How the command ends; of several paths the worst counts, damage before doubt."""

    WHOLE = 0
    DAMAGED = 1
    NOT_CHECKED = 2


def fsck(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    profile: Annotated[
        Path | None,
        typer.Option(
            help="A profile of the city, to check signatures; needed for what is published.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check stores that nobody uses, without changing them: all checksums, counts and orders.

    Knows an aggregator's store, a meter's outbox, a release log, the folder that a key-holder
    publishes, and its state folder; tells them apart by content. Which of them depends on what is
    installed. A store's writer is kept from starting meanwhile.

    Names the first thing that is wrong, a line each path. Ends with 0 if all is whole, with 1 if
    something is damaged, with 2 if something could not be checked: in use, or of no kind that is
    known.

    Example: gridveil fsck springfield/aggregator/state/aggregator.db --profile springfield/auditor
    """
    trust = None
    if profile is not None:
        loaded = load_profile(profile)
        trust = Trust(loaded.city_id, loaded.identity_key)
    found = [check_path(path, trust, checkers()) for path in paths]
    for path, (result, answer) in zip(paths, found, strict=True):
        if json:
            print_json({"path": str(path), "result": result.name.lower(), **answer})
        else:
            print_line(f"{path}: {_line(result, answer)}")
    results = {result for result, _ in found}
    raise typer.Exit(Found.DAMAGED if Found.DAMAGED in results else max(results))


def check_path(
    path: Path, trust: Trust | None, known: list[Checker]
) -> tuple[Found, dict[str, Any]]:
    """Check one path; the result, and its kind, counts or what is wrong."""
    answer: dict[str, Any] = {}
    try:
        checker = next((each for each in known if each.recognises(path)), None)
        if checker is None:
            raise MalformedInput(Reason.CONFIG_INVALID, "of no kind that can be checked here")
        answer["kind"] = checker.kind
        answer["checked"] = dict(checker.check(path, trust))
    except IntegrityLost as error:
        return Found.DAMAGED, answer | {"problem": one_line(error)}
    except (GridveilError, OSError) as error:
        problem = one_line(error) if isinstance(error, GridveilError) else "it cannot be read"
        return Found.NOT_CHECKED, answer | {"problem": problem}
    return Found.WHOLE, answer


def _line(result: Found, answer: dict[str, Any]) -> str:
    kind = answer.get("kind", "unknown")
    if result is Found.WHOLE:
        counts = ", ".join(f"{count:,} {name}" for name, count in answer["checked"].items())
        return f"whole ({kind}; {counts})"
    return (
        f"{'DAMAGED' if result is Found.DAMAGED else 'not checked'} ({kind}): {answer['problem']}"
    )
