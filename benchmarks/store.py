"""What keeping windows in Redis costs beside SQLite: CPU a report of the aggregator's side.

commit  `Store.commit` of made-up reports: groups of 32 in 1, 4 and 16 lanes, and of 2,048 in 16.
known   `Store.known` for as many meters, which every call asks before.
ingest  The whole path, as in benchmarks.ingest: SubmitReports, mutual TLS, signatures, and the
        commit, with each store. A second number is that of redis-server itself.

The aggregator's side is the CPU time of the process that holds the store, with what the kernel does
for it. Redis is a fresh server with an append-only file that is synced before every answer; it and
the load are on core 1, the aggregator's side is on core 0. Two workers are two processes with a
store each, which commit to the same window of the same server at the same time.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import (
    LOAD_CORE,
    SERVER_CORE,
    Goal,
    Spread,
    parser,
    pinned,
    progress,
    ratios,
    report,
)
from benchmarks.redis_server import RedisProcess, redis_server
from gridveil.clock import ManualClock
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET, parameter_set
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import (
    Committed,
    LaneBatch,
    Phase,
    Store,
    StoredReport,
    Window,
)
from gridveil_services.aggregator.store.redis.store import RedisStore
from gridveil_services.aggregator.store.schema import SCHEMA
from gridveil_services.aggregator.store.sqlite import SqliteStore

MOST_TO_SQLITE = 1.3
MOST_FOR_TWO = 1.25
CRYPTO = parameter_set(DEFAULT_PARAMETER_SET)
SLOTS = 64
CITY_ID = bytes(16)
LENGTH = 900
START = 1_700_000_100
REDIS_CORE = LOAD_CORE


class Shape(NamedTuple):
    """How the reports of one group commit come."""

    calls: int
    reports: int
    """In each call."""
    lanes: int
    commits: int
    """In a round."""

    @property
    def together(self) -> int:
        return self.calls * self.reports


SHAPES = {
    "32 reports, 1 lane": Shape(1, 32, 1, 200),
    "32 reports, 4 lanes": Shape(1, 32, 4, 150),
    "32 reports, 16 lanes": Shape(1, 32, 16, 75),
    "2,048 reports, 16 lanes": Shape(16, 128, 16, 6),
}
GOAL = "32 reports, 1 lane"


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU a report."""

    commit: float
    known: float
    redis_commit: float
    redis_known: float


