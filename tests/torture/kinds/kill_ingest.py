"""kill -9 of the path of a report: from its message, through checks and group commit, to a receipt.

Reports are real. What was counted is told by sums: they are compared, to the byte, with the sum of
the reports that receipts are kept for. python -m tests.torture.kinds.kill_ingest SEED CASES
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from gridveil.protocol.ciphertext import add, parse_ciphertext, to_bytes
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1.report_pb2 import Report
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.ingest import Accepted, Ingest
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.aggregator.store.sqlite import SqliteStore
from tests.contract.stores import CRYPTO, SLOTS
from tests.support.aggregators import IngestHarness
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import WINDOW
from tests.torture.kinds.power_store import scratch
from tests.torture.kinds.strace import run_as_program
from tests.torture.tally import Kind, Tally

METERS = 400
THREADS = 4
LONGEST_S = 0.06
POINTS: tuple[tuple[type, str], ...] = (
    (Ingest, "submit"),
    (Committer, "commit"),
    (SqliteStore, "commit"),
    (SqliteStore, "_write"),
    (SqliteStore, "_apply"),
    (Database, "transaction"),
)
"""Methods before and after which a process is killed."""
_MOST = 60


def work(
    folder: Path, keys: CityKeys, messages: list[Report], left: list[int], kill_at: Any, pipe: int
) -> None:
    """Submit what is left from several threads; a number is written for each receipt."""
    if kill_at is not None:
        _install(*kill_at)
    harness = IngestHarness(folder, meters=METERS, keys=keys)

    def submit(offset: int) -> None:
        for at in left[offset::THREADS]:
            for answer in harness.submit(messages[at]):
                assert isinstance(answer, Accepted), answer
                os.write(pipe, f"{at}\n".encode())

    threads = [threading.Thread(target=submit, args=(offset,)) for offset in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _install(owner: type, method: str, when: str, nth: int) -> None:
    original, counts = getattr(owner, method), Counter[str]()

    def count(point: str) -> None:
        counts[point] += 1
        if (point, counts[point]) == (when, nth):
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        count("before")
        result = original(*arguments, **more)
        count("after")
        return result

    setattr(owner, method, wrapped)


class _Killer:
    """Kills one process after the other on one folder, and compares in between."""

    def __init__(self, folder: Path, chance: Random) -> None:
        self._folder = folder
        self._chance = chance
        self._keys = city_keys()
        made = IngestHarness(folder / "maker", meters=METERS, keys=self._keys)
        self._messages = [made.report(meter) for meter in range(METERS)]
        made.close()
        self._claims = [parse_report(message).claim for message in self._messages]
        self._residues = {
            message.meter_id: parse_ciphertext(message.ciphertext, CRYPTO, SLOTS)
            for message in self._messages
        }
        self._acknowledged: set[int] = set()

    def kill_one(self, kill_at: Any) -> bool:
        """One process from start to end; whether it was killed."""
        left = [at for at in range(METERS) if at not in self._acknowledged]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with suppress(BaseException):
                work(self._folder / "live", self._keys, self._messages, left, kill_at, writing)
                os._exit(0)
            os._exit(1)
        os.close(writing)
        if kill_at is None:
            time.sleep(self._chance.uniform(0.0, LONGEST_S))
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read().split(b"\n")[:-1]
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        self._acknowledged |= {int(line) for line in lines}
        return code != 0

    def problem(self) -> str:
        """What is wrong with what is stored; every tenth receipt is asked for again."""
        harness = IngestHarness(self._folder / "live", meters=METERS, keys=self._keys)
        try:
            return self._compare(harness) or self._retry(harness)
        finally:
            harness.close()

    def begin_again(self) -> None:
        """An empty store, if there is little left to report."""
        if len(self._acknowledged) > METERS * 3 // 4:
            shutil.rmtree(self._folder / "live")
            self._acknowledged = set()

    def _compare(self, harness: IngestHarness) -> str:
        store = harness.store
        window = store.window(WINDOW)
        if window is None or window.phase is not Phase.OPEN:
            return "the window is not open any more"
        known = store.known(WINDOW, [claim.meter_id for claim in self._claims])
        for at in self._acknowledged:
            claim = self._claims[at]
            if claim.meter_id not in known or known[claim.meter_id].digest != claim.digest():
                return "an acknowledged report is lost"
        total = add((self._residues[meter] for meter in known), CRYPTO) if known else None
        store.seal(WINDOW)
        sums = [parse_ciphertext(s.ciphertext, CRYPTO, SLOTS) for s in store.lane_sums(WINDOW)]
        stored = add(sums, CRYPTO) if sums else None
        if (total is None) != (stored is None):
            return "there are sums without receipts"
        if total is not None and stored is not None and to_bytes(total) != to_bytes(stored):
            return "the sums are not those of the reports that have receipts"
        return ""

    def _retry(self, harness: IngestHarness) -> str:
        for at in sorted(self._acknowledged)[::10]:
            (answer,) = harness.submit(self._messages[at])
            if not isinstance(answer, Accepted) or not answer.duplicate:
                return "a report that was acknowledged is not known again"
        return ""


def kill_many(seed: int, cases: int) -> Tally:
    """Kill so many processes, and compare a copy of the store after each."""
    chance, tally = Random(seed), Tally()
    with scratch() as folder:
        killer = _Killer(folder, chance)
        for case in range(10 * cases):
            if tally.injected >= cases:
                break
            owner, method = POINTS[case // 4 % len(POINTS)]
            named = (owner, method, ("before", "after")[case // 2 % 2], chance.randint(1, _MOST))
            killed = killer.kill_one(named if case % 2 else None)
            tally.injected += killed
            tally.counts["at named points" if case % 2 else "at random moments"] += killed
            live, kept = folder / "live", folder / "kept"
            if live.exists():
                shutil.copytree(live, kept)
                found = killer.problem()
                if found:
                    tally.violations.append(f"seed {seed}, case {case}: {found}")
                shutil.rmtree(live)
                kept.rename(live)
            killer.begin_again()
    return tally


def run(seed: int, budget: int) -> Tally:
    """Have it done by a program that may fork."""
    return run_as_program("tests.torture.kinds.kill_ingest", seed, budget)


KIND = Kind(
    "kill -9, path of a report",
    "A process that takes signed reports from several threads is killed at random moments and"
    " before and after each step from the message to the receipt. Every receipt that was given is"
    " kept, sums are those of the reports with receipts to the byte, and a report sent again is a"
    " duplicate.",
    run,
    {"short": 50, "long": 500},
)


def main() -> None:
    """Kill as the command line says; the account as JSON."""
    tally = kill_many(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(tally.to_json()))


if __name__ == "__main__":
    main()
