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

import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys, write_fleet
from gridveil.profile import Profile
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.protocol.roster import RosterVersion
from gridveil.registrar import Registrar
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import LISTENING, SERVICES, CityPaths
from gridveil_services.demo.processes import ServiceProcess, clock_arguments
from tests.support.ports import spare_addresses

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
        self.services = {role: ServiceProcess(role, paths, clock) for role in LISTENING}

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
            options: of :class:`CityOptions`, whose budget of refusals is the largest there is
                unless they say otherwise.
        """
        development = CityOptions(
            min_cohort=min_cohort,
            refusals_per_day=MOST_REFUSALS_PER_DAY,
            development=True,
            addresses=spare_addresses(),
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
        for service in self.services.values():
            if service.running:
                service.kill()

    def start(self, role: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Start a service and wait until it serves."""
        try:
            self.services[role].start(environment=environment)
        except GridveilError as error:
            raise AssertionError(f"{error}:\n{self.log(role)[-4000:]}") from None

    def spawn(
        self, role: str, *, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a service without waiting."""
        return self.services[role].spawn(environment=environment)

    def start_all(self) -> None:
        """Start every service, in order, but the controller: a city does without."""
        for role in SERVICES:
            self.start(role)

    def stop(self, role: str) -> int:
        """SIGTERM; the exit code."""
        return self.services[role].stop()

    def kill(self, role: str) -> int:
        """SIGKILL; the exit code."""
        return self.services[role].kill()

    def restart(self, role: str) -> None:
        """Kill a service and start it again."""
        self.kill(role)
        self.start(role)

    def pid(self, role: str) -> int:
        """Process id of a running service."""
        return self.services[role].process.pid

    def command(self, role: str) -> list[str]:
        """The command line of a service."""
        return self.services[role].command

    def clock_arguments(self) -> list[str]:
        """The options that give a process this city's clock."""
        return clock_arguments(self.clock)

    def log(self, role: str) -> str:
        """What a service wrote to standard error."""
        path = self.services[role].log
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
