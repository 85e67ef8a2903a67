"""Incidents put into a city on purpose: how many the watchdog finds, and how often it errs.

    python -m benchmarks.watchfulness [--seeds 200-229]

Each seed is a city of made-up households, once as it is and once with incidents; with
GRIDVEIL_READINGS also one of households drawn from that file. The limits were chosen on seeds 0 to
29; what docs/watchfulness.md shows is of 200 to 229.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.incidents import (
    DAY,
    LENGTH,
    WARM_UP_DAYS,
    Demand,
    Incident,
    World,
    inject,
    made_up,
    ordinary,
    recorded,
    resampled,
)
from benchmarks.measure import Goal, parser, report
from gridveil.days import day_of
from gridveil.watchdog.detector import Finding, replay
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.watchers import Kind

KINDS = tuple(kind for kind in Kind if kind is not Kind.LANE_LEFT_OUT)
"""A lane that did not open is in the total itself: there is nothing to find out."""
MADE_UP = "made up"
SLACK = 4
"""Windows after an incident in which a finding is still about it."""


@dataclass
class Tally:
    """Of one kind."""

    incidents: int = 0
    found: int = 0
    right: int = 0
    """Findings about an incident of their kind."""
    wrong: int = 0
    delays_h: list[float] = field(default_factory=list)
    quiet: Counter[date] = field(default_factory=Counter)
    """Findings by day, in cities in which nothing happened."""


@dataclass
class Account:
    """Of all cities of a source."""

    kinds: dict[Kind, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    quiet_days: float = 0.0

    def quiet(self, found: Iterable[Finding], demand: Demand) -> None:
        """Count what was found where nothing happened, after the watchdog's first days."""
        self.quiet_days += len(demand.windows) / DAY - WARM_UP_DAYS
        for finding in found:
            if finding.window_start >= demand.windows[WARM_UP_DAYS * DAY]:
                self.kinds[finding.kind].quiet[day_of(finding.window_start, demand.zone)] += 1

    def eventful(
        self, found: Sequence[Finding], incidents: Sequence[Incident], windows: Sequence[int]
    ) -> None:
        """Count what was found of what was put in."""
        place = {window: at for at, window in enumerate(windows)}
        for kind, tally in self.kinds.items():
            own = [place[finding.window_start] for finding in found if finding.kind is kind]
            spans = [incident for incident in incidents if incident.kind is kind]
            right = [at for at in own if any(_about(at, span) for span in spans)]
            first = [min((at for at in own if _about(at, span)), default=None) for span in spans]
            tally.incidents += len(spans)
            tally.found += sum(at is not None for at in first)
            tally.right += len(right)
            tally.wrong += len(own) - len(right)
            tally.delays_h += [
                (at - span.begin) * LENGTH / 3600
                for at, span in zip(first, spans, strict=True)
                if at is not None
            ]

    def false_a_month(self, kind: Kind) -> float:
        """Findings in 30 days in which nothing happened."""
        return 30 * self.kinds[kind].quiet.total() / self.quiet_days


def _about(at: int, incident: Incident) -> bool:
    return incident.begin <= at < incident.end + SLACK


def judge(demands: Iterable[tuple[int, Demand]], limits: Limits | None = None) -> Account:
    """Let the watchdog see each city, with incidents and without."""
    account = Account()
    for seed, demand in demands:
        chosen = limits or Limits(zone=demand.zone.key)
        world = ordinary(demand, np.random.default_rng([seed, 1]))
        account.quiet(_seen(world, chosen), demand)
        world = ordinary(demand, np.random.default_rng([seed, 1]))
        incidents = inject(world, np.random.default_rng([seed, 2]))
        account.eventful(_seen(world, chosen), incidents, world.windows)
    return account


def _seen(world: World, limits: Limits) -> list[Finding]:
    return replay(limits, world.observations())


def sources(seeds: Sequence[int]) -> Iterator[tuple[str, Iterator[tuple[int, Demand]]]]:
    """Made-up cities; and those of a file, if there is one."""
    yield MADE_UP, ((seed, made_up(np.random.default_rng([seed, 0]))) for seed in seeds)
    if "GRIDVEIL_READINGS" in os.environ:
        known = recorded(Path(os.environ["GRIDVEIL_READINGS"]))
        draws = ((seed, np.random.default_rng([seed, 0])) for seed in seeds)
        yield "recorded", ((seed, resampled(known, random)) for seed, random in draws)


def lines_of(name: str, account: Account) -> Iterator[str]:
    yield f"{name:18} incidents  found  recall  precision  delay h  false/month"
    for kind, tally in account.kinds.items():
        recall = _share(tally.found, tally.incidents)
        precision = _share(tally.right, tally.right + tally.wrong)
        yield (
            f"  {kind:16} {tally.incidents:9d} {tally.found:6d} {recall:>7} {precision:>10}"
            f" {np.median(tally.delays_h or [np.nan]):8.2f}"
            f" {account.false_a_month(kind):12.2f}{_worst(tally)}"
        )


def _worst(tally: Tally) -> str:
    """The day that most false findings are of, if it is not just any."""
    for day, count in tally.quiet.most_common(1):
        if count > 2:
            return f"  {count} of {tally.quiet.total()} on {day}"
    return ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def figures_of(account: Account) -> dict[str, dict[str, float | int]]:
    return {
        kind.value: {
            "incidents": tally.incidents,
            "found": tally.found,
            "right": tally.right,
            "wrong": tally.wrong,
            "median_delay_h": float(np.median(tally.delays_h or [0.0])),
            "false_a_month": account.false_a_month(kind),
        }
        for kind, tally in account.kinds.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__, 1)
    options.add_argument("--seeds", default="200-229", metavar="FIRST-LAST")
    chosen = options.parse_args(arguments)
    first, _, last = chosen.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    lines: list[str] = []
    figures: dict[str, dict[str, dict[str, float | int]]] = {}
    goals = []
    for name, demands in sources(seeds):
        account = judge(demands)
        lines += lines_of(name, account)
        figures[name] = figures_of(account)
        if name == MADE_UP:  # nobody knows what really happened in a recorded city
            false = sum(account.false_a_month(kind) for kind in KINDS)
            goals.append(Goal(f"false alarms a month, {name}", false, 1))
    return report(chosen, "watchfulness", lines, goals, figures)


if __name__ == "__main__":
    sys.exit(main())
