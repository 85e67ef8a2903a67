"""A store says whether it would take a report, and changes nothing by saying so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.interface import StoreFailed
from tests.contract.redis_lanes import everything, setting
from tests.contract.stores import RedisHarness, SqliteHarness, make_window
from tests.support.aggregators import store_digest
from tests.support.redis_servers import NEEDED


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteHarness]:
    made = SqliteHarness(tmp_path)
    made.store.open_window(make_window())
    yield made
    made.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisHarness]:
    made = RedisHarness(tmp_path)
    made.store.open_window(make_window())
    yield made
    made.close()


def test_a_file_that_takes_reports_says_so(file: SqliteHarness, tmp_path: Path) -> None:
    (path,) = tmp_path.rglob("*.db")
    before = store_digest(path)
    file.store.probe()
    assert store_digest(path) == before


def test_a_file_that_failed_says_so(file: SqliteHarness) -> None:
    assert file.database is not None
    file.database.fail("a test says so")
    with pytest.raises(StoreFailed):
        file.store.probe()


@NEEDED
def test_a_server_that_takes_reports_says_so(redis: RedisHarness) -> None:
    (client,) = redis.clients
    before = everything(client)
    redis.store.probe()
    assert everything(client) == before


@NEEDED
def test_a_server_without_memory_says_so(redis: RedisHarness) -> None:
    (client,) = redis.clients
    with setting(client, "maxmemory", "1"), pytest.raises(Unavailable) as refused:
        redis.store.probe()
    assert refused.value.reason is Reason.STORE_FULL
    redis.store.probe()


@NEEDED
def test_a_master_that_lost_its_replicas_says_so(redis: RedisHarness) -> None:
    (client,) = redis.clients
    with setting(client, "min-replicas-to-write", "1"), pytest.raises(Unavailable) as refused:
        redis.store.probe()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
