"""Interleaved rounds, their spread, and the machine they were measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

STDERR = Console(stderr=True)
ALL_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = 0
LOAD_CORE = 1


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of a figure over the rounds."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))

    def show(self, digits: int = 2) -> str:
        return f"{self.median:,.{digits}f}  ({self.min:,.{digits}f} to {self.max:,.{digits}f})"


@dataclass(frozen=True)
class Goal:
    """A figure's limit; ``at_least`` says on which side of it is good."""

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def show(self) -> str:
        sign, verdict = ("≥" if self.at_least else "≤"), ("met" if self.met else "MISSED")
        return f"{self.what}: {self.measured:,.2f}, goal {sign} {self.limit:,g}: {verdict}"


def interleaved(
    variants: Mapping[str, Callable[[], float]], rounds: int, what: str
) -> dict[str, list[float]]:
    """One figure of each variant a round, A B C A B C; the first round is warm-up and dropped."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    with progress(what, (rounds + 1) * len(variants)) as advance:
        for number in range(rounds + 1):
            for name, measure in variants.items():
                figure = measure()
                if number:
                    figures[name].append(figure)
                advance(1)
    return figures


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The spread of the quotients of each round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def seconds_each(act: Callable[[], object], times: int) -> float:
    """Mean wall time of ``times`` calls in a row, seconds."""
    started = time.perf_counter()
    for _ in range(times):
        act()
    return (time.perf_counter() - started) / times


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields what advances it."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=STDERR) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread on one core; what it starts meanwhile stays there for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {ALL_CORES[core % len(ALL_CORES)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> dict[str, object]:
    """What a reader must know to judge a figure."""
    return {
        "processor": _processor(),
        "cores": len(ALL_CORES),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help=f"rounds kept (default {rounds})")
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return made


def report(
    options: argparse.Namespace,
    name: str,
    lines: Sequence[str],
    goals: Sequence[Goal],
    figures: Mapping[str, object],
) -> int:
    """Print what was measured; exit code 1 if a goal was missed."""
    if options.json:
        document = {
            "benchmark": name,
            "options": {key: value for key, value in vars(options).items() if key != "json"},
            "machine": machine(),
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
            "figures": figures,
        }
        print(json.dumps(document, indent=2, default=_plain))
    else:
        print("\n".join([*lines, "", *(goal.show() for goal in goals)]))
    sys.stdout.flush()
    return 0 if all(goal.met for goal in goals) else 1


def _plain(value: object) -> object:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(type(value).__name__)
