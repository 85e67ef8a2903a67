"""System calls that fail under the aggregator's store: one report, from its commit to its release.

python -m tests.torture.kinds.syscalls_store SEED CASES
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from gridveil.cli.fsck import Found, check_path
from gridveil.fsck import checkers
from gridveil_services.aggregator.store.interface import Committed, Phase
from tests.contract.stores import LENGTH, START, make_window
from tests.support.store_model import Opened
from tests.torture.kinds.kill_store import LANES, Told, batches, problem
from tests.torture.kinds.power_store import scratch
from tests.torture.kinds.strace import TOOL, Ended, run_as_program, try_all
from tests.torture.tally import Kind, Tally

METERS = [3, 4]


def prepare(folder: Path) -> None:
    """A store with an older window, settled, and one that is open."""
    opened = Opened(folder)
    store = opened.store
    store.open_window(make_window(START, lanes=LANES))
    store.commit(batches(START, [1, 2]), 1)
    store.seal(START)
    store.settle(START, Phase.RELEASED)
    store.open_window(make_window(START + LENGTH, lanes=LANES))
    store.commit(batches(START + LENGTH, [7]), 1)
    opened.close()


def work(folder: Path, say: Callable[[str], None]) -> None:
    """Open the store, take one call's reports, seal, settle, forget, close."""
    start = START + LENGTH
    opened = Opened(folder)
    store = opened.store
    say(json.dumps(("try", start, METERS)))
    outcomes = store.commit(batches(start, METERS), 2)
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    say(json.dumps(("ack", start, METERS)))
    store.seal(start)
    say(json.dumps(("sealed", start)))
    store.settle(start, Phase.RELEASED)
    say(json.dumps(("settled", start)))
    store.forget(START + LENGTH + 1)
    opened.close()


def wrong(folder: Path, ended: Ended) -> str:
    """What is wrong with what is left; the store is first looked at by fsck."""
    if ended.code not in (0, 1, -9):
        return f"the process ended with {ended.code}"
    found, answer = check_path(folder / "aggregator.db", None, checkers())
    if found is not Found.WHOLE:
        return f"fsck: {answer['problem']}"
    told = Told({START: {1, 2}, START + LENGTH: {7}}, phases={START: Phase.RELEASED})
    for line in ended.said:
        if not line.startswith("failed"):
            told.take(json.loads(line))
        elif line not in ("failed StoreFailed", "failed Unavailable", "failed OSError"):
            return line
    return problem(folder, told)


def run(seed: int, budget: int) -> Tally:
    """Inject so many faults."""
    return run_as_program("tests.torture.kinds.syscalls_store", seed, budget)


KIND = Kind(
    "system calls, aggregator's store",
    "Each write, sync, opening and removal between the opening of a store and the settlement of a"
    " window fails with EIO or ENOSPC, or is the last thing that the process does. The store is"
    " whole by gridveil fsck, and holds what was acknowledged, once.",
    run,
    {"short": 30, "long": 540},
    tool=TOOL,
)


def main() -> None:
    """Inject as the command line says; the account as JSON."""
    with scratch() as folder:
        tally = try_all(int(sys.argv[1]), int(sys.argv[2]), folder, prepare, work, wrong)
    print(json.dumps(tally.to_json()))


if __name__ == "__main__":
    main()
