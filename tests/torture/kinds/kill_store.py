"""kill -9 of a process at work on the aggregator's store.

Each meter's made-up report is one in a place of its own and zero elsewhere, so that a stored sum
tells which meters were counted, and how often. Everything runs in a program of its own, which forks
a process for every case: python -m tests.torture.kinds.kill_store SEED CASES.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import apsw
import numpy as np

from gridveil.protocol.ciphertext import Residues, add, stored_sum
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    LaneBatch,
    Phase,
    StoredReport,
)
from tests.contract.stores import CRYPTO, LENGTH, SLOTS, START, make_window
from tests.support.store_model import Opened
from tests.torture.kinds.power_store import scratch
from tests.torture.kinds.strace import ends
from tests.torture.tally import Kind, Tally

METERS = 300
LANES = 2
LONGEST_S = 0.01
"""Of a process that is killed at a random moment."""
RANDOMLY = "random"
POINTS = (
    RANDOMLY,
    "write:before",
    "write:torn",
    "write:after",
    "sync:before",
    "sync:after",
    "truncate:before",
    "truncate:after",
    "commit:before",
    "commit:after",  # durable, and not acknowledged yet
    "ack:after",
)
_MOST = {"write": 150, "sync": 40, "truncate": 3, "commit": 40, "ack": 40}
"""Up to which call of each a process may be killed."""

Batch = tuple[int, list[int]]
"""Start of a window, and meters that report in it."""


@lru_cache(maxsize=METERS)
def report(meter: int) -> StoredReport:
    """The made-up report of a meter."""
    source = Random(meter)
    entry = source.randbytes(ENTRY_BYTES)
    return StoredReport(entry[:16], hashlib.sha256(entry).digest(), entry)


@lru_cache(maxsize=METERS)
def ciphertext(meter: int) -> Residues:
    """One at the meter's own place, zero elsewhere."""
    residues = np.zeros(2 * SLOTS + CRYPTO.degree, dtype=np.uint64)
    residues[meter] = 1
    return residues


def batches(start: int, meters: list[int]) -> list[LaneBatch]:
    """The reports of meters, as a call brings them."""
    parts = {lane: [m for m in meters if m % LANES == lane] for lane in range(LANES)}
    return [
        LaneBatch(
            start, lane, [report(m) for m in part], add(map(ciphertext, part), CRYPTO), bytes(32)
        )
        for lane, part in parts.items()
        if part
    ]


# The process that is killed.


class _Faults:
    """Kills this process at the chosen call."""

    def __init__(self, point: str, nth: int) -> None:
        self._chosen = point, nth
        self._counts: Counter[str] = Counter()

    def at(self, point: str) -> bool:
        """Count a point; whether it is the chosen one."""
        self._counts[point] += 1
        return (point, self._counts[point]) == self._chosen

    def pass_(self, point: str) -> None:
        """Count a point, and die if it is the chosen one."""
        if self.at(point):
            os.kill(os.getpid(), signal.SIGKILL)


