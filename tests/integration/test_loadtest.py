"""``gridveil loadtest`` against real services: its counts are right, also when services are not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.clock import ScaledClock
from gridveil.loadtest.city import LocalSetup
from gridveil.loadtest.load import Load, Mixture
from gridveil.loadtest.report import errors, passed
from gridveil.loadtest.run import Advance, run
from gridveil.loadtest.sender import SENT
from gridveil.meter_identity import write_fleet
from gridveil_services.loadtest.local import Running, running_city
from gridveil_services.loadtest.processor_time import children
from tests.support.redis_servers import NEEDED

METERS = 200


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One city for all tests here: each plays windows that none before has played."""
    load = Load(meters=METERS, windows=1, mixture=Mixture(late=0.02))
    with running_city(load, LocalSetup(), lambda _text: None) as running:
        write_fleet(running.paths.fleet, running.city.meters)
        yield running


def command(city: Running, *more: str) -> Result:
    clock = city.city.clock
    assert isinstance(clock, ScaledClock)
    return CliRunner().invoke(
        app,
        [
            *("loadtest", "--profile", str(city.paths.profile("gateway"))),
            *("--operator", str(city.paths.profile("operator"))),
            *("--fleet", str(city.paths.fleet), "--meters", str(METERS)),
            *("--clock-origin", f"{clock.origin!r}@{clock.started!r}"),
            *("--clock-rate", repr(clock.rate), *more),
        ],
    )


def once(act: Callable[[], None]) -> Advance:
    """Acts when the first reports were answered."""
    acted = threading.Event()

    def advance(what: str, count: int, _of: int) -> None:
        if what == SENT and count and not acted.is_set():
            acted.set()
            act()

    return advance


def junit(folder: Path) -> ElementTree.Element:
    return ElementTree.parse(folder / "out.xml").getroot()  # noqa: S314 - our own


def test_counts_and_totals_are_exact_with_reports_that_go_wrong_on_purpose(
    city: Running, tmp_path: Path
) -> None:
    ended = command(
        city,
        *("--windows", "2", "--duplicates", "5%", "--late", "2%", "--bad", "3%", "--json"),
        *("--fail-if", "errors>0", "--fail-if", "accepted!=392", "--fail-if", "duplicates!=20"),
        *("--fail-if", "refused!=20", "--fail-if", "total!=exact", "--fail-if", "sent<999"),
        *("--junit", str(tmp_path / "out.xml")),
    )
    assert ended.exit_code == 1, ended.output
    told = json.loads(ended.stdout)
    assert (told["sent"], told["accepted"], told["duplicates"]) == (432, 392, 20)
    assert told["errors"] == {}
    assert told["refused"].pop("FIELD_FORMAT") == told["refused_expected"] - 16 == 4
    assert told["refused"].pop("SIGNATURE_INVALID") == 8
    assert set(told["refused"]) <= {"WINDOW_CLOSED", "WINDOW_RELEASED"}
    assert sum(told["refused"].values()) == 8
    assert [one["violated"] for one in told["thresholds"]] == [False] * 5 + [True]
    for window in told["windows"]:
        assert (window["exact"], window["counted"], window["accepted"]) == (True, 196, 196)
        assert window["released"] == window["expected"]
        assert window["released"]["import_wh"] > 0
    failed = junit(tmp_path).findall(".//failure/..")
    assert [case.attrib["name"] for case in failed] == ["fail if sent<999"]


def test_a_server_that_stands_still_shows_in_the_latencies_of_an_open_loop(city: Running) -> None:
    stopped_s, rate = 1.2, 100.0
    aggregator = city.services["aggregator"].process.pid

    def stand_still() -> None:
        os.kill(aggregator, signal.SIGSTOP)
        time.sleep(stopped_s)
        os.kill(aggregator, signal.SIGCONT)

    load = Load(meters=METERS, windows=1, rate=rate, processes=1, batch=4)
    result = run(load, city.city, once(stand_still))
    assert passed([], result), result.total.errors
    # Reports that were meant for the first 0.7 s of it were answered 0.5 s too late, or later.
    least = (stopped_s - 0.5) * rate - 2 * load.batch
    assert result.total.latencies.above(0.5) >= least
    assert result.total.latencies.count == METERS


def test_no_report_is_lost_when_an_aggregator_is_killed_and_comes_back(city: Running) -> None:
    aggregator = city.services["aggregator"]

    def kill() -> None:
        aggregator.kill()
        aggregator.start()

    mixture = Mixture(duplicates=0.05)
    load = Load(METERS, windows=1, rate=100.0, processes=1, batch=4, mixture=mixture)
    result = run(load, city.city, once(kill))
    assert (errors(result), result.total.accepted, result.exact) == (0, METERS, True)
    assert result.total.duplicates == METERS * 0.05
    assert result.total.retries.total() > 0
    assert "aggregator" not in result.cpu_s or result.cpu_s["aggregator"] >= 0


def test_an_interrupt_ends_with_what_was_measured_so_far(city: Running) -> None:
    load = Load(meters=METERS, windows=1, rate=50.0, processes=1, batch=4)
    result = run(load, city.city, once(lambda: signal.raise_signal(signal.SIGINT)))
    assert result.interrupted
    assert not passed([], result)
    assert 0 < result.total.accepted < METERS
    assert errors(result) == 0
    assert result.total.latencies.count == result.total.accepted
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--windows", "1", "--fail-if", "p95>1s"], "there are sent, accepted"),
        (["--windows", "1", "--duration", "9"], "either --windows or --duration"),
        (["--windows", "1", "--rate", "fast"], "--rate is above 0"),
        (["--windows", "1", "--rate", "1"], "fewer --meters, or a higher --rate"),
        (["--windows", "1", "--bad", "0.5"], "a share in percent"),
        (["--windows", "1", "--late", "21%"], "--late is 0% to 20%"),
        (["--windows", "1", "--batch", "129"], "--batch is at most 128"),
        (["--windows", "1", "--meters", "201"], "the fleet holds 200 meters"),
        (["--windows", "1", "--local"], "go without --profile"),
        (["--windows", "1", "--junit", "nowhere/out.xml"], "--junit does not exist"),
        (["--windows", "2000"], "one epoch"),
    ],
)
def test_wrong_usage_is_told_in_one_line(city: Running, more: list[str], told: str) -> None:
    ended = command(city, *more)
    assert ended.exit_code == 2, ended.output
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_one_command_needs_no_city(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gridveil.cli", "loadtest", "--meters", "100"),
            *("--rate", "max", "--duration", "1", "--processes", "1"),
            *("--fail-if", "errors>0", "--junit", "out.xml"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 accepted" in done.stdout
    assert "server CPU, us a report: " in done.stdout
    assert done.stdout.endswith("passed\n")
    assert len(junit(tmp_path).findall(".//testcase")) == 2


@NEEDED
def test_a_worker_killed_half_way_costs_no_report_and_no_total() -> None:
    told: list[str] = []
    load = Load(meters=METERS, windows=3, batch=8)
    with running_city(load, LocalSetup(workers=2, kill_worker=True), told.append) as running:
        before = children(running.services["aggregator"].process.pid)
        result = run(load, running.city)
        after = children(running.services["aggregator"].process.pid)
    assert told[-1] == "killed a worker"
    assert len(before) == 2
    assert before[0] not in after
    assert (result.total.accepted, errors(result)) == (3 * METERS, 0)
    assert result.exact
