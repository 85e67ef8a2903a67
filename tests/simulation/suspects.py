"""How long it takes to single out meters that make their lanes fail, by simulation.

    python -m tests.simulation.suspects            print the tables
    python -m tests.simulation.suspects --write    put them into docs/simulations.md
    python -m tests.simulation.suspects --check    compare them with docs/simulations.md

No cryptography: a lane opens unless a misbehaving meter is in it. The number of lanes and what a
lane that fails or opens adds to its meters' scores are the key-holder's own; meters are dealt to
lanes at random, as a hash deals them. The aggregator is honest and every meter reports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import comb, log2
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.city import MIN_HONEST
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET, parameter_set
from gridveil.protocol.slots import SlotLayout
from gridveil.protocol.windows import lane_count
from gridveil_services.keyholder.suspicion import MOST_BITS, OPENED_BITS, failed_bits

DOCUMENT = Path(__file__).parents[2] / "docs" / "simulations.md"
WINDOWS = 96
"""A day of quarter-hours."""

BUDGET = 5
COVERAGE = 0.8
NEVER = WINDOWS + 1

Lanes = NDArray[np.int64]
Deal = Callable[[int, int], Lanes]
"""The lane of each meter, of (epoch, window)."""


@dataclass(frozen=True)
class Case:
    """A city of whose meters the first few misbehave."""

    meters: int
    liars: int
    share: float
    """Of its windows in which each of them does so."""
    runs: int

    @property
    def lanes(self) -> int:
        """As many as the key-holder would make."""
        slots = SlotLayout.for_registers(2).slots
        return lane_count(self.meters, parameter_set(DEFAULT_PARAMETER_SET), slots)


CASES = [
    Case(meters, liars, share, runs)
    for meters, runs in ((1_000, 200), (100_000, 50))
    for liars, share in ((1, 1.0), (3, 1.0), (10, 1.0), (1, 0.5), (1, 0.25))
]
REMEDIED = [case for case in CASES if case.share == 1.0]


@dataclass
class Shown:
    """What one window's decryptions showed."""

    failed: NDArray[np.bool_]
    """By lane: decrypted, and did not open."""
    passed: NDArray[np.bool_]
    """By lane: opened."""
    released: bool


@dataclass
class Budget:
    """The failure budgets of all epoch keys so far."""

    tests: list[int] = field(default_factory=lambda: [0])
    """Lanes decrypted, by epoch."""
    failures: list[int] = field(default_factory=lambda: [0])

    @property
    def left(self) -> int:
        """Of the epoch in force."""
        return BUDGET - self.failures[-1]

    def spend(self, shown: Shown) -> None:
        """Count a window; a spent epoch ends before the next one."""
        self.tests[-1] += int(shown.failed.sum() + shown.passed.sum())
        self.failures[-1] += int(shown.failed.sum())
        if self.left == 0:
            self.tests.append(0)
            self.failures.append(0)

    @property
    def most_bits(self) -> float:
        """Information in the pass or fail of every test of an epoch, for the worst epoch."""
        return max(map(leaked_bits, self.tests, self.failures))


def leaked_bits(tests: int, failures: int) -> float:
    """Logarithm of the number of ways in which so many tests can have so few failures."""
    return log2(sum(comb(tests, found) for found in range(failures + 1)))


def decrypt(lanes: Lanes, count: int, lying: NDArray[np.int64], left: int) -> Shown:
    """One window: lanes in ascending order until the budget is spent, and no further."""
    bad = np.zeros(count, np.bool_)
    bad[lanes[lying]] = True
    failing = np.flatnonzero(bad)
    reached = np.arange(count) <= failing[left - 1] if len(failing) >= left else np.True_
    sizes = np.bincount(lanes, minlength=count)
    counted = int(sizes[~bad & reached].sum())
    enough = counted >= COVERAGE * len(lanes) and counted >= MIN_HONEST
    return Shown(bad & reached, ~bad & reached, bool(enough))


def weigh(scores: NDArray[np.float64], lanes: Lanes, shown: Shown) -> NDArray[np.float64]:
    """The scores after a window, as the key-holder keeps them."""
    sizes = np.bincount(lanes, minlength=len(shown.failed))
    change = np.zeros(len(sizes))
    failing = int(sizes[shown.failed].sum())
    if failing:
        change[shown.failed] = failed_bits(failing, int(sizes[shown.passed].sum()))
    change[shown.passed] = OPENED_BITS
    return np.clip(scores + change[lanes], 0.0, MOST_BITS)


@dataclass
class Day:
    """How one simulated day went; windows count from 1, NEVER if it did not come to that."""

    leads: int
    """First window after which the first of the list misbehaves."""
    singled_out: int
    """First window from which on all that misbehave are before all others."""
    found: int
    """Window after which the last of them was taken out, if leaders are inspected."""
    in_vain: int
    """Inspections of honest meters."""
    refused: int
    """Windows without a total."""
    epochs: int
    bits: float


