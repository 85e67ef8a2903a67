"""``gridveil aggregator serve`` as a process: how it starts, serves, fails and ends."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.v1 import aggregator_pb2, aggregator_pb2_grpc, report_pb2
from gridveil.registrar import Registrar
from gridveil.transport import connect
from tests.support.aggregators import refusal
from tests.support.city import MIDNIGHT, TestCity
from tests.support.reports import MeterKeys, build_report, make_members

T = TypeVar("T")
LENGTH = 60
RATE = 20.0
"""A window lasts three real seconds, and takes reports for a minute more."""


def patiently(call: Callable[[], T]) -> T:
    """What a call answers once the aggregator has heard from the key-holder."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if refusal(error)[1] != "KEYHOLDER_UNAVAILABLE" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Running:
    """Key-holder and aggregator as processes, and a connection as a gateway."""

    def __init__(self, city: TestCity, meters: list[MeterKeys], window: int) -> None:
        self.city = city
        self.meters = meters
        self.window = window
        profile = city.profile("gateway")
        self._pinned = profile.identity_key, profile.city_id
        channel = connect(
            profile.endpoints["aggregator"], "aggregator", profile.city_id, profile.tls
        )
        self.stub = aggregator_pb2_grpc.AggregatorStub(channel)

    def parameters(self) -> CityParameters:
        request = aggregator_pb2.GetCityParametersRequest(window_start=self.window)
        signed = patiently(
            lambda: self.stub.GetCityParameters(request, wait_for_ready=True, timeout=20)
        )
        return open_city_parameters(signed.parameters, signed.signature, *self._pinned)

    def report(self, meter: int) -> report_pb2.Report:
        return build_report(self.parameters(), self.meters[meter], self.window, [5, 6]).to_message()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A city whose first window with a roster takes reports."""
    city = TestCity.create(
        tmp_path, window_length=LENGTH, grace=1200, origin=MIDNIGHT + 0.0, rate=RATE
    )
    with city:
        city.start("keyholder")
        meters = make_members(4)
        profile = city.profile("registrar")
        with Registrar.open(profile) as registrar:
            roster = registrar.enrol(meter.enrolment(profile.city_id) for meter in meters)
        assert roster is not None
        city.start("aggregator")
        made = Running(city, meters, roster.effective_window)
        city.wait_until(made.window + LENGTH)
        yield made


def submit(running: Running, message: report_pb2.Report) -> bool:
    """Hand a report in until the roster is known; whether it had been handed in before."""
    submitted = patiently(
        lambda: running.stub.SubmitReport(message, timeout=10, wait_for_ready=True)
    )
    return bool(submitted.duplicate)


def test_it_serves_by_itself_and_drains_on_sigterm(running: Running) -> None:
    """Roster and sealing are the background work's: all have reported, so the window seals."""
    for meter in range(4):
        assert not submit(running, running.report(meter))
    deadline = time.monotonic() + 20
    while '"sealed"' not in running.city.log("aggregator") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert '"sealed"' in running.city.log("aggregator")
    assert running.city.stop("aggregator") == 0


def test_a_failing_disk_ends_it_and_the_next_start_has_what_was_acknowledged(
    running: Running,
) -> None:
    """From then on writes fail with EFBIG, an I/O error to SQLite."""
    first, second = running.report(0), running.report(1)
    assert not submit(running, first)
    process = running.city.services["aggregator"].process
    wal = running.city.paths.role("aggregator") / "state" / "aggregator.db-wal"
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size,) * 2)
    with pytest.raises(grpc.RpcError) as refused:
        running.stub.SubmitReport(second, timeout=10)
    assert refusal(refused.value) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert process.wait(20) == 3
    running.city.kill("aggregator")
    running.city.start("aggregator")
    assert submit(running, first)
    assert not submit(running, second)


def serve(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gridveil.cli", "aggregator", "serve", "--config", str(config)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_refuses_to_start_with_one_line_and_a_code(tmp_path: Path) -> None:
    city = TestCity.create(tmp_path, development=False)
    config = city.paths.config("aggregator")
    missing = serve(config.with_name("other.toml"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == "CONFIG_INVALID: other.toml does not exist\n"
    scaled = serve(config, "--clock-rate", "5", "--clock-origin", "1@1")
    assert scaled.returncode == 2
    assert "development" in scaled.stderr
    state = config.parent / "state"
    state.mkdir(exist_ok=True)
    shutil.copy(config, state / "aggregator.db")
    damaged = serve(config)
    assert damaged.returncode == 3
    assert len(damaged.stderr.strip().splitlines()) == 1
    assert damaged.stderr.startswith("STORE_UNAVAILABLE")
