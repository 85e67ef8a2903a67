"""What keeping windows in Redis costs beside SQLite: CPU a report of the aggregator's side.

commit  `Store.commit` of made-up reports: groups of 32 in 1, 4 and 16 lanes, and of 2,048 in 16.
known   `Store.known` of as many meters in an empty window, which every call asks first.
workers One process that commits groups of 32 in 4 lanes, and two that do so at the same time to
        the same window of one Redis, each with a file of its own; CPU a report of both together.
ingest  The whole path, as in benchmarks.ingest: SubmitReports of 128, mutual TLS, signatures, and
        the commit, with each store; two cities side by side.

Measured is the CPU time of the process that holds the store, with what the kernel does for it, and
beside it that of redis-server. Redis is a fresh server that syncs its append-only file before every
answer. It and the load are on core 1, what holds a store is on core 0.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.fleet import BATCH, Fleet, prebuilt
from benchmarks.ingest import Target, gridveil_target
from benchmarks.local_city import WINDOW, running_city
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


def window_of(number: int, shape: Shape, workers: int = 1) -> Window:
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
        start = self._store.open_window(window_of(number, shape)).start
        placed = [[batch._replace(window_start=start) for batch in batches] for batches in commits]
        known = self._cost(lambda: self._look_up(start, shape, commits))
        commit = self._cost(lambda: self._commit(placed))
        self._store.seal(start)
        self._store.settle(start, Phase.EXPIRED)
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
                    stored.meter_id: batch.lane
                    for batch in batches[at : at + shape.lanes]
                    for stored in batch.reports
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
    one: list[float] = []
    two: list[float] = []
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder / "shared", REDIS_CORE))
        stack.enter_context(pinned(SERVER_CORE))
        workers = [
            stack.enter_context(_worker(folder / f"worker-{at}", redis.config, at))
            for at in range(2)
        ]
        advance = stack.enter_context(progress("two workers", (rounds + 1) * 2))
        for number in range(rounds + 1):
            for count, found in enumerate((one, two), 1):
                for worker in workers[:count]:
                    worker.send((number * 2 + count - 1, count))
                spent = [worker.recv() for worker in workers[:count]]
                if number:
                    found.append(sum(spent) / count)
                advance(1)
    return {1: one, 2: two}


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
            start = store.open_window(window_of(number, shape, workers)).start
            placed = [[b._replace(window_start=start) for b in batches] for batches in commits]
            before = time.process_time()
            for batches in placed:
                if store.commit(batches, 1) != [Committed(1)] * len(batches):
                    raise RuntimeError("not everything was committed")
            spent = time.process_time() - before
            orders.send(spent / shape.commits / shape.together * 1e6)


def measure_ingest(rounds: int, batches: int, folder: Path) -> dict[str, list[float]]:
    """Server CPU a report of the whole path, by store; of redis-server too."""
    fleet, count = Fleet(os.urandom(16)), (rounds + 1) * batches * BATCH
    options = argparse.Namespace(batches=batches, connections=4)
    found: dict[str, list[float]] = {"sqlite": [], "redis": [], "redis-server": []}
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder / "ingest", REDIS_CORE))
        targets = {
            "sqlite": _target(stack, folder / "sqlite", fleet, count, options, None),
            "redis": _target(stack, folder / "of-redis", fleet, count, options, redis.url),
        }
        stack.enter_context(pinned(LOAD_CORE))
        advance = stack.enter_context(progress("whole path", (rounds + 1) * 2))
        for number in range(rounds + 1):
            for name, target in targets.items():
                before = redis.cpu_seconds()
                load = target.run(number)
                if number:
                    found[name].append(load.cpu_us)
                if number and name == "redis":
                    spent = redis.cpu_seconds() - before
                    found["redis-server"].append(spent / load.reports * 1e6)
                advance(1)
    return found


def _target(
    stack: ExitStack,
    folder: Path,
    fleet: Fleet,
    count: int,
    options: argparse.Namespace,
    redis: str | None,
) -> Target:
    folder.mkdir()
    city = stack.enter_context(
        running_city(
            folder,
            fleet,
            count + 1,
            aggregator_core=SERVER_CORE,
            other_core=LOAD_CORE,
            redis=redis,
        )
    )
    return gridveil_target(city, prebuilt(fleet, city.parameters, WINDOW, count), options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    made = parser(__doc__, rounds=7)
    made.add_argument("--batches", type=int, default=40, help="calls of 128 a round (default 40)")
    options = made.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gridveil-store-") as folder:
        costs = measure_commits(options.rounds, Path(folder))
        workers = measure_workers(options.rounds, Path(folder))
        ingest = measure_ingest(options.rounds, options.batches, Path(folder))
    over = {
        name: ratios([c.commit for c in by["redis"]], [c.commit for c in by["sqlite"]])
        for name, by in costs.items()
    }
    over["two workers / one"] = ratios(workers[2], workers[1])
    over["whole path"] = ratios(ingest["redis"], ingest["sqlite"])
    goals = [
        *(Goal(f"Redis / SQLite, {name}", over[name].median, MOST_TO_SQLITE) for name in SHAPES),
        Goal("two workers / one", over["two workers / one"].median, MOST_FOR_TWO),
    ]
    figures = {
        "commits_cpu_us": {
            name: {store: _spreads(found) for store, found in by.items()}
            for name, by in costs.items()
        },
        "workers_cpu_us": {str(count): Spread.of(found) for count, found in workers.items()},
        "ingest_cpu_us": {name: Spread.of(found) for name, found in ingest.items()},
        "ratios": over,
    }
    return report(options, "store", _lines(costs, workers, ingest, over), goals, figures)


def _spreads(costs: Sequence[Cost]) -> dict[str, Spread]:
    return {
        part.name: Spread.of([getattr(cost, part.name) for cost in costs]) for part in fields(Cost)
    }


def _lines(
    costs: Costs,
    workers: dict[int, list[float]],
    ingest: dict[str, list[float]],
    over: dict[str, Spread],
) -> list[str]:
    lines = ["CPU, us a report"]
    for name, by in costs.items():
        for store, found in by.items():
            lines += [
                f"{name:<26}{store:<8}{part:<14}{spread.show(1)}"
                for part, spread in _spreads(found).items()
                if store == "redis" or not part.startswith("redis")
            ]
    lines += [f"{count} of 2 workers{'':<34}{Spread.of(w).show(1)}" for count, w in workers.items()]
    lines += [f"whole path{'':<16}{n:<22}{Spread.of(found).show(1)}" for n, found in ingest.items()]
    return lines + [f"{name:<48}{spread.show()}" for name, spread in over.items()]


if __name__ == "__main__":
    sys.exit(main())
