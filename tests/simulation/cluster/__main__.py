"""Runs worlds made from seeds, and says what happened in them.

    python -m tests.simulation.cluster --seeds 0-7 --days 2
    python -m tests.simulation.cluster --seeds 3 --days 1 --last     the end of what happened, too
    python -m tests.simulation.cluster --write     the traces that tests replay, after a change

A violation says which seed, after how many steps, and how to see it again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.simulation.cluster.parallel import on_every_core
from tests.simulation.cluster.runs import Run, run_named, write_traces


def seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=seeds, default=[0], help="a number, or FIRST-LAST")
    parser.add_argument("--days", type=float, default=1.0, help="simulated, for each seed")
    parser.add_argument("--last", action="store_true", help="what happened last")
    parser.add_argument("--write", action="store_true", help="renew the committed traces")
    arguments = parser.parse_args()
    if arguments.write:
        write_traces()
        return 0
    total: Counter[str] = Counter()
    runs: list[Run] = []
    named = [(seed, arguments.days) for seed in arguments.seeds]
    for done in on_every_core(run_named, named):
        runs.append(done)
        total += done.counts
        print(done.line(), flush=True)
        if arguments.last:
            print("".join(done.last))
    for kind, number in sorted(total.items()):
        print(f"{number:10,} {kind}")
    days = sum(done.days for done in runs)
    seconds = sum(done.seconds for done in runs)
    print(f"{days:g} simulated days in {seconds:.0f} s, {sum(d.steps for d in runs):,} events")
    print(f"{sum(done.faults for done in runs):,} faults")
    return 1 if any(done.violation for done in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
