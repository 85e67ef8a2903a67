"""A controller in this process, beside a real totals service whose windows a test publishes.

with ControlledCity.create(tmp_path) as city:
    city.release(0, city.watts(500_000))
    city.until(lambda signal: signal.basis is Basis.MEASURED)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gridveil.clock import ManualClock
from gridveil.control import AsyncControlClient, ControlClient, ControlSignal
from gridveil.operator import Operator
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.controller.config import ControllerConfig
from gridveil_services.controller.serve import JOURNAL_FILE, ControllerProcess
from gridveil_services.metrics.config import Address
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.city import MIDNIGHT
from tests.support.ports import spare_addresses
from tests.support.totals import (
    city_identity,
    expired,
    open_window,
    publish,
    refused,
    released,
)

LENGTH = 900
METERS = 100
SETTLE_S = 320
"""From a window's end until it is settled, where a test does not say otherwise."""
PATIENCE_S = 20.0
RULES = {"capacity_w": 1_000_000, "hysteresis_w": 10_000, "ramp_limit_w": 200_000}
"""Level 1 from 850 kW, 2 from 920, 3 from 1,000."""


@dataclass(frozen=True)
class RunningController:
    """A controller and where it is."""

    process: ControllerProcess
    address: str
    journal: Path


@contextmanager
def running_controller(
    paths: CityPaths, clock: ManualClock, metrics: Address | None = None
) -> Iterator[RunningController]:
    """A controller with the usual rules, in a city that somebody else made and runs."""
    write_rules(paths)
    config = replace(ControllerConfig.load(paths.config("controller")), metrics=metrics)
    process = ControllerProcess(config, clock)
    try:
        yield RunningController(process, process.start(), config.state / JOURNAL_FILE)
    finally:
        process.stop()


def write_rules(paths: CityPaths, **rules: Any) -> None:
    """The operator's ``control.toml``."""
    text = "\n".join(f"{key} = {value}" for key, value in (RULES | rules).items())
    (paths.role("controller") / "control.toml").write_text(text + "\n")


class ControlledCity:
    """Totals service and controller of one city, on a clock that the test moves."""

    def __init__(self, paths: CityPaths, now: float) -> None:
        self.paths = paths
        self.clock = ManualClock(now)
        self.totals: TotalsProcess | None = None
        self.controller: ControllerProcess | None = None
        self.policy, self._signer = city_identity(paths)

    @classmethod
    @contextmanager
    def create(
        cls, folder: Path, *, now: float = MIDNIGHT, start: bool = True, **rules: Any
    ) -> Iterator[ControlledCity]:
        """Make a city with these rules; ``start`` both services. All of it stops with the block."""
        options = CityOptions(min_cohort=METERS, development=True, addresses=spare_addresses())
        city = cls(create_city(folder / "city", options), now)
        city.write_rules(**rules)
        try:
            if start:
                city.start_totals()
                city.start_controller()
            yield city
        finally:
            city.stop_controller()
            city.stop_totals()

    @property
    def config_file(self) -> Path:
        return self.paths.config("controller")

    def write_rules(self, **rules: Any) -> None:
        write_rules(self.paths, **rules)

    def configure(self, text: str) -> None:
        """Put something before everything else in ``controller.toml``."""
        self.config_file.write_text(text + self.config_file.read_text())

    def add_section(self, text: str) -> None:
        """Put a section behind everything else in ``controller.toml``."""
        self.config_file.write_text(self.config_file.read_text() + text)

    def start_totals(self) -> None:
        self.totals = TotalsProcess(TotalsConfig.load(self.paths.config("totals")))
        self.totals.start()

    def stop_totals(self) -> None:
        if self.totals is not None:
            self.totals.stop()
            self.totals = None

    def start_controller(self) -> None:
        self.controller = ControllerProcess(ControllerConfig.load(self.config_file), self.clock)
        self.controller.start()

    def stop_controller(self) -> None:
        if self.controller is not None:
            self.controller.stop()
            self.controller = None

    def window(self, at: int) -> int:
        return MIDNIGHT + at * LENGTH

    def record(self, at: int, power_w: int, *, count: int = METERS) -> LogRecord:
        """The log's record of a released window: the sum of ``count`` of 100 meters, as power."""
        energy, rest = divmod(power_w * LENGTH // 3600, count)
        values = [[energy + (meter < rest), 0] for meter in range(count)]
        window = self.window(at)
        return released(
            open_window(self.policy, self._signer, window, values, enrolled=METERS, seed=at)
        )

    def release(self, at: int, power_w: int, *, count: int = METERS, settle: bool = True) -> None:
        """Publish a total, at the time when windows are settled."""
        if settle:
            self.settle(at)
        publish(self.paths, self.record(at, power_w, count=count))

    def publish(self, *records: LogRecord) -> None:
        """Publish records, and wait until the totals service has read them."""
        publish(self.paths, *records)
        assert self.totals is not None
        deadline = time.monotonic() + PATIENCE_S
        newest = max(record.released.window_start for record in records)
        with Operator.open(self.paths.profile("operator")) as operator:
            while newest not in [outcome.window_start for outcome in operator.list()]:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def refuse(self, at: int) -> None:
        self.settle(at)
        publish(self.paths, refused(self.window(at)))

    def expire(self, at: int) -> None:
        publish(self.paths, expired(self.window(at)))

    def settle(self, at: int) -> None:
        """Let time come to where a window is settled, by way of every tick before."""
        self.pass_to(self.window(at + 1) + SETTLE_S)

    def pass_to(self, time_: float) -> None:
        """Let metering time pass; what is due on the way happens when it is due."""
        while self.controller is not None and self.controller.signaller.next_tick <= time_:
            due = self.controller.signaller.next_tick
            self.clock.move_to(due)
            self.until_time(due)
        self.clock.move_to(time_)

    def client(self, role: str = "operator") -> ControlClient:
        return ControlClient.open(self.paths.profile(role))

    def async_client(self, role: str = "operator") -> AsyncControlClient:
        return AsyncControlClient.open(self.paths.profile(role))

    def until(self, holds: Callable[[ControlSignal], bool]) -> ControlSignal:
        """The signal that stands, once something holds for it."""
        deadline = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while not holds(found := client.signal()):
                assert time.monotonic() < deadline, f"stays {found}"
                time.sleep(0.01)
        return found

    def until_time(self, time_: float) -> ControlSignal:
        """The signal that stands, once there is one at or after a time."""
        return self.until(lambda signal: signal.at >= time_)

    def until_window(self, at: int) -> ControlSignal:
        """The signal that stands, once it is about a window."""
        return self.until(lambda signal: signal.window_start == self.window(at))

    def signals(self) -> list[ControlSignal]:
        """All signals so far."""
        with self.client() as client:
            newest = client.signal().number
            found: list[ControlSignal] = []
            for signal in client.watch(1):
                found.append(signal)
                if signal.number == newest:
                    break
        return found