class City:
    """One city on one day."""

    def __init__(self, case: Case, deal: Deal, source: np.random.Generator) -> None:
        self._case = case
        self._deal = deal
        self._source = source
        self._budget = Budget()
        self._lying = np.arange(case.liars)
        self._inspected = np.zeros(case.meters, np.bool_)
        self.scores = np.zeros(case.meters)

    def play(self, inspecting: bool = False) -> Day:
        """A day; with ``inspecting`` whoever leads alone after a window is looked at, and taken
        out if it misbehaves."""
        leads: list[bool] = []
        apart: list[bool] = []
        refused, found = 0, NEVER
        for window in range(WINDOWS):
            refused += not self.window(window).released
            first, last, others = self._standing()
            leads.append(first > others)
            apart.append(last > others)
            if inspecting and self._inspect() and not len(self._lying):
                found = window + 1
        tests = len(self._budget.tests) - (self._budget.tests[-1] == 0)
        return Day(
            leads=next((at + 1 for at, holds in enumerate(leads) if holds), NEVER),
            singled_out=WINDOWS - next((n for n, h in enumerate(apart[::-1]) if not h), 0) + 1,
            found=found,
            in_vain=int(self._inspected[self._case.liars :].sum()),
            refused=refused,
            epochs=tests,
            bits=self._budget.most_bits,
        )

    def window(self, window: int) -> Shown:
        """One window: dealt, decrypted as far as the budget goes, weighed."""
        lanes = self._deal(len(self._budget.tests) - 1, window)
        lying = self._lying[self._source.random(len(self._lying)) < self._case.share]
        shown = decrypt(lanes, self._case.lanes, lying, self._budget.left)
        self._budget.spend(shown)
        self.scores = weigh(self.scores, lanes, shown)
        return shown

    def _standing(self) -> tuple[float, float, float]:
        """Best and worst score of those that misbehave, and the best of all others."""
        theirs, others = self.scores[: self._case.liars], self.scores[self._case.liars :]
        return float(theirs.max()), float(theirs.min()), float(others.max())

    def _inspect(self) -> bool:
        """Look at the one meter that leads; whether there was one that misbehaves."""
        open_scores = np.where(self._inspected, -1.0, self.scores)
        leader = int(open_scores.argmax())
        if open_scores[leader] <= 0 or (open_scores == open_scores[leader]).sum() > 1:
            return False
        self._inspected[leader] = True
        was = len(self._lying)
        self._lying = self._lying[self._lying != leader]
        return len(self._lying) < was


def days(case: Case, inspecting: bool = False) -> list[Day]:
    """Every run of a case; the same ones every time."""

    def play(run: int) -> Day:
        seed = [case.meters, case.liars, int(case.share * 100), run]
        source = np.random.default_rng(seed)

        def deal(_epoch: int, _window: int) -> Lanes:
            return source.integers(0, case.lanes, case.meters)

        return City(case, deal, source).play(inspecting)

    return [play(run) for run in range(case.runs)]


def spread(values: list[int]) -> str:
    """Median, and what 19 of 20 runs do not exceed."""
    ordered = sorted(values)
    found = ordered[(len(ordered) - 1) // 2], ordered[-(-len(ordered) * 19 // 20) - 1]
    return "{} ({})".format(*("never" if value == NEVER else value for value in found))


def row(case: Case) -> str:
    """A line of the first table."""
    played = days(case)
    refused = sum(day.refused for day in played) / len(played)
    epochs = sum(day.epochs for day in played) / len(played)
    return (
        f"| {case.meters:,} | {case.lanes} | {case.liars} | {case.share:.0%}"
        f" | {spread([day.leads for day in played])}"
        f" | {spread([day.singled_out for day in played])}"
        f" | {refused:.1f} | {epochs:.1f} | {max(day.bits for day in played):.1f}"
        f" of {leaked_bits(WINDOWS * case.lanes, BUDGET):.1f} |"
    )


def remedied_row(case: Case) -> str:
    """A line of the second table."""
    played = days(case, inspecting=True)
    refused = sum(day.refused for day in played) / len(played)
    epochs = sum(day.epochs for day in played) / len(played)
    return (
        f"| {case.meters:,} | {case.liars} | {spread([day.found for day in played])}"
        f" | {spread([day.in_vain for day in played])} | {refused:.1f} | {epochs:.1f} |"
    )


HEAD = [
    "| meters | lanes | misbehaving | in their windows | one leads after"
    " | all singled out after | refused | epochs | bits of a key |",
    "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
]
REMEDIED_HEAD = [
    "| meters | misbehaving | all taken out after | inspected in vain | refused | epochs |",
    "|---:|---:|---:|---:|---:|---:|",
]


def tables() -> Iterator[str]:
    """Both tables, line by line."""
    yield from HEAD
    yield from map(row, CASES)
    yield ""
    yield from REMEDIED_HEAD
    yield from map(remedied_row, REMEDIED)


def documented() -> list[str]:
    """The lines of all tables in the document."""
    return [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("|")]


def write(lines: list[str]) -> None:
    """Replace the document's tables, in order."""
    fresh = iter([line for line in lines if line])
    text = DOCUMENT.read_text("utf-8").splitlines()
    kept = [next(fresh) if line.startswith("|") else line for line in text]
    DOCUMENT.write_text("\n".join(kept) + "\n", "utf-8")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.suspects")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--write", action="store_true", help="into docs/simulations.md")
    chosen.add_argument("--check", action="store_true", help="against docs/simulations.md")
    options = parser.parse_args()
    lines = []
    for line in tables():
        lines.append(line)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if options.write:
        write(lines)
    return int(options.check and [line for line in lines if line] != documented())


if __name__ == "__main__":
    sys.exit(main())
