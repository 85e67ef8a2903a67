"""The controller as a process: starts, survives a kill, and ends when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from gridveil.clock import ScaledClock
from gridveil.control import Basis, ControlClient, ControlSignal
from gridveil_services.demo.processes import ServiceProcess
from tests.support.city import MIDNIGHT
from tests.support.controllers import LENGTH, ControlledCity

RATE = 100.0
"""A total is stale 27 real seconds after its window."""


def everything(city: ControlledCity) -> list[ControlSignal]:
    with city.client() as client:
        newest, found = client.signal().number, []
        for signal in client.watch(1):
            found.append(signal)
            if signal.number >= newest:
                return found
    raise AssertionError


def until(client: ControlClient, basis: Basis) -> ControlSignal:
    for signal in islice(client.watch(1, give_up_after_s=20), 20):
        if signal.basis is basis:
            return signal
    raise AssertionError


def test_a_killed_controller_goes_on_with_the_same_signals(tmp_path: Path) -> None:
    with ControlledCity.create(tmp_path, start=False) as city:
        city.start_totals()
        clock = ScaledClock(MIDNIGHT, time.time(), RATE)
        controller = ServiceProcess("controller", city.paths, clock)
        controller.start()
        try:
            with city.client() as client:
                # The window that it was started in, or a later one.
                at = int(clock.now() - MIDNIGHT) // LENGTH
                clock.sleep(city.window(at + 1) + 1 - clock.now())
                city.publish(city.record(at, 930_000))
                signal = until(client, Basis.MEASURED)
                assert (signal.level, signal.measured_w) == (2, 930_000)
            before = everything(city)
            controller.kill()
            controller.start()
            assert everything(city)[: len(before)] == before
        finally:
            assert controller.stop() == 0


def serve(city: ControlledCity) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gridveil.cli", "control", "serve"]
    return subprocess.run(
        [*command, "--config", str(city.config_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_is_wrong_with_the_configuration_is_one_line(tmp_path: Path) -> None:
    with ControlledCity.create(tmp_path, start=False) as city:
        (city.paths.role("controller") / "control.toml").unlink()
        missing = serve(city)
        city.write_rules(capacity_w=-1)
        wrong = serve(city)
        city.write_rules()
        city.configure('history = "history.csv"\n')
        unread = serve(city)
    for ended, named in ((missing, "control.toml"), (wrong, "capacity_w"), (unread, "history")):
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert named in ended.stderr


def test_a_damaged_journal_is_not_gone_on_with(tmp_path: Path) -> None:
    with ControlledCity.create(tmp_path) as city:
        city.release(0, 930_000)
        city.until(lambda signal: signal.basis is Basis.MEASURED)
        city.stop_controller()
        journal = city.paths.role("controller") / "state" / "controller.db"
        data = bytearray(journal.read_bytes())
        data[4_096:4_500] = bytes(404)
        journal.write_bytes(data)

        ended = serve(city)

    assert ended.returncode == 2
    assert "PARTIAL_CORRUPT" in ended.stderr


@pytest.mark.parametrize("what", ["json", "people"])
def test_health_asks_a_controller_too(tmp_path: Path, what: str) -> None:
    with ControlledCity.create(tmp_path) as city:
        city.release(0, 930_000)
        city.until(lambda signal: signal.basis is Basis.MEASURED)
        words = ["health", "controller", "--profile", str(city.paths.profile("operator"))]
        ended = subprocess.run(
            [sys.executable, "-m", "gridveil.cli", *words, *(["--json"] if what == "json" else [])],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert ended.returncode == 0, ended.stderr
    status = json.loads(ended.stdout)["status"] if what == "json" else ended.stdout.strip()
    assert status == "SERVING"
