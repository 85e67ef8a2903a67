"""What a demonstration shows: text for people, one JSON object for programs."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gridveil.cli.output import print_json, utc, window_json
from gridveil.operator import ReleasedTotal
from gridveil.protocol.city import MIN_HONEST
from gridveil.reporting import EXPORT_REGISTER, IMPORT_REGISTER
from gridveil.simulator.plan import Tally
from gridveil_services.demo.plan import DemoOptions
from gridveil_services.demo.run import DemoResult, WindowResult, why_missing

_LEARNED = {
    "aggregator": "who reported, and when; no reading, no total, no secret key of the scheme",
    "keyholder": "the totals above, and who reported; no reading",
    "totals": "the totals above; it only reads what the key-holder published",
}


class JsonView:
    """Says nothing until the end, then one object."""

    def step(self, text: str) -> None:
        """Nothing: the object says it all."""

    def window(self, result: WindowResult) -> None:
        """Nothing."""

    def progress(self, tally: Tally) -> None:
        """Nothing."""

    def finish(self, result: DemoResult) -> None:
        """Print the object."""
        print_json(
            {
                "city_id": result.city_id.hex(),
                "clock_rate": result.rate,
                "min_cohort": MIN_HONEST,
                "windows": [_window_json(window) for window in result.windows],
                "released": sum(isinstance(w.outcome, ReleasedTotal) for w in result.windows),
                "exact": result.exact,
                "reports": {
                    "accepted": result.tally.accepted,
                    "duplicates": result.tally.duplicates,
                    "refused": {str(k): n for k, n in result.tally.refused.items()},
                    "late": result.tally.late,
                    "unsettled": result.tally.unsettled,
                },
                "stored": {
                    role: {"bytes": found.bytes, "rows": found.rows, "secrets": found.secrets}
                    for role, found in result.findings.items()
                },
                "city": None if result.folder is None else str(result.folder),
            }
        )


class TextView:
    """Tells the story as it happens; a bar of reports on standard error if it is a terminal."""

    def __init__(self, options: DemoOptions) -> None:
        self._total = options.meters * options.windows
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("reports"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("reports", total=self._total)
        self._headed = False

    def step(self, text: str) -> None:
        """Say what begins."""
        typer.echo(f"* {text}")

    def window(self, result: WindowResult) -> None:
        """A line of the table."""
        if not self._headed:
            self._headed = True
            typer.echo(f"  opened only over {MIN_HONEST} households or more (min_cohort)\n")
            typer.echo(
                "  window (UTC)          households     import Wh     export Wh   plain sum only"
                " we know"
            )
        typer.echo("  " + _line(result))

    def progress(self, tally: Tally) -> None:
        """Move the bar."""
        if not self._bar.live.is_started and not self._bar.disable:
            self._bar.start()
        self._bar.update(self._task, completed=tally.accepted + tally.refused.total() + tally.late)

    def finish(self, result: DemoResult) -> None:
        """What came of it, and how to go on."""
        self._bar.stop()
        typer.echo(f"\n{result.exact} of {len(result.windows)} totals were exact.")
        for missing in (w for w in result.windows if not isinstance(w.outcome, ReleasedTotal)):
            typer.echo(f"  {utc(missing.window_start)} has no total: {why_missing(missing)}")
        typer.echo("\nWhat each process has stored, and what it could learn from it:")
        for role, found in result.findings.items():
            rows = ", ".join(f"{name} {count}" for name, count in found.rows.items() if count)
            typer.echo(f"  {role:<11}{rows or 'nothing'}")
            typer.echo(f"  {'':<11}learned: {_LEARNED[role]}")
        typer.echo("\n" + _carry_on(result))


def _line(result: WindowResult) -> str:
    outcome, truth = result.outcome, result.truth
    plain = f"{truth.sums[IMPORT_REGISTER]:,} / {truth.sums[EXPORT_REGISTER]:,}"
    if not isinstance(outcome, ReleasedTotal):
        return f"{utc(result.window_start)}  {why_missing(result):<42}   {plain}"
    households = f"{outcome.count} of {outcome.total.enrolled}"
    return (
        f"{utc(result.window_start)}  {households:>10}  {outcome.sum(IMPORT_REGISTER):>12,}"
        f"  {outcome.sum(EXPORT_REGISTER):>12,}   {plain}  {'exact' if result.exact else 'DIFFERS'}"
    )


def _carry_on(result: DemoResult) -> str:
    if result.folder is None:
        return "The city is gone. Keep the next one with --keep DIR; make your own: gridveil init."
    folder = result.folder
    window = result.windows[0].window_start
    return "\n".join(
        (
            f"The city is in {folder}. Read its totals again, and verify one as an auditor:",
            f"  gridveil totals serve --config {folder}/totals/totals.toml &",
            f"  gridveil aggregator serve --config {folder}/aggregator/aggregator.toml &",
            f"  gridveil totals list --profile {folder}/operator/profile.toml",
            f"  gridveil totals verify {window} --profile {folder}/auditor/profile.toml",
        )
    )


def _window_json(result: WindowResult) -> dict[str, Any]:
    found: dict[str, Any] = window_json(result.window_start)
    truth = result.truth
    found |= {"truth": truth.sums, "households": truth.households, "exact": result.exact}
    outcome = result.outcome
    if not isinstance(outcome, ReleasedTotal):
        return found | {"released": False, "reason": why_missing(result)}
    sums = {register.name: register.sum for register in outcome.total.registers}
    return found | {
        "released": True,
        "count": outcome.count,
        "enrolled": outcome.total.enrolled,
        "coverage": outcome.coverage,
        "lanes": outcome.total.lanes,
        "sum": sums,
        "mean": {name: wh / outcome.count for name, wh in sums.items()},
    }
