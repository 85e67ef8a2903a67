"""A whole city on one machine: made, enrolled, played and looked at."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Empty, Queue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys, read_fleet, write_fleet
from gridveil.operator import NotReleased, Operator, Outcome, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.city import MOST_FAILURES
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.release import Total
from gridveil.protocol.windows import lane_of
from gridveil.registrar import Registrar, Suspect
from gridveil.simulator.plan import Tally
from gridveil.simulator.replay import Simulator
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import SERVICES, CityPaths
from gridveil_services.demo.console import wait_for_signal, watched
from gridveil_services.demo.inspection import Findings, LoggedEpoch, epochs, inspect
from gridveil_services.demo.misbehaviour import Lie, MisbehavingMeters, choose, turn
from gridveil_services.demo.plan import WINDOW_S, DemoPlan, Truth
from gridveil_services.demo.processes import ServiceProcess
from gridveil_services.demo.redis_cluster import RedisCluster

_ENROL_AHEAD_S = 4 * 3600
"""Metering time between enrolment and the first window."""

_SPARE_STARTS = 2.0
"""The services get this many times their first starting time before the first window ends."""

_LEAST_LEAD_S = 4.0
_KILLED_AFTER = 0.2
"""Part of the grace period: households send over its first two thirds."""
_DEAD_S = 5.0
"""Longer than a lease: another aggregator leads meanwhile."""
_MOST_SUSPECTS = 2 * MOST_FAILURES
_PATIENCE_S = 30.0
"""How long totals may take after the last window is closed, real seconds."""


@dataclass(frozen=True)
class Misbehaved:
    """What a meter did in one window."""

    meter_id: bytes
    lie: Lie


@dataclass(frozen=True)
class Killed:
    """An aggregator that was killed, and started again later."""

    name: str
    window_start: int
    """The window whose reports were coming in."""


@dataclass(frozen=True)
class WindowResult:
    """One window as it came out, beside the truth."""

    window_start: int
    outcome: Outcome | None
    """None if it was not settled."""
    truth: Truth
    """Of every household with a reading whose lane was not left out."""
    misbehaved: Misbehaved | None = None

    @property
    def left_out(self) -> tuple[int, ...]:
        """Lanes without which the total is."""
        return self.outcome.total.left_out if isinstance(self.outcome, ReleasedTotal) else ()

    @property
    def exact(self) -> bool:
        """Whether the total is the plain sum over every household that it has to count."""
        return (
            isinstance(self.outcome, ReleasedTotal)
            and self.outcome.count == self.truth.households
            and all(self.outcome.sum(name) == wh for name, wh in self.truth.sums.items())
        )


@dataclass(frozen=True)
class DemoResult:
    """How a demonstration ended."""

    city_id: bytes
    city: CityOptions
    rate: float
    windows: list[WindowResult]
    tally: Tally
    findings: Findings
    folder: Path | None
    """Where the city was kept."""
    epochs: list[LoggedEpoch]
    misbehaving: tuple[bytes, ...]
    """Meters that did."""
    suspects: list[Suspect]
    """As the registrar was told at the end."""
    killed: Killed | None = None
    """In a cluster."""

    @property
    def exact(self) -> int:
        """Windows whose total was exact."""
        return sum(window.exact for window in self.windows)

    @property
    def as_expected(self) -> bool:
        """Whether every total was exact, and who misbehaved leads the suspects."""
        leaders = {suspect.meter_id for suspect in self.suspects[: len(self.misbehaving)]}
        return self.exact == len(self.windows) and leaders == set(self.misbehaving)


class Audience(Protocol):
    """Who is told what happens."""

    def opened(self, address: str) -> None:
        """The console is there; the address logs one person in."""
        ...

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
        if plan.options.cluster:
            audience.step("starting a Redis Cluster of three masters")
            plan.redis_nodes = stack.enter_context(_redis(stack)).nodes
        audience.step("making a city: identities, keys, certificates")
        paths = create_city(folder, plan.city)
        start_s = _enrol(plan, paths, audience)
        clock = _clock(plan, start_s)
        several = f"{plan.options.cluster} aggregators" if plan.options.cluster else "aggregator"
        audience.step(f"starting key-holder, {several} and totals service")
        with ExitStack() as running:
            services = running.enter_context(_serving(plan, paths, clock))
            if plan.options.console:
                audience.opened(running.enter_context(watched(plan, paths, clock)))
            audience.step(
                f"replaying {plan.options.windows} windows of {WINDOW_S} s; one takes"
                f" {clock.real(WINDOW_S):.1f} s here"
            )
            play = _Play(plan, paths, clock, audience, services)
            windows, tally = play.run()
            suspects = _suspects(paths)
            if plan.options.console:
                audience.step("all windows are played; the console stays until Ctrl-C")
                wait_for_signal()
        return DemoResult(
            city_id=Profile.load(paths.profile("operator")).city_id,
            city=plan.city,
            rate=clock.rate,
            windows=windows,
            tally=tally,
            findings=inspect(paths),
            folder=plan.options.keep,
            epochs=epochs(paths),
            misbehaving=play.misbehaving,
            suspects=suspects,
            killed=play.killed,
        )


def _redis(stack: ExitStack) -> RedisCluster:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gridveil-demo-redis-"))
    return RedisCluster(Path(folder))


def _suspects(paths: CityPaths) -> list[Suspect]:
    with Registrar.open(Profile.load(paths.profile("registrar"))) as registrar:
        return registrar.suspects(_MOST_SUSPECTS)


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
    processes = len(SERVICES) + len(plan.options.aggregators) - 1 + 2 * plan.options.console
    lead_s = max(_LEAST_LEAD_S, processes * _SPARE_STARTS * start_s)
    rate = plan.rate(start_s)
    return ScaledClock(plan.first_window + WINDOW_S - rate * lead_s, time.time(), rate)


@contextmanager
def _serving(
    plan: DemoPlan, paths: CityPaths, clock: ScaledClock
) -> Iterator[dict[str, ServiceProcess]]:
    services = {
        name: ServiceProcess(name, paths, clock)
        for name in dict.fromkeys((*SERVICES, *plan.options.aggregators))
    }
    with ExitStack() as stopped:  # each of them, whatever happens to the others
        for service in services.values():
            service.start()
            stopped.callback(_stop_if_running, service)
        yield services


def _stop_if_running(service: ServiceProcess) -> None:
    if service.running:
        service.stop()


class _Play:
    """Households on one thread, an operator on another, and the clock."""

    def __init__(
        self,
        plan: DemoPlan,
        paths: CityPaths,
        clock: ScaledClock,
        audience: Audience,
        services: Mapping[str, ServiceProcess],
    ) -> None:
        self._services = services
        self.killed: Killed | None = None
        self._plan = plan
        self._paths = paths
        self._clock = clock
        self._audience = audience
        self._settled: Queue[Outcome] = Queue()
        self._fleet = list(read_fleet(paths.fleet))
        self._liars = self._choose() if plan.options.misbehaving else []
        self._tallies: list[Tally] = []
        self._failure: GridveilError | None = None

    @property
    def misbehaving(self) -> tuple[bytes, ...]:
        """The meters that do."""
        return tuple(self._fleet[place].meter_id for place in self._liars)

    def _choose(self) -> list[int]:
        """Places in the fleet of the meters that misbehave."""
        plan = self._plan
        with Registrar.open(Profile.load(self._paths.profile("registrar"))) as registrar:
            parameters = registrar.parameters(plan.windows[plan.options.misbehaving - 1])
        fleet = [meter.meter_id for meter in self._fleet]
        return choose(fleet, plan.options.misbehaving, parameters, plan.windows)

    def run(self) -> tuple[list[WindowResult], Tally]:
        households = threading.Thread(target=self._guarded(self._report), daemon=True)
        operator = threading.Thread(target=self._guarded(self._watch), daemon=True)
        others = threading.Thread(target=self._guarded(self._misbehave), daemon=True)
        killer = threading.Thread(target=self._guarded(self._kill), daemon=True)
        killer.start()
        operator.start()
        households.start()
        others.start()
        results = self._collect()
        households.join(_PATIENCE_S)
        others.join(_PATIENCE_S)
        killer.join(_PATIENCE_S)
        if all(result.outcome for result in results):
            operator.join()
        return results, joined(self._tallies)

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                work()
            except GridveilError as error:
                self._failure = error

        return guarded

    def _report(self) -> None:
        profile = Profile.load(self._paths.profile("gateway"))
        places = [place for place in range(len(self._fleet)) if place not in self._liars]
        honest, source = [self._fleet[place] for place in places], self._plan.part(places)
        outbox = self._paths.meters / "outbox.db"
        with Simulator(profile, honest, source, outbox, clock=self._clock) as simulator:
            tally = simulator.run(
                self._plan.first_window, self._plan.options.windows, self._audience.progress
            )
        self._tallies.append(tally)

    def _misbehave(self) -> None:
        if self._liars:
            meters = MisbehavingMeters(
                Profile.load(self._paths.profile("gateway")),
                [self._fleet[place] for place in self._liars],
                self._plan.part(self._liars).readings,
                WINDOW_S,
                self._paths.meters / "misbehaving.db",
                self._clock,
            )
            self._tallies.append(meters.run())

    def _kill(self) -> None:
        """Kill the aggregator that leads in the midst of a window's reports; start it again."""
        if not self._plan.options.cluster:
            return
        window = self._plan.windows[(len(self._plan.windows) - 1) // 2]
        at = window + WINDOW_S + self._plan.city.grace * _KILLED_AFTER
        self._clock.sleep(at - self._clock.now())
        name = self._plan.options.aggregators[0]
        self._services[name].kill()
        self.killed = Killed(name, window)
        self._audience.step(f"killed {name} in the midst of a window's reports")
        time.sleep(_DEAD_S)
        self._services[name].start()

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
            if outcome.window_start in self._plan.truth:
                result = self._result(outcome.window_start, outcome)
                results[outcome.window_start] = result
                self._audience.window(result)
        return [results.get(window) or self._result(window, None) for window in self._plan.windows]

    def _result(self, window: int, outcome: Outcome | None) -> WindowResult:
        truth = self._plan.truth[window]
        if isinstance(outcome, ReleasedTotal) and outcome.total.left_out:
            truth = self._plan.truth_of(window, self._counted(outcome.total))
        return WindowResult(window, outcome, truth, self._misbehaved(window))

    def _counted(self, total: Total) -> NDArray[np.bool_]:
        """Which meters of the fleet are in lanes that the total has."""
        lanes = (
            lane_of(total.epoch_id, total.window_start, meter.meter_id, total.lanes)
            for meter in self._fleet
        )
        return np.array([lane not in total.left_out for lane in lanes])

    def _misbehaved(self, window: int) -> Misbehaved | None:
        if not self._liars:
            return None
        whose = turn(len(self._liars), self._plan.windows.index(window))
        return Misbehaved(self.misbehaving[whose.liar], whose.lie) if whose else None


def joined(tallies: Sequence[Tally]) -> Tally:
    """One tally of meters that were played apart."""
    whole = Tally()
    for tally in tallies:
        for field in fields(Tally):
            if field.name in {"first_window", "windows"}:
                setattr(whole, field.name, getattr(tally, field.name) or getattr(whole, field.name))
            else:
                setattr(whole, field.name, getattr(whole, field.name) + getattr(tally, field.name))
    return whole


def why_missing(result: WindowResult) -> str:
    """Why a window has no total."""
    if isinstance(result.outcome, NotReleased):
        return result.outcome.reason.value
    return "NOT_SETTLED"
