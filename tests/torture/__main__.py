"""Inject faults in large numbers and give an account: python -m tests.torture.

    python -m tests.torture                                   # all kinds, a short run
    python -m tests.torture --length long --keep docs/reliability.json --report docs/reliability.md
    python -m tests.torture --only "power cuts" --seed 42     # kinds by a part of their name

A run that was broken off goes on where it was, by what it kept; without its line a seed runs again.

Ends with 1 if anything happened that must not, or if fewer faults were injected than promised.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from tests.torture.account import Account, Entry, Part, commit, write_report
from tests.torture.registry import KINDS
from tests.torture.tally import Kind

SEEDS = 3


def measure(account: Account, kind: Kind, length: str, seed: int) -> Entry:
    """Run one kind on those of its seeds that have no part yet; say what it came to."""
    promised, seeds = kind.promised[length], range(seed, seed + SEEDS)
    for each in account.lacking(kind, length, seeds):
        began, n = datetime.now(UTC), each - seed
        budget = promised * (n + 1) // SEEDS - promised * n // SEEDS
        tally = kind.run(each, budget)
        seconds = (datetime.now(UTC) - began).total_seconds()
        told = f"{began:%Y-%m-%d %H:%M}"
        account.add(Part(kind.name, length, (each,), budget, tally, seconds, commit(), told))
    entry = account.entry(kind, length)
    print(entry.line(), flush=True)
    for violation in entry.tally.violations[:20]:
        print(f"  {violation}", flush=True)
    return entry


def measure_all(account: Account, kinds: Sequence[Kind], length: str, seed: int) -> list[Entry]:
    """Run kinds, those in simulated time behind the others."""
    with ThreadPoolExecutor(1) as behind:
        later = [
            behind.submit(measure, account, kind, length, seed)
            for kind in sorted(kinds, key=lambda kind: kind.promised[length])
            if kind.simulated
        ]
        entries = [measure(account, kind, length, seed) for kind in kinds if not kind.simulated]
        return entries + [future.result() for future in later]


def main() -> int:
    """Run what the command line chose; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--length",
        choices=("short", "long"),
        default=os.environ.get("GRIDVEIL_TORTURE", "short"),
        help="how many faults; GRIDVEIL_TORTURE if it is not given",
    )
    parser.add_argument("--seed", type=int, default=int(os.environ.get("GRIDVEIL_SEED", "1")))
    parser.add_argument("--only", default="", help="a part of the names of the kinds to run")
    parser.add_argument("--report", type=Path, help="write the account there, as Markdown")
    parser.add_argument(
        "--keep", type=Path, help="keep what each seed came to there, as JSON; what is there stays"
    )
    chosen = parser.parse_args()
    kinds = [kind for kind in KINDS if chosen.only in kind.name]
    for kind in kinds:
        if kind.tool and shutil.which(kind.tool) is None:
            print(f"{kind.name}: {kind.tool} is not installed", file=sys.stderr)
            return 1
    account = Account(chosen.keep)
    entries = measure_all(account, kinds, chosen.length, chosen.seed)
    if chosen.report is not None:
        write_report(account, kinds, chosen.report)
    return 0 if entries and all(entry.kept for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
