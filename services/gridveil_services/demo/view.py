"""What a demonstration shows: text for people, one JSON object for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gridveil.cli.enrolment import suspect_json
from gridveil.cli.output import print_json, utc, window_json
from gridveil.operator import ReleasedTotal
from gridveil.protocol.city import MIN_HONEST
from gridveil.register_names import EXPORT_REGISTER, IMPORT_REGISTER
from gridveil.simulator.plan import Tally
from gridveil_services.demo.inspection import LoggedEpoch
from gridveil_services.demo.plan import LEFT_OUT_COVERAGE, DemoOptions
from gridveil_services.demo.run import DemoResult, WindowResult, why_missing

_LEARNED = {
    "aggregator": "who reported, and when; no reading, no total, no secret key of the scheme",
    "keyholder": "the totals above, and who reported; no reading",
    "totals": "the totals above; it only reads what the key-holder published",
}


class JsonView:
    """Says nothing until the end, then one object; where the console is on standard error."""

    def opened(self, address: str) -> None:
        """For the program that drives a browser."""
        typer.echo(f"console: {address}", err=True)

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
                "min_coverage": result.city.min_coverage,
                "failure_budget": result.city.failure_budget,
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
                "aggregators": 1 + len(result.city.further_aggregators),
                "killed": None if result.killed is None else asdict(result.killed),
                "misbehaving": [meter_id.hex() for meter_id in result.misbehaving],
                "epochs": [_epoch_json(epoch) for epoch in result.epochs],
                "suspects": [suspect_json(suspect) for suspect in result.suspects],
                "city": None if result.folder is None else str(result.folder),
            }
        )


class TextView:
    """Tells the story as it happens; a bar of reports on standard error if it is a terminal."""

    def __init__(self, options: DemoOptions) -> None:
        self._total = (options.meters - options.misbehaving) * options.windows
        self._options = options
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

    def opened(self, address: str) -> None:
        """What to open in a browser."""
        self.step(f"the console is open, for the first who comes: {address}")

    def window(self, result: WindowResult) -> None:
        """A line of the table."""
        if not self._headed:
            self._headed = True
            typer.echo(f"  opened only over {MIN_HONEST} households or more (min_cohort)\n")
            if self._options.misbehaving:
                typer.echo(_misbehaviour(self._options) + "\n")
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
        whole = " for the meters they count" if result.misbehaving else ""
        typer.echo(f"\n{result.exact} of {len(result.windows)} totals were exact{whole}.")
        for missing in (w for w in result.windows if not isinstance(w.outcome, ReleasedTotal)):
            typer.echo(f"  {utc(missing.window_start)} has no total: {why_missing(missing)}")
        if result.misbehaving:
            _tell_misbehaviour(result)
        typer.echo("\nWhat each process has stored, and what it could learn from it:")
        for role, found in result.findings.items():
            rows = ", ".join(f"{name} {count}" for name, count in found.rows.items() if count)
            typer.echo(f"  {role:<11}{rows or 'nothing'}")
            typer.echo(f"  {'':<11}learned: {_LEARNED[role]}")
        typer.echo("\n" + _carry_on(result))


def _misbehaviour(options: DemoOptions) -> str:
    count = options.misbehaving
    return (
        f"  {count} of {options.meters} meters misbehave, one in a window: first each commits to"
        " another reading\n  than it encrypts, then each signs a seal that does not open. In this"
        f" city min_coverage is {LEFT_OUT_COVERAGE},\n  so that a total may miss a lane, and"
        f" failure_budget is {count}. Whose turn spends it is in the last lane:\n  after that no"
        " lane is opened, and the window would be refused."
    )


def _tell_misbehaviour(result: DemoResult) -> None:
    typer.echo("\nWho misbehaved, and which lane the total is without:")
    for window in result.windows:
        if window.misbehaved:
            lanes = ", ".join(map(str, window.left_out)) or "none"
            how = window.misbehaved.lie.replace("_", " ")
            who = window.misbehaved.meter_id.hex()[:8]
            typer.echo(f"  {utc(window.window_start)}  {who}  {how:<13}  lane {lanes}")
    typer.echo("\nEpochs, by the release log:")
    for epoch in result.epochs:
        cause = (epoch.destroyed or "keys exist").replace("_", " ")
        span = f"{utc(epoch.first_window)} to {utc(epoch.end_window)}"
        typer.echo(f"  {epoch.epoch_id.hex()[:8]}  {span}  {cause}")
    typer.echo("\nSuspects, as the registrar is told them (a hint, and never a verdict):")
    for suspect in result.suspects[: len(result.misbehaving) + 2]:
        did = "misbehaved" if suspect.meter_id in result.misbehaving else "did not misbehave"
        typer.echo(
            f"  {suspect.meter_id.hex()[:8]}  proven {suspect.proven}, lanes failed"
            f" {suspect.failed} of {suspect.windows} windows, score {suspect.score:.1f}: {did}"
        )


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
    aggregator = [f"  gridveil aggregator serve --config {folder}/aggregator/aggregator.toml &"]
    if result.city.redis_nodes:
        aggregator = ["  (its aggregators cannot start: the Redis Cluster is gone)"]
    window = result.windows[0].window_start
    return "\n".join(
        (
            f"The city is in {folder}. Read its totals again, and verify one as an auditor:",
            f"  gridveil totals serve --config {folder}/totals/totals.toml &",
            *aggregator,
            f"  gridveil totals list --profile {folder}/operator/profile.toml",
            f"  gridveil totals verify {window} --profile {folder}/auditor/profile.toml",
        )
    )


def _epoch_json(epoch: LoggedEpoch) -> dict[str, Any]:
    return {
        "epoch_id": epoch.epoch_id.hex(),
        "first_window": epoch.first_window,
        "end_window": epoch.end_window,
        "destroyed": epoch.destroyed,
    }


def _window_json(result: WindowResult) -> dict[str, Any]:
    found: dict[str, Any] = window_json(result.window_start)
    truth = result.truth
    found |= {"truth": truth.sums, "households": truth.households, "exact": result.exact}
    if result.misbehaved:
        meter_id, lie = result.misbehaved.meter_id.hex(), result.misbehaved.lie.value
        found["misbehaved"] = {"meter_id": meter_id, "how": lie}
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
        "left_out": list(outcome.total.left_out),
        "epoch_id": outcome.total.epoch_id.hex(),
        "sum": sums,
        "mean": {name: wh / outcome.count for name, wh in sums.items()},
    }
