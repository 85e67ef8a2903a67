"""A city whose aggregator keeps its windows in Redis: the same totals, through every restart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.release import open_total
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.releaselog.reader import LogReader
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.redis_servers import NEEDED, RedisServer, one_cluster, one_server
from tests.support.reports import WINDOW

pytestmark = NEEDED

METERS = 220
"""Enough for three lanes."""
PRIVACY = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")


def reading(meter: int) -> tuple[int, int]:
    return 1_000 + 7 * meter, meter % 3


@pytest.fixture(params=["one server", "a cluster"])
def redis(request: pytest.FixtureRequest) -> RedisConfig:
    """Emptied servers."""
    cluster = request.param == "a cluster"
    for server in one_cluster().servers if cluster else [one_server()]:
        server.client.flushall()
    return one_cluster().config if cluster else one_server().config


def submit(city: LocalCity, reports: list[report_pb2.Report]) -> list[report_pb2.ReportOutcome]:
    """Hand reports in, as many at once as a message holds; all are accepted."""
    outcomes: list[report_pb2.ReportOutcome] = []
    for at in range(0, len(reports), 110):
        request = aggregator_pb2.SubmitReportsRequest(reports=reports[at : at + 110])
        outcomes += city.stub("gateway").SubmitReports(request).outcomes
    assert all(outcome.HasField("receipt") for outcome in outcomes)
    return outcomes


def released(city: LocalCity) -> tuple[int, int]:
    """Import of the window, and how many meters it counts, from the key-holder's log."""
    key = city.aggregator_config.identity_key
    for record in LogReader(city.paths.published / "log").poll():
        if record.WhichOneof("event") == "released":
            signed = record.released.total
            total = open_total(signed.total, signed.signature, key)
            return total.sum("import_wh"), total.count
    raise AssertionError("the window was not released")


def test_reports_give_their_exact_total_through_restarts(
    tmp_path: Path, redis: RedisConfig
) -> None:
    with LocalCity.create(tmp_path, meters=METERS, redis=redis) as city:
        city.enter_window(WINDOW)
        reports = [city.report(meter, WINDOW, reading(meter)) for meter in range(METERS)]
        first = submit(city, reports[:100])
        city.aggregator.forerunner.step()
        city.restart_aggregator()
        again = submit(city, reports[:120])
        assert [o.receipt.accepted_at_ms for o in again[:100]] == [
            o.receipt.accepted_at_ms for o in first
        ]
        submit(city, reports[120:])
        city.aggregator.sealer.step()
        assert city.stored_window().phase is Phase.SEALED
        city.restart_aggregator()
        city.aggregator.releaser.step()
        assert city.stored_window().phase is Phase.RELEASED
        assert released(city) == (sum(reading(meter)[0] for meter in range(METERS)), METERS)
        city.restart_aggregator()
        assert city.stored_window().phase is Phase.RELEASED
        assert submit(city, reports[:1])[0].receipt.duplicate


def test_a_window_that_an_emptied_server_lost_is_refused_and_the_next_one_released(
    tmp_path: Path,
) -> None:
    one_server().client.flushall()
    with LocalCity.create(tmp_path, meters=METERS, redis=one_server().config) as city:
        city.enter_window(WINDOW)
        submit(city, [city.report(meter) for meter in range(METERS)])
        one_server().client.flushall()
        city.aggregator.sealer.step()
        city.enter_window(WINDOW + LENGTH)
        city.clock.move_to(WINDOW + LENGTH + 300)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert city.stored_window().phase is Phase.POISONED
        following = WINDOW + LENGTH
        city.clock.move_to(following + LENGTH)
        values = [city.report(m, following, reading(m)) for m in range(METERS)]
        submit(city, values)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert city.stored_window(following).phase is Phase.RELEASED
        assert released(city) == (sum(reading(meter)[0] for meter in range(METERS)), METERS)


def kinds(client: Any) -> set[str]:
    """What kinds of keys Redis holds, by the last word of their names that is no number."""
    names = [key.decode().rpartition("}:")[2].partition(":")[0] for key in client.scan_iter()]
    return set(names)


def test_redis_holds_what_the_table_lists_and_only_as_long(tmp_path: Path) -> None:
    client = one_server().client
    client.flushall()
    listed = set(re.findall(r"^\| Redis `(\w+)` \|", PRIVACY, re.MULTILINE))
    with LocalCity.create(tmp_path, meters=METERS, redis=one_server().config) as city:
        city.enter_window(WINDOW)
        submit(city, [city.report(meter) for meter in range(METERS)])
        contradicting = aggregator_pb2.SubmitReportsRequest(reports=[city.report(0)])
        assert city.stub("gateway").SubmitReports(contradicting).outcomes[0].HasField("error")
        assert kinds(client) | {"leader"} == listed - {"forgotten"}
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert kinds(client) | {"leader"} == listed - {"forgotten", "journal"}
        city.clock.move_to(WINDOW + 4 * 86_400)
        city.aggregator.sealer.step()
        assert kinds(client) - {"leader"} == {"forgotten", "servers", "clocks"}


def test_a_process_refuses_a_server_that_may_lose_data_and_says_why(tmp_path: Path) -> None:
    server = RedisServer(appendfsync="everysec")
    try:
        with LocalCity.create(tmp_path, meters=0) as city:
            path = city.paths.config("aggregator")
            city.stop_aggregator()
        with path.open("a") as config:
            config.write(f'\n[redis]\nurl = "redis://127.0.0.1:{server.port}"\n')
        run = subprocess.run(
            [sys.executable, "-m", "gridveil.cli", "aggregator", "serve", "--config", path],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        server.stop()
    assert run.returncode == 3
    assert "appendfsync is not always" in run.stderr
    assert str(server.port) not in run.stderr
    assert "Traceback" not in run.stderr
