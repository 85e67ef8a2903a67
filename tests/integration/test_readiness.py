"""Readiness that tells the truth: what each role needs, broken one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gridveil.protocol.errors import Unavailable
from gridveil_services.aggregator.readiness import StoreReadiness
from gridveil_services.aggregator.store.interface import LaneBatch, Phase
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder import serve as keyholder_process
from gridveil_services.rpc import Role
from gridveil_services.totals import serve as totals_process
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import IngestHarness, LocalCity
from tests.support.redis_servers import until
from tests.support.reports import WINDOW
from tests.support.rpc import HEALTH_CHECK, HEALTH_WATCH, Certificates, serving
from tests.unit.test_aggregator_full_store import BOUND_BYTES, batch, fill

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[IngestHarness]:
    made = IngestHarness(tmp_path, max_bytes=BOUND_BYTES)
    yield made
    made.close()


def unmet(conditions: dict[str, bool]) -> set[str]:
    return {name for name, holds in conditions.items() if not holds}


def refused_commit(harness: IngestHarness, wanted: LaneBatch) -> None:
    with pytest.raises(Unavailable):
        harness.committer.commit([wanted])


def test_an_answer_and_a_watcher_follow_each_condition(certificates: Certificates) -> None:
    holds = True
    with serving(certificates, {}) as (running, caller):
        running.readiness.require("test", lambda: holds)
        watched = caller.watch(HEALTH_WATCH)
        assert next(watched) == SERVING
        holds = False
        assert caller.unary(HEALTH_CHECK) == NOT_SERVING
        assert next(watched) == NOT_SERVING
        holds = True
        assert next(watched) == SERVING, "told although nobody asked"


def test_what_cannot_be_looked_at_is_not_ready(certificates: Certificates) -> None:
    def broken() -> bool:
        raise OSError

    with serving(certificates, {}) as (running, caller):
        running.readiness.require("broken", broken)
        assert caller.unary(HEALTH_CHECK) == NOT_SERVING
        assert unmet(running.conditions()) == {"broken"}


def test_a_server_is_not_ready_with_an_expired_certificate(certificates: Certificates) -> None:
    now = datetime.now(UTC)
    valid = now - timedelta(days=1), now + timedelta(seconds=2)
    short = certificates.tls(Role.AGGREGATOR, "short", valid=valid)
    with serving(certificates, {}, tls=short) as (running, _):
        while time.time() <= running.certificate_expires:
            time.sleep(0.1)
        assert unmet(running.conditions()) == {"certificate"}
        certificates.tls(Role.AGGREGATOR, "short")  # renewed in place
        assert unmet(running.conditions()) == set()


def test_an_aggregator_is_ready_once_it_knows_parameters_and_roster(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=100) as city:
        server = city.aggregator.server
        assert unmet(server.conditions()) == {"parameters"}
        city.enter_window(WINDOW)
        assert unmet(server.conditions()) == set()
        city.aggregator.documents._database.fail("a test says so")
        until(lambda: unmet(server.conditions()) == {"store"})


def test_asking_often_asks_the_store_seldom(small: IngestHarness) -> None:
    ready = StoreReadiness(small.store, small.committer, doubt_s=0.0, fresh_s=3_600.0)
    assert ready()
    fill(small, WINDOW)
    assert ready(), "the answer of the hour"


def test_an_aggregator_is_not_ready_while_its_store_is_full(small: IngestHarness) -> None:
    ready = StoreReadiness(small.store, small.committer, doubt_s=0.0, fresh_s=0.0)
    assert ready()
    fill(small, WINDOW)
    assert not ready()
    # What was taken can be sealed; once it is settled and forgotten there is room.
    small.committer.run(lambda: small.store.seal(WINDOW))
    small.committer.run(lambda: small.store.settle(WINDOW, Phase.EXPIRED))
    small.committer.run(lambda: small.store.forget(WINDOW + 10**6))
    assert ready()


def test_a_failed_commit_is_remembered_until_one_succeeds(small: IngestHarness) -> None:
    ready = StoreReadiness(small.store, small.committer, doubt_s=3_600.0, fresh_s=0.0)
    stored = fill(small, WINDOW)
    small.committer.run(lambda: small.store.seal(WINDOW))
    small.committer.run(lambda: small.store.settle(WINDOW, Phase.EXPIRED))
    small.committer.run(lambda: small.store.forget(WINDOW + 10**6))
    assert not ready(), "there is room, but the last commit failed"
    later = WINDOW + 900
    window = replace(small.window, start=later, end=later + 900, closes=later + 1_200)
    small.committer.run(lambda: small.store.open_window(window))
    small.committer.commit([batch(small, later, stored // 100)])
    assert ready()


def test_a_store_is_not_ready_when_nobody_writes_any_more(small: IngestHarness) -> None:
    ready = StoreReadiness(small.store, small.committer)
    small.committer.close()
    with pytest.raises(Unavailable):
        ready()
    small.restart()


def test_a_keyholder_is_not_ready_while_it_is_locked(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=100, refusals_per_day=1) as city:
        assert unmet(city.keyholder_server.conditions()) == set()
        ledger, parameters = city.keyholder.ledger, city.parameters()
        ledger.claim(WINDOW, bytes(32), parameters.digest, 1)
        ledger.refused(WINDOW, bytes(32))
        assert unmet(city.keyholder_server.conditions()) == {"unlocked"}


def test_a_keyholder_is_not_ready_without_its_log_or_a_disk_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalCity.create(tmp_path, meters=100) as city:
        server = city.keyholder_server
        with monkeypatch.context() as fuller:
            fuller.setattr(keyholder_process, "LEAST_FREE_BYTES", 2**62)
            assert unmet(server.conditions()) == {"disk"}
        city.keyholder.ledger.fail()
        assert unmet(server.conditions()) == {"log"}


def test_totals_are_not_ready_when_nobody_reads_the_log_any_more(
    paths: CityPaths, serve: Callable[[], TotalsProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = serve()
    assert unmet(process.server.conditions()) == set()
    process._follower.stop()
    monkeypatch.setattr(totals_process, "STALE_S", 0.0)
    assert unmet(process.server.conditions()) == {"log"}


def test_a_server_that_drains_is_not_ready_whatever_holds(certificates: Certificates) -> None:
    with serving(certificates, {}) as (running, _):
        running.drain(5.0)
        assert unmet(running.conditions()) == {"serving"}
