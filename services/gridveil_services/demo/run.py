"""A whole city on one machine: made, enrolled, played and looked at."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Protocol

from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys, read_fleet, write_fleet
from gridveil.operator import NotReleased, Operator, Outcome, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.errors import GridveilError
from gridveil.registrar import Registrar
from gridveil.simulator.plan import Tally
from gridveil.simulator.replay import Simulator
from gridveil_services.bootstrap.city import create_city
from gridveil_services.bootstrap.layout import SERVICES, CityPaths
from gridveil_services.demo.inspection import Findings, inspect
from gridveil_services.demo.plan import WINDOW_S, DemoPlan, Truth
from gridveil_services.demo.processes import ServiceProcess

_ENROL_AHEAD_S = 4 * 3600
"""Metering time between enrolment and the first window."""

_SPARE_STARTS = 2.0
"""The services get this many times their first starting time before the first window ends."""

_LEAST_LEAD_S = 4.0
_PATIENCE_S = 30.0
"""How long totals may take after the last window is closed, real seconds."""


@dataclass(frozen=True)
class WindowResult:
    """One window as it came out, beside the truth."""

    window_start: int
    outcome: Outcome | None
    """None if it was not settled."""
    truth: Truth

    @property
    def exact(self) -> bool:
        """Whether the total is the plain sum over every household with a reading."""
        return (
            isinstance(self.outcome, ReleasedTotal)
            and self.outcome.count == self.truth.households
            and all(self.outcome.sum(name) == wh for name, wh in self.truth.sums.items())
        )


@dataclass(frozen=True)
class DemoResult:
    """How a demonstration ended."""

    city_id: bytes
    rate: float
    windows: list[WindowResult]
    tally: Tally
    findings: Findings
    folder: Path | None
    """Where the city was kept."""

    @property
    def exact(self) -> int:
        """Windows whose total was exact."""
        return sum(window.exact for window in self.windows)


class Audience(Protocol):
    """Who is told what happens."""

    def step(self, text: str) -> None:
        """Something begins."""
        ...

    def window(self, result: WindowResult) -> None:
        """A window is settled."""
        ...

    def progress(self, tally: Tally) -> None:
        """Reports were sent."""
        ...


def run_demo(plan: DemoPlan, audience: Audience) -> DemoResult:
    """Play a plan; the services run as processes of their own, and are stopped at the end.

    Raises:
        GridveilError: a service did not start, or the city could not be made.
    """
    with ExitStack() as stack:
        folder = plan.options.keep or Path(stack.enter_context(_temporary())) / "city"
        audience.step("making a city: identities, keys, certificates")
        paths = create_city(folder, plan.city)
        start_s = _enrol(plan, paths, audience)
        clock = _clock(plan, start_s)
        audience.step("starting key-holder, aggregator and totals service")
        with _serving(paths, clock):
            audience.step(
                f"replaying {plan.options.windows} windows of {WINDOW_S} s; one takes"
                f" {clock.real(WINDOW_S):.1f} s here"
            )
            windows, tally = _Play(plan, paths, clock, audience).run()
        return DemoResult(
            city_id=Profile.load(paths.profile("operator")).city_id,
            rate=plan.rate,
            windows=windows,
            tally=tally,
            findings=inspect(paths),
            folder=plan.options.keep,
        )


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gridveil-demo-")


def _enrol(plan: DemoPlan, paths: CityPaths, audience: Audience) -> float:
    """Enrol the households; how long the key-holder took to start, in real seconds."""
    clock = ScaledClock(plan.first_window - _ENROL_AHEAD_S, time.time(), 1.0)
    keyholder = ServiceProcess("keyholder", paths, clock)
    start_s = keyholder.start()
    try:
        meters = [MeterKeys.create() for _ in range(plan.options.meters)]
        write_fleet(paths.fleet, meters)
        audience.step(f"enrolling {len(meters)} households")
        profile = Profile.load(paths.profile("registrar"))
        with Registrar.open(profile) as registrar:
            registrar.enrol(meter.enrolment_request(profile.city_id) for meter in meters)
    finally:
        keyholder.stop()
    return start_s


def _clock(plan: DemoPlan, start_s: float) -> ScaledClock:
    lead_s = max(_LEAST_LEAD_S, len(SERVICES) * _SPARE_STARTS * start_s)
    return ScaledClock(plan.first_window + WINDOW_S - plan.rate * lead_s, time.time(), plan.rate)


@contextmanager
def _serving(paths: CityPaths, clock: ScaledClock) -> Iterator[None]:
    with ExitStack() as stopped:  # each of them, whatever happens to the others
        for role in SERVICES:
            service = ServiceProcess(role, paths, clock)
            service.start()
            stopped.callback(service.stop)
        yield


class _Play:
    """Households on one thread, an operator on another, and the clock."""

    def __init__(
        self, plan: DemoPlan, paths: CityPaths, clock: ScaledClock, audience: Audience
    ) -> None:
        self._plan = plan
        self._paths = paths
        self._clock = clock
        self._audience = audience
        self._settled: Queue[Outcome] = Queue()
        self._tally = Tally()
        self._failure: GridveilError | None = None

    def run(self) -> tuple[list[WindowResult], Tally]:
        households = threading.Thread(target=self._guarded(self._report), daemon=True)
        operator = threading.Thread(target=self._guarded(self._watch), daemon=True)
        operator.start()
        households.start()
        results = self._collect()
        households.join(_PATIENCE_S)
        if all(result.outcome for result in results):
            operator.join()
        return results, self._tally

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                work()
            except GridveilError as error:
                self._failure = error

        return guarded

    def _report(self) -> None:
        profile = Profile.load(self._paths.profile("gateway"))
        fleet = list(read_fleet(self._paths.fleet))
        outbox = self._paths.meters / "outbox.db"
        with Simulator(profile, fleet, self._plan.source, outbox, clock=self._clock) as simulator:
            self._tally = simulator.run(
                self._plan.first_window, self._plan.options.windows, self._audience.progress
            )

    def _watch(self) -> None:
        awaited = set(self._plan.windows)
        with Operator.open(self._paths.profile("operator")) as operator:
            for outcome in operator.watch(self._plan.first_window):
                self._settled.put(outcome)
                awaited.discard(outcome.window_start)
                if not awaited:
                    return

    def _collect(self) -> list[WindowResult]:
        results: dict[int, WindowResult] = {}
        last = self._plan.windows[-1]
        over = last + WINDOW_S + self._plan.city.grace
        patience = time.monotonic() + self._clock.real(over - self._clock.now()) + _PATIENCE_S
        while len(results) < len(self._plan.windows) and time.monotonic() < patience:
            if self._failure is not None:
                raise self._failure
            try:
                outcome = self._settled.get(timeout=0.2)
            except Empty:
                continue
            truth = self._plan.truth.get(outcome.window_start)
            if truth is not None:
                result = WindowResult(outcome.window_start, outcome, truth)
                results[outcome.window_start] = result
                self._audience.window(result)
        return [
            results.get(window, WindowResult(window, None, self._plan.truth[window]))
            for window in self._plan.windows
        ]


def why_missing(result: WindowResult) -> str:
    """Why a window has no total."""
    if isinstance(result.outcome, NotReleased):
        return result.outcome.reason.value
    return "NOT_SETTLED"
