"""``gridveil aggregator serve --workers``: processes on one port, which share a Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.v1 import aggregator_pb2_grpc, report_pb2
from gridveil.registrar import Registrar
from gridveil.transport import connect
from gridveil_services.demo.processes import ServiceProcess
from tests.integration.test_aggregator_process import Running, patiently
from tests.integration.test_retention import rows
from tests.support.city import MIDNIGHT, TestCity
from tests.support.redis_servers import NEEDED, one_cluster
from tests.support.reports import build_report, make_members

pytestmark = NEEDED

METERS = 110
LENGTH = 60
RATE = 10.0


def eventually(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def reading(meter: int) -> tuple[int, int]:
    """Another one for each meter, so that a total of the right count is of the right meters."""
    return 1_000 + 7 * meter, meter % 3


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def workers_of(city: TestCity) -> list[int]:
    """Process ids of the workers."""
    parent = city.pid("aggregator")
    told = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, check=False).stdout
    return [int(pid) for pid in told.split()]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers, and a window that takes reports."""
    for server in one_cluster().servers:
        server.client.flushall()
    city = TestCity.create(
        tmp_path_factory.mktemp("city"),
        window_length=LENGTH,
        grace=1200,
        origin=MIDNIGHT + 0.0,
        rate=RATE,
        redis_nodes=tuple(f"127.0.0.1:{server.port}" for server in one_cluster().servers),
    )
    city.services["aggregator"] = ServiceProcess(
        "aggregator", city.paths, city.clock, ("--workers", "2")
    )
    with city:
        city.start("keyholder")
        # Before the window: a Redis that is new does not open one that takes reports already.
        city.start("aggregator")
        city.start("totals")
        meters = make_members(METERS)
        profile = city.profile("registrar")
        with Registrar.open(profile) as registrar:
            roster = registrar.enrol(meter.enrolment(profile.city_id) for meter in meters)
        assert roster is not None
        made = Running(city, meters, roster.effective_window)
        city.wait_until(made.window + LENGTH)
        yield made
        if city.services["aggregator"].running:
            city.stop("aggregator")


@pytest.fixture
def running(city: Running) -> Running:
    """The same, started again if the last test has ended it."""
    if not city.city.services["aggregator"].running:
        city.city.start("aggregator")
    return city


@pytest.fixture(scope="module")
def messages(city: Running) -> list[report_pb2.Report]:
    """A report of each meter."""
    parameters = city.parameters()
    return [
        build_report(parameters, keys, city.window, list(reading(meter))).to_message()
        for meter, keys in enumerate(city.meters)
    ]


def submit(running: Running, report: report_pb2.Report) -> bool:
    """Hand a report in on a connection of its own; whether it is acknowledged."""
    profile = running.city.profile("gateway")
    address = profile.endpoints["aggregator"]
    with connect(address, "aggregator", profile.city_id, profile.tls) as channel:
        stub = aggregator_pb2_grpc.AggregatorStub(channel)
        try:
            patiently(lambda: stub.SubmitReport(report, timeout=10))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


def test_both_workers_take_connections(running: Running, messages: list[report_pb2.Report]) -> None:
    assert all(submit(running, message) for message in messages[:60])
    states = sorted((running.city.paths.role("aggregator") / "state").glob("worker-*"))
    assert [state.name for state in states] == ["worker-1", "worker-2"]
    acknowledged = [rows(state / "aggregator.db", "acknowledgements") for state in states]
    assert min(acknowledged) > 0
    assert sum(acknowledged) <= 60


def test_a_signal_drains_the_workers_and_their_parent(running: Running) -> None:
    workers = workers_of(running.city)
    assert running.city.stop("aggregator") == 0
    assert not any(map(is_alive, workers))


def test_workers_that_had_the_signal_too_drain_once(running: Running) -> None:
    """As when a terminal or a service manager signals all of them: the lease is given back."""
    for pid in workers_of(running.city):
        os.kill(pid, signal.SIGTERM)
    assert running.city.stop("aggregator") == 0
    servers = one_cluster().servers
    assert not any(key for server in servers for key in server.client.scan_iter("*:leader"))


def test_workers_do_not_outlive_a_parent_that_was_killed(running: Running) -> None:
    workers = workers_of(running.city)
    running.city.kill("aggregator")
    eventually(lambda: not any(map(is_alive, workers)))


def test_a_second_parent_is_refused(running: Running) -> None:
    command = running.city.command("aggregator")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "another process uses this store" in done.stderr.splitlines()[-1]


def test_a_killed_worker_costs_no_acknowledged_report_and_comes_back(
    running: Running, messages: list[report_pb2.Report]
) -> None:
    first, second = workers_of(running.city)
    pending = list(messages)
    for sent in range(2_000):
        if sent == METERS // 2:
            os.kill(first, signal.SIGKILL)
        if not pending:
            break
        if not submit(running, pending[0]):
            pending.append(pending[0])
        del pending[0]
    assert not pending
    eventually(lambda: len(workers_of(running.city)) == 2)
    assert second in workers_of(running.city)
    assert first not in workers_of(running.city)
    with Operator.open(running.city.profile("operator")) as operator:
        outcome = next(iter(operator.watch(running.window)))
    assert isinstance(outcome, ReleasedTotal)
    assert outcome.count == METERS
    assert outcome.sum("import_wh") == sum(reading(meter)[0] for meter in range(METERS))


def test_several_workers_without_redis_are_refused(tmp_path: Path) -> None:
    city = TestCity.create(tmp_path)
    command = [*city.command("aggregator"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--workers needs the section [redis]" in done.stderr


def test_the_serving_line_names_the_workers(tmp_path: Path) -> None:
    """Also the parent's exit code when no worker can start."""
    city = TestCity.create(tmp_path, redis_nodes=("127.0.0.1:9",))
    command = [*city.command("aggregator"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert json.dumps("serving") not in done.stdout