def group_commits(shape: Shape, worker: int = 0) -> list[list[LaneBatch]]:
    """What a round commits, of a window that starts at 0."""
    random = np.random.default_rng(worker)
    sums = random.integers(CRYPTO.modulus, size=(16, 2 * SLOTS + CRYPTO.degree), dtype=np.uint64)
    commits = []
    for commit in range(shape.commits):
        batches = []
        for call in range(shape.calls):
            for lane in range(shape.lanes):
                reports = [
                    _report(f"{worker}/{commit}/{call}/{lane}/{at}")
                    for at in range(shape.reports // shape.lanes)
                ]
                total = sums[(call + lane) % len(sums)]
                batches.append(LaneBatch(0, lane, reports, total, bytes(32)))
        commits.append(batches)
    return commits


def _report(name: str) -> StoredReport:
    meter_id = hashlib.sha256(name.encode()).digest()[:16]
    entry = meter_id + hashlib.shake_256(meter_id).digest(ENTRY_BYTES - 16)
    return StoredReport(meter_id, hashlib.sha256(entry).digest(), entry)


def window(number: int, shape: Shape, workers: int = 1) -> Window:
    """A window for one round."""
    start, meters = START + number * LENGTH, shape.commits * shape.together * workers
    return Window(
        start=start,
        end=start + LENGTH,
        closes=start + LENGTH,
        parameters_digest=bytes(32),
        roster_version=1,
        enrolled=meters,
        lanes=shape.lanes,
        lane_capacity=meters,
        parameter_set=CRYPTO.name,
        slots=SLOTS,
    )


class Bench:
    """One store, and how its rounds are measured."""

    def __init__(self, store: Store, redis: RedisProcess | None) -> None:
        self._store = store
        self._redis = redis

    def round(self, shape: Shape, number: int, commits: Sequence[Sequence[LaneBatch]]) -> Cost:
        """Look up and commit everything in a new window."""
        start = self._store.open_window(window(number, shape)).start
        placed = [[batch._replace(window_start=start) for batch in batches] for batches in commits]
        known = self._cost(lambda: self._look_up(start, shape, commits))
        commit = self._cost(lambda: self._commit(placed))
        self._store.settle(start, Phase.POISONED)
        reports = shape.commits * shape.together / 1e6
        return Cost(
            commit[0] / reports, known[0] / reports, commit[1] / reports, known[1] / reports
        )

    def _commit(self, placed: Sequence[Sequence[LaneBatch]]) -> None:
        for batches in placed:
            if self._store.commit(batches, 1) != [Committed(1)] * len(batches):
                raise RuntimeError("not everything was committed")

    def _look_up(self, start: int, shape: Shape, commits: Sequence[Sequence[LaneBatch]]) -> None:
        """As the calls of a commit do, each for its reports."""
        for batches in commits:
            for at in range(0, len(batches), shape.lanes):
                lanes = {
                    report.meter_id: batch.lane
                    for batch in batches[at : at + shape.lanes]
                    for report in batch.reports
                }
                if self._store.known(start, list(lanes), lanes.__getitem__):
                    raise RuntimeError("a meter is known that has not reported")

    def _cost(self, act: Callable[[], object]) -> tuple[float, float]:
        redis = self._redis.cpu_seconds() if self._redis else 0.0
        own = time.process_time()
        act()
        own = time.process_time() - own
        return own, (self._redis.cpu_seconds() if self._redis else 0.0) - redis


Costs = dict[str, dict[str, list[Cost]]]
"""By shape and store."""


def measure_commits(rounds: int, folder: Path) -> Costs:
    """All shapes, store beside store."""
    costs: Costs = {name: {"sqlite": [], "redis": []} for name in SHAPES}
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder / "redis", REDIS_CORE))
        stack.enter_context(pinned(SERVER_CORE))
        benches = {
            "sqlite": Bench(SqliteStore(stack.enter_context(_database(folder / "a"))), None),
            "redis": Bench(stack.enter_context(_redis_store(folder / "b", redis.config)), redis),
        }
        made = {name: group_commits(shape) for name, shape in SHAPES.items()}
        with progress("commits", (rounds + 1) * len(SHAPES)) as advance:
            for number in range(rounds + 1):
                for place, (name, shape) in enumerate(SHAPES.items()):
                    for store, bench in benches.items():
                        cost = bench.round(shape, number * len(SHAPES) + place, made[name])
                        if number:
                            costs[name][store].append(cost)
                    advance(1)
    return costs


@contextmanager
def _database(folder: Path) -> Iterator[Database]:
    database = Database(folder / "aggregator.db", SCHEMA)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _redis_store(folder: Path, config: RedisConfig) -> Iterator[RedisStore]:
    with _database(folder) as database:
        # Before every window: none may have taken reports before the server was seen.
        store = RedisStore.open(config, database, CITY_ID, ManualClock(1.0))
        try:
            yield store
        finally:
            store.close()


def measure_workers(rounds: int, folder: Path) -> dict[int, list[float]]:
    """CPU a report of one worker, and of two together that share a window; the same round by round.

    Each commits as many reports. Both are on core 0, as the one is.
    """
    found: dict[int, list[float]] = {1: [], 2: []}
    with redis_server(folder / "shared", REDIS_CORE) as redis, pinned(SERVER_CORE):
        with ExitStack() as stack:
            workers = [
                stack.enter_context(_worker(folder / f"worker-{at}", redis.config, at))
                for at in range(2)
            ]
            with progress("two workers", (rounds + 1) * 2) as advance:
                for number in range(rounds + 1):
                    for count in found:
                        for worker in workers[:count]:
                            worker.send((number * 2 + count - 1, count))
                        spent = [worker.recv() for worker in workers[:count]]
                        if number:
                            found[count].append(sum(spent) / count)
                        advance(1)
    return found


@contextmanager
def _worker(folder: Path, config: RedisConfig, at: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, folder, config, at), daemon=True)
    process.start()
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def _work(orders: Connection, folder: Path, config: RedisConfig, at: int) -> None:
    """Commit a round whenever told to, and say what it cost."""
    shape = SHAPES["32 reports, 4 lanes"]
    commits = group_commits(shape, at)
    with _redis_store(folder, config) as store:
        while (order := orders.recv()) is not None:
            number, workers = order
            start = store.open_window(window(number, shape, workers)).start
            placed = [[b._replace(window_start=start) for b in batches] for batches in commits]
            before = time.process_time()
            for batches in placed:
                if store.commit(batches, 1) != [Committed(1)] * len(batches):
                    raise RuntimeError("not everything was committed")
            spent = time.process_time() - before
            orders.send(spent / shape.commits / shape.together * 1e6)
