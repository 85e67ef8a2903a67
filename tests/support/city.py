"""A whole city for tests: made by the bootstrap, its services real processes over mTLS.

with TestCity.create(tmp_path, meters=120, min_cohort=100, rate=60) as city:
    city.start("keyholder")
    city.start("aggregator")
    city.enrol()
    city.kill("aggregator")
    city.start("aggregator")
    Operator.open(city.profile("operator"))
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys, write_fleet
from gridveil.profile import Profile
from gridveil.protocol.roster import RosterVersion
from gridveil.registrar import Registrar
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import SERVICES, CityPaths

START_S = 60.0
STOP_S = 30.0
MIDNIGHT = 1_767_225_600
"""2026-01-01T00:00:00Z: the start of a day, of an hour and of a window."""


class TestCity:
    """A development city in a folder of its own. Leaving the block kills what still runs."""

    __test__ = False

    def __init__(self, paths: CityPaths, clock: ScaledClock | None, window_length: int) -> None:
        self.paths = paths
        self.clock = clock
        self.window_length = window_length
        self.meters: list[MeterKeys] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        meters: int = 0,
        min_cohort: int = 100,
        origin: float | None = MIDNIGHT,
        rate: float = 1.0,
        **options: Any,
    ) -> Self:
        """Make a city in ``folder/city``.

        Args:
            folder: usually pytest's ``tmp_path``.
            meters: how many meters get keys (``meters/fleet.jsonl``); :meth:`enrol` enrols them.
            min_cohort: as in :class:`CityOptions`.
            origin: metering time now; None for the machine's clock.
            rate: metering seconds per real second.
            options: of :class:`CityOptions`.
        """
        development = CityOptions(
            min_cohort=min_cohort, development=True, addresses=free_addresses()
        )
        made = replace(development, **options)
        paths = create_city(folder / "city", made)
        clock = None if origin is None else ScaledClock(origin, time.time(), rate)
        city = cls(paths, clock, made.window_length)
        city.meters = [MeterKeys.create() for _ in range(meters)]
        if meters:
            write_fleet(paths.fleet, city.meters)
        return city

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for role in list(self._processes):
            self.kill(role)

    def start(self, role: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Start a service and wait until it serves."""
        process = self.spawn(role, environment=environment)
        line = first_line(process, START_S)
        if not line:
            self.kill(role)
            raise AssertionError(f"{role} did not start:\n{self.log(role)[-4000:]}")
        assert json.loads(line)["event"] == "serving"

    def spawn(
        self, role: str, *, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a service without waiting."""
        assert role not in self._processes, f"{role} runs already"
        logs = self.paths.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{role}.jsonl").open("ab") as log:
            process = subprocess.Popen(
                self.command(role),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        self._processes[role] = process
        return process

    def start_all(self) -> None:
        """Start every service, in order."""
        for role in SERVICES:
            self.start(role)

    def stop(self, role: str) -> int:
        """SIGTERM; the exit code."""
        return self._end(role, signal.SIGTERM)

    def kill(self, role: str) -> int:
        """SIGKILL; the exit code."""
        return self._end(role, signal.SIGKILL)

    def restart(self, role: str) -> None:
        """Kill a service and start it again."""
        self.kill(role)
        self.start(role)

    def pid(self, role: str) -> int:
        """Process id of a running service."""
        return self._processes[role].pid

    def command(self, role: str) -> list[str]:
        """The command line of a service."""
        config = str(self.paths.config(role))
        command = [sys.executable, "-m", "gridveil.cli", role, "serve", "--config", config]
        return command + self.clock_arguments()

    def clock_arguments(self) -> list[str]:
        """The options that give a process this city's clock."""
        if self.clock is None:
            return []
        clock = self.clock
        origin = f"{clock.origin!r}@{clock.started!r}"
        return ["--clock-origin", origin, "--clock-rate", repr(clock.rate)]

    def log(self, role: str) -> str:
        """What a service wrote to standard error."""
        path = self.paths.folder / "logs" / f"{role}.jsonl"
        return path.read_text("utf-8") if path.exists() else ""

    def profile(self, client: str) -> Profile:
        """The profile of a client role."""
        return Profile.load(self.paths.profile(client))

    def enrol(self) -> RosterVersion:
        """Enrol all meters, from the next window on."""
        city_id = self.profile("registrar").city_id
        with Registrar.open(self.profile("registrar")) as registrar:
            version = registrar.enrol(meter.enrolment_request(city_id) for meter in self.meters)
        assert version is not None
        return version

    def now(self) -> float:
        """Metering time."""
        return time.time() if self.clock is None else self.clock.now()

    def window(self, ahead: int = 0) -> int:
        """The window that metering time is in, or one so many windows ahead."""
        return (int(self.now() // self.window_length) + ahead) * self.window_length

    def wait_until(self, metering: float) -> None:
        """Wait for a metering time."""
        rate = 1.0 if self.clock is None else self.clock.rate
        while (missing := metering - self.now()) > 0:
            time.sleep(min(missing / rate, 1.0))

    def _end(self, role: str, how: signal.Signals) -> int:
        process = self._processes.pop(role)
        process.send_signal(how)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{role} did not end within {STOP_S} s of {how.name}") from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        return code


def first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """What a process prints first; empty if it ends, or is silent for too long."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    return process.stdout.readline() if readable else b""


def free_addresses() -> dict[str, str]:
    """An unused loopback address for each service, below the ports of outgoing connections."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < len(SERVICES):
            fresh = socket.socket()
            sockets.append(fresh)
            try:
                fresh.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            except OSError:
                sockets.pop().close()
        addresses = (f"127.0.0.1:{fresh.getsockname()[1]}" for fresh in sockets)
        return dict(zip(SERVICES, addresses, strict=True))
    finally:
        for fresh in sockets:
            fresh.close()