class _KillingShim(apsw.VFS):
    def __init__(self, faults: _Faults) -> None:
        self._faults = faults
        self._base = apsw.vfs_names()[0]
        super().__init__("gridveil-kill", self._base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> _KillingFile:
        return _KillingFile(self._faults, self._base, name, flags)


class _KillingFile(apsw.VFSFile):
    def __init__(self, faults: _Faults, base: str, name: Any, flags: list[int]) -> None:
        self._faults = faults
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._faults.pass_("write:before")
        if self._faults.at("write:torn"):
            super().xWrite(bytes(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        super().xWrite(data, offset)
        self._faults.pass_("write:after")

    def xSync(self, flags: int) -> None:
        self._faults.pass_("sync:before")
        super().xSync(flags)
        self._faults.pass_("sync:after")

    def xTruncate(self, newsize: int) -> None:
        self._faults.pass_("truncate:before")
        super().xTruncate(newsize)
        self._faults.pass_("truncate:after")


def work(folder: Path, seed: int, point: str, nth: int, pipe: int) -> None:
    """Commit, seal, settle and forget until killed; tell what was promised, a line each."""
    faults, chance = _Faults(point, nth), Random(seed)
    shims = [] if point == RANDOMLY else [_KillingShim(faults)]
    store = Opened(folder).store
    say(pipe, "ready")
    tick = 0
    while True:
        tick += 1
        held = [window for window in store.windows() if window.phase is Phase.OPEN]
        if not held:
            newest = max((w.start for w in store.windows()), default=START)
            held = [store.open_window(make_window(newest + LENGTH, lanes=LANES))]
            say(pipe, "open", held[0].start)
        start = held[0].start
        known = store.known(start, [report(m).meter_id for m in range(METERS)])
        left = [m for m in range(METERS) if report(m).meter_id not in known]
        if not left or chance.random() < 0.1:
            store.seal(start)
            say(pipe, "sealed", start)
            store.settle(start, Phase.RELEASED)
            say(pipe, "settled", start)
            store.forget(start - 3 * LENGTH)
            continue
        meters = chance.sample(left, min(len(left), chance.randint(1, 12)))
        say(pipe, "try", start, meters)
        faults.pass_("commit:before")
        outcomes = store.commit(batches(start, meters), tick)
        assert all(isinstance(outcome, Committed) for outcome in outcomes), outcomes
        faults.pass_("commit:after")
        say(pipe, "ack", start, meters)
        faults.pass_("ack:after")
        assert len(shims) < 2


def say(pipe: int, *what: object) -> None:
    """One line to who watches; whole, as a pipe takes so few bytes at once."""
    os.write(pipe, json.dumps(what).encode() + b"\n")


# The program that kills and compares.


@dataclass
class Told:
    """What the process promised before it died."""

    acknowledged: dict[int, set[int]] = field(default_factory=dict)
    """Meters by window."""
    trying: Batch | None = None
    """A commit without an answer."""
    phases: dict[int, Phase] = field(default_factory=dict)
    """At least so far a window was."""

    def take(self, line: list[Any]) -> None:
        """One more line."""
        match line:
            case ["open", start]:
                self.phases[start] = Phase.OPEN
                self.acknowledged[start] = set()
            case ["try", start, meters]:
                self.trying = (start, meters)
            case ["ack", start, meters]:
                self.trying = None
                self.acknowledged.setdefault(start, set()).update(meters)
            case ["sealed", start]:
                self.phases[start] = Phase.SEALED
            case ["settled", start]:
                self.phases[start] = Phase.RELEASED


def kill_one(folder: Path, seed: int, point: str, nth: int, told: Told, chance: Random) -> bool:
    """One process from its start to its kill; whether it came to the chosen point."""
    reached = point == RANDOMLY
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(folder, seed, point, nth, writing)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        after = chance.uniform(0.0, LONGEST_S)
        if point == RANDOMLY:
            # While it opens, too: recovery may be cut short like anything else.
            if chance.random() < 0.8:
                pipe.readline()
            time.sleep(after)
        else:
            # At the latest, if it never comes to the point.
            reached = ends(child, 1.0)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        lines = pipe.read().split(b"\n")[:-1]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    for line in lines:
        told.take(json.loads(line))
    return reached


def problem(folder: Path, told: Told) -> str:
    """What is wrong with what is stored; empty if nothing is. Retries what had no answer."""
    opened = Opened(folder)
    try:
        for start in [w.start for w in opened.store.windows()]:
            told.acknowledged.setdefault(start, set())
        found = _compare(opened, told) or _retry(opened, told) or _compare(opened, told)
        held = [window.start for window in opened.store.windows()]
    finally:
        opened.close()
    told.acknowledged = {s: m for s, m in told.acknowledged.items() if s in held}
    told.phases = {s: phase for s, phase in told.phases.items() if s in held}
    return found


def _compare(opened: Opened, told: Told) -> str:
    store, database = opened.store, opened.database
    forgotten = max((s for (s,) in database.rows("SELECT start FROM forgotten")), default=0)
    for start, acknowledged in told.acknowledged.items():
        window = store.window(start)
        if window is None:
            if start > forgotten:
                return f"window {start} is gone"
            continue
        if window.phase < told.phases.get(start, Phase.OPEN) or window.phase is Phase.POISONED:
            return f"window {start} went back to {window.phase.name}"
        counted = Counter[int]()
        for lane, count, data in database.rows(
            "SELECT lane, count, sum FROM lanes WHERE window = ?", (start,)
        ):
            residues = stored_sum(data, CRYPTO, SLOTS)
            places = {int(at): int(residues[at]) for at in np.flatnonzero(residues)}
            if sum(places.values()) != count or any(at % LANES != lane for at in places):
                return f"a sum of window {start} counts others than it says"
            counted.update(places)
        if any(times != 1 for times in counted.values()):
            return f"a meter was counted twice in window {start}"
        ids = {report(meter).meter_id: meter for meter in range(METERS)}
        receipts = {ids[meter] for meter in store.known(start, list(ids))}
        may = set(told.trying[1]) if told.trying and told.trying[0] == start else set()
        in_progress = counted.keys() - acknowledged
        if receipts != counted.keys() or store.count(start) != len(receipts):
            return f"receipts and sums of window {start} differ"
        if acknowledged - counted.keys():
            return f"an acknowledged report of window {start} is lost"
        if in_progress and in_progress != may:
            return f"a commit of window {start} is there in part"
    return ""


def _retry(opened: Opened, told: Told) -> str:
    """Send what had no answer once more: it counts once."""
    if told.trying is None:
        return ""
    start, meters = told.trying
    window = opened.store.window(start)
    if window is not None and window.phase is Phase.OPEN:
        outcomes = opened.store.commit(batches(start, meters), 1)
        if len({type(outcome) for outcome in outcomes}) != 1:
            return f"a commit of window {start} was there in part"
        if not isinstance(outcomes[0], Committed | Known):
            return f"a retry in window {start} was not answered"
        told.acknowledged[start].update(meters)
    told.trying = None
    return ""


def kill_many(seed: int, cases: int) -> Tally:
    """Kill so many processes, and compare after each."""
    chance, tally, told = Random(seed), Tally(), Told()
    with scratch() as folder:
        store = folder / "store"
        for case in range(cases):
            if len(told.acknowledged) > 8 or chance.random() < 0.01:
                shutil.rmtree(store, ignore_errors=True)
                told = Told()
            # Every other time at a random moment, else at each point in turn.
            point = RANDOMLY if case % 2 else POINTS[1 + case // 2 % (len(POINTS) - 1)]
            nth = chance.randint(1, _MOST.get(point.partition(":")[0], 1))
            reached = kill_one(store, chance.randrange(2**32), point, nth, told, chance)
            tally.injected += 1
            random = not reached or point == RANDOMLY
            tally.counts["at random moments" if random else "at named points"] += 1
            found = problem(store, told)
            if found:
                tally.violations.append(f"seed {seed}, case {case} ({point} {nth}): {found}")
                shutil.rmtree(store)
                told = Told()
    return tally


def run(seed: int, budget: int) -> Tally:
    """Have it done by a program without threads, which may fork."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.torture.kinds.kill_store", str(seed), str(budget)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return Tally.from_json(json.loads(ran.stdout))


KIND = Kind(
    "kill -9, aggregator's store",
    "A process that commits, seals, settles and forgets is killed at random moments and at each"
    " write, sync and truncation, before, after and in the middle. The sums tell which meters were"
    " counted: every acknowledged one, once, and of the commit in progress all or none; sent again,"
    " it counts once.",
    run,
    {"short": 200, "long": 2_000},
)


def main() -> None:
    """Kill as the command line says; the account as JSON."""
    tally = kill_many(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(tally.to_json()))


if __name__ == "__main__":
    main()
