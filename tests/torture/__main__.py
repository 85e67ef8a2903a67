"""Inject faults in large numbers and give an account: python -m tests.torture.

    python -m tests.torture                                   # all kinds, a short run
    python -m tests.torture --length long --report docs/reliability.md
    python -m tests.torture --only "power cuts" --seed 42     # kinds by a part of their name

Ends with 1 if anything happened that must not, or if fewer faults were injected than promised.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture.account import Account, Entry, write_report
from tests.torture.registry import KINDS
from tests.torture.tally import Kind, Tally

SEEDS = 3


def measure(kind: Kind, length: str, seed: int) -> Entry:
    """Run one kind on its seeds."""
    promised = kind.promised[length]
    seeds, tally, began = range(seed, seed + SEEDS), Tally(), time.monotonic()
    for n, each in enumerate(seeds):
        tally.add(kind.run(each, promised * (n + 1) // SEEDS - promised * n // SEEDS))
    return Entry(kind, promised, tuple(seeds), tally, time.monotonic() - began)


def measure_all(kinds: Sequence[Kind], length: str, seed: int) -> Iterator[Entry]:
    """Run kinds, those in simulated time behind the others; each is told of when it is done."""
    with ThreadPoolExecutor(1) as behind:
        later = [
            behind.submit(_measured, kind, length, seed)
            for kind in sorted(kinds, key=lambda kind: kind.promised[length])
            if kind.simulated
        ]
        yield from [_measured(kind, length, seed) for kind in kinds if not kind.simulated]
        yield from [future.result() for future in later]


def _measured(kind: Kind, length: str, seed: int) -> Entry:
    entry = measure(kind, length, seed)
    print(entry.line(), flush=True)
    for violation in entry.tally.violations[:20]:
        print(f"  {violation}", flush=True)
    return entry


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
    chosen = parser.parse_args()
    kinds = [kind for kind in KINDS if chosen.only in kind.name]
    for kind in kinds:
        if kind.tool and shutil.which(kind.tool) is None:
            print(f"{kind.name}: {kind.tool} is not installed", file=sys.stderr)
            return 1
    account = Account(chosen.length)
    account.entries += measure_all(kinds, chosen.length, chosen.seed)
    if chosen.report is not None:
        write_report(account, chosen.report)
    return 0 if account.entries and all(entry.kept for entry in account.entries) else 1


if __name__ == "__main__":
    sys.exit(main())
