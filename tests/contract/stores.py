"""The stores that the contract is held against, and made-up reports to put into them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.ciphertext import Residues, add
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.documents import SqliteDocuments
from gridveil_services.aggregator.store.interface import (
    Documents,
    LaneBatch,
    Store,
    StoredReport,
    Window,
)
from gridveil_services.aggregator.store.redis.store import RedisStore
from gridveil_services.aggregator.store.schema import SCHEMA
from gridveil_services.aggregator.store.sqlite import SqliteStore
from tests.support.redis_servers import (
    NEEDED,
    RedisCluster,
    RedisServer,
    one_cluster,
    one_server,
)
from tests.support.reports import CITY_ID

CRYPTO = parameter_set("ckks-2048")
SLOTS = 64
START = 1_700_000_100
LENGTH = 900


class SqliteHarness:
    """A SQLite store that can be closed and opened again."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = folder / "store" / "aggregator.db"
        self.database: Database | None = None
        self.on_failure = on_failure
        self.reopen(max_bytes)

    def reopen(self, max_bytes: int | None = None) -> None:
        """As after a restart."""
        self.close()
        self.database = Database(self.path, SCHEMA, max_bytes=max_bytes, on_failure=self.on_failure)
        self.store: Store = SqliteStore(self.database)
        self.documents: Documents = SqliteDocuments(self.database)

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
        self.database = None


class RedisHarness(SqliteHarness):
    """A Redis store on servers that nobody else uses; they live on, emptied, after it."""

    def __init__(
        self,
        folder: Path,
        servers: RedisServer | RedisCluster | None = None,
        config: RedisConfig | None = None,
        *,
        fresh: bool = True,
        now: float = 1.0,
    ) -> None:
        """On the single server of this run, or on ``servers``, reached as ``config`` says.

        ``fresh``: emptied before; not, to be one more aggregator.
        """
        self.servers = one_server() if servers is None else servers
        self.config = config or self.servers.config
        self.clock = ManualClock(now)
        for client in self.clients if fresh else ():
            client.flushall()
        super().__init__(folder)

    @property
    def clients(self) -> list[Any]:
        """A client of every server."""
        if isinstance(self.servers, RedisServer):
            return [self.servers.client]
        return [server.client for server in self.servers.servers]

    def reopen(self, max_bytes: int | None = None) -> None:
        super().reopen(max_bytes)
        assert self.database is not None
        self.redis = RedisStore.open(self.config, self.database, CITY_ID, self.clock)
        self.store = self.redis

    def close(self) -> None:
        if self.database is not None:
            self.redis.close()
        self.close_database()

    def close_database(self) -> None:
        """All there is to close where the store did not open."""
        super().close()


HARNESSES: dict[str, Callable[[Path], SqliteHarness]] = {
    "sqlite": SqliteHarness,
    "redis": RedisHarness,
    "redis-cluster": lambda folder: RedisHarness(folder, one_cluster()),
}
KINDS = [pytest.param(kind, marks=[NEEDED] * kind.startswith("redis")) for kind in HARNESSES]
"""The same as parameters of a test."""


def make_window(start: int = START, **changes: object) -> Window:
    fields: dict[str, object] = {
        "start": start,
        "end": start + LENGTH,
        "closes": start + LENGTH + 300,
        "parameters_digest": bytes(32),
        "roster_version": 1,
        "enrolled": 100,
        "lanes": 2,
        "lane_capacity": 1000,
        "parameter_set": CRYPTO.name,
        "slots": SLOTS,
    }
    return Window(**{**fields, **changes})  # type: ignore[arg-type]


@lru_cache(maxsize=512)
def made_up_report(meter: int, version: int = 0) -> tuple[StoredReport, Residues]:
    """One report of a meter; another version is another report. The same every time."""
    source = random.Random(f"{meter}/{version}")
    meter_id = random.Random(meter).randbytes(16)
    entry = meter_id + source.randbytes(ENTRY_BYTES - 16)
    residues = np.array(
        [source.randrange(CRYPTO.modulus) for _ in range(2 * SLOTS + CRYPTO.degree)],
        dtype=np.uint64,
    )
    return StoredReport(meter_id, hashlib.sha256(entry).digest(), entry), residues


def batch(
    meters: Sequence[int],
    *,
    lane: int = 0,
    start: int = START,
    version: int = 0,
    parameters_digest: bytes = bytes(32),
) -> LaneBatch:
    made = [made_up_report(meter, version) for meter in meters]
    total = add([residues for _, residues in made], CRYPTO)
    return LaneBatch(start, lane, [report for report, _ in made], total, parameters_digest)
