"""Key-holder, aggregator and totals service as processes of this machine, on a scaled clock."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gridveil.clock import ScaledClock
from gridveil.loadtest.city import City, LocalSetup
from gridveil.loadtest.load import Load
from gridveil.meter_identity import MeterKeys
from gridveil.profile import Profile
from gridveil.protocol.city import MIN_HONEST
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.registrar import Registrar
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import SERVICES, CityPaths
from gridveil_services.demo.processes import ServiceProcess, free_addresses
from gridveil_services.demo.redis_cluster import RedisCluster
from gridveil_services.loadtest.processor_time import children, cpu_seconds

WINDOW_S = 60
"""Metering seconds: the shortest there are, so that a day's epoch serves 1,440 windows."""
_GRACE_S = 10 * WINDOW_S
"""A machine that is too slow for its windows is late with the next ones, and still in time. It
costs nothing: a window is sealed as soon as all have reported."""
_GRACE_WITH_LATE_S = 2 * WINDOW_S
"""Late reports wait for its end, and the total waits for them."""

_MOST_WINDOWS = 1_400
_MIDNIGHT = int(datetime(2026, 1, 15, tzinfo=UTC).timestamp())
_AHEAD_S = 10 * WINDOW_S
"""Metering time from enrolment to the start of the services."""

_LEAST_COVERAGE = 0.5
_SHORTEST_WINDOW_S = 3.0
_WINDOW_S_A_START_S = 2.5
_WINDOW_S_A_REPORT = 0.0005
_START_S = 1.5
"""What a key-holder takes to start on a machine on which the figure above holds."""


@dataclass(frozen=True)
class Running:
    """A city that runs."""

    city: City
    paths: CityPaths
    services: Mapping[str, ServiceProcess]
    """By role."""


@contextmanager
def local_city(load: Load, setup: LocalSetup, told: Callable[[str], None]) -> Iterator[City]:
    """A city with the load's meters enrolled and its services running, until the block ends."""
    with running_city(load, setup, told) as running:
        yield running.city


@contextmanager
def running_city(load: Load, setup: LocalSetup, told: Callable[[str], None]) -> Iterator[Running]:
    """The same, with its files and processes."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gridveil-loadtest-"))
        told("making a city on this machine: identities, keys, certificates")
        nodes = _redis(Path(folder), told, stack) if setup.workers > 1 else ()
        paths = create_city(Path(folder) / "city", _options(load, nodes))
        told(f"enrolling {load.meters:,} meters")
        meters = [MeterKeys.create() for _ in range(load.meters)]
        start_s = _enrol(paths, meters)
        window_s = window_seconds(load, start_s)
        if load.windows_at(window_s) > _MOST_WINDOWS:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"a city on this machine has {_MOST_WINDOWS} windows, of {window_s:.1f} s here",
            )
        told(f"starting key-holder, aggregator and totals service; a window takes {window_s:.1f} s")
        clock = ScaledClock(_MIDNIGHT + _AHEAD_S, time.time(), WINDOW_S / window_s)
        running = _start(paths, clock, setup, stack)
        city = _city(paths, meters, clock, running)
        if setup.kill_worker:
            city = replace(city, half_way=lambda: _kill_one(running["aggregator"], told))
        yield Running(city, paths, running)


def window_seconds(load: Load, start_s: float) -> float:
    """Real seconds of a window: long enough to prepare, send and release its reports.

    Args:
        load: what is sent in a window.
        start_s: how long the key-holder took to start here just now; a slow machine gets longer
            windows.
    """
    slowness = max(1.0, start_s / _START_S)
    work_s = load.timely * _WINDOW_S_A_REPORT * slowness
    return max(_SHORTEST_WINDOW_S, start_s * _WINDOW_S_A_START_S, load.sending_s or work_s)


def _redis(folder: Path, told: Callable[[str], None], stack: ExitStack) -> tuple[str, ...]:
    told("starting a Redis Cluster of three masters")
    return stack.enter_context(RedisCluster(folder / "redis")).nodes


def _kill_one(parent: ServiceProcess, told: Callable[[str], None]) -> None:
    """Kill one of the workers; it is started again by their parent."""
    os.kill(children(parent.process.pid)[0], signal.SIGKILL)
    told("killed a worker")


def _options(load: Load, redis_nodes: tuple[str, ...]) -> CityOptions:
    return CityOptions(
        window_length=WINDOW_S,
        grace=_GRACE_WITH_LATE_S if load.late else _GRACE_S,
        min_cohort=MIN_HONEST,
        min_coverage=_LEAST_COVERAGE,
        refusals_per_day=MOST_REFUSALS_PER_DAY,
        development=True,
        addresses=free_addresses(),
        redis_nodes=redis_nodes,
    )


def _enrol(paths: CityPaths, meters: Sequence[MeterKeys]) -> float:
    """Enrol the meters; how many real seconds the key-holder took to start."""
    keyholder = ServiceProcess("keyholder", paths, ScaledClock(_MIDNIGHT, time.time(), 1.0))
    start_s = keyholder.start()
    try:
        profile = Profile.load(paths.profile("registrar"))
        with Registrar.open(profile) as registrar:
            registrar.enrol(meter.enrolment_request(profile.city_id) for meter in meters)
    finally:
        keyholder.stop()
    return start_s


def _start(
    paths: CityPaths, clock: ScaledClock, setup: LocalSetup, stack: ExitStack
) -> dict[str, ServiceProcess]:
    found = {}
    for role in SERVICES:
        service = found[role] = ServiceProcess(role, paths, clock)
        if role == "aggregator" and setup.workers > 1:
            service.command += ["--workers", str(setup.workers)]
        service.start()
        stack.callback(_stop, service)
    return found


def _stop(service: ServiceProcess) -> None:
    if service.running:
        service.stop()


def _city(
    paths: CityPaths,
    meters: Sequence[MeterKeys],
    clock: ScaledClock,
    running: Mapping[str, ServiceProcess],
) -> City:
    def used() -> dict[str, float]:
        return {role: cpu_seconds(service.process.pid) for role, service in running.items()}

    return City(
        Profile.load(paths.profile("gateway")),
        Profile.load(paths.profile("operator")),
        meters,
        clock,
        used,
    )
