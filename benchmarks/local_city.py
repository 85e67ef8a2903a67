"""A development city for measuring in: its files, its running services, its enrolled meters."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.fleet import BATCH, Fleet
from benchmarks.load import START_S, ServerProcess, module, serving
from benchmarks.measure import progress
from gridveil.profile import Profile
from gridveil.protocol.city import (
    CityParameters,
    CityPolicy,
    EntryAudience,
    Epoch,
    FailingLanes,
    Register,
)
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.protocol.sealing import x25519_public
from gridveil.registrar import Registrar
from gridveil.transport import channel_credentials, channel_options
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import SERVICES, CityPaths
from gridveil_services.keyholder.epoch_keys import generate_ckks_keys
from gridveil_services.keyholder.epoch_store import Secrets, SignedParameters

DAY = 1_700_006_400
"""Some UTC midnight, and so the start of an epoch."""

DAY_S = 86_400
NOON = DAY + DAY_S // 2
LENGTH = 900
HEALTH = "/grpc.health.v1.Health/Check"
WINDOW = NOON + LENGTH
"""The window that is measured; meters are enrolled in the one before."""

GRACE_S = 7_200
"""Long enough for the slowest measurement; the window stays open for it in real time."""


@dataclass(frozen=True)
class LocalCity:
    """A running city with its fleet enrolled and ``WINDOW`` open for reports."""

    paths: CityPaths
    keyholder: ServerProcess
    aggregator: ServerProcess
    parameters: CityParameters
    ahead: float
    """Seconds that metering time is ahead of real time."""

    def gateway_channels(self, count: int, address: str | None = None) -> list[grpc.Channel]:
        """Connections of a gateway to the aggregator, or to a stand-in with its certificate."""
        profile = Profile.load(self.paths.profile("gateway"))
        options = [
            *channel_options("aggregator", profile.city_id),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        credentials = channel_credentials(profile.tls)
        return [
            grpc.secure_channel(address or self.aggregator.address, credentials, options)
            for _ in range(count)
        ]


@contextmanager
def running_city(
    folder: Path,
    fleet: Fleet,
    meters: int,
    *,
    aggregator_core: int | None,
    other_core: int | None,
    redis: str | None = None,
    metrics: str | None = None,
) -> Iterator[LocalCity]:
    """A city of ``meters`` meters with real processes; stopped at the end of the block.

    With the URL of a Redis the aggregator keeps its windows there.
    Meters are enrolled in one run of the key-holder and take effect in its next, which starts at
    the end of ``WINDOW``: a scaled clock allows that, and no process waits a quarter of an hour.
    With ``metrics`` the aggregator serves them at that address.
    """
    addresses = {role: f"127.0.0.1:{port}" for role, port in zip(SERVICES, _ports(), strict=True)}
    options = CityOptions(
        grace=GRACE_S,
        min_cohort=100,
        refusals_per_day=MOST_REFUSALS_PER_DAY,
        development=True,
        window_length=LENGTH,
        addresses=addresses,
    )
    paths = create_city(folder / "city", options)
    if redis is not None:
        with paths.config("aggregator").open("a") as config:
            config.write(f'\n[redis]\nurl = "{redis}"\n')
    if metrics is not None:
        with paths.config("aggregator").open("a") as config:
            config.write(f'\n[metrics]\nlisten = "{metrics}"\n')
    early = NOON + 1 - time.time()
    with _service(paths, "keyholder", early, other_core):
        _enrol(paths, fleet, meters)
        if redis is not None:
            # A window that opened before the aggregator first saw its Redis is not believed in.
            with _service(paths, "aggregator", early, aggregator_core):
                pass
    ahead = WINDOW + LENGTH + 1 - time.time()
    with ExitStack() as stack:
        keyholder = stack.enter_context(_service(paths, "keyholder", ahead, other_core))
        with Registrar.open(paths.profile("registrar")) as registrar:
            parameters = registrar.parameters(WINDOW)
        aggregator = stack.enter_context(_service(paths, "aggregator", ahead, aggregator_core))
        city = LocalCity(paths, keyholder, aggregator, parameters, ahead)
        _wait_until_ready(city)
        yield city


def _service(
    paths: CityPaths, role: str, ahead: float, core: int | None
) -> AbstractContextManager[ServerProcess]:
    now = time.time()
    clock = ("--clock-origin", f"{now + ahead:.3f}@{now:.3f}")
    command = module("gridveil.cli", role, "serve", "--config", str(paths.config(role)), *clock)
    return serving(command, paths.folder / f"{role}.log", core)


def _enrol(paths: CityPaths, fleet: Fleet, meters: int) -> None:
    city_id = Profile.load(paths.profile("registrar")).city_id
    with (
        Registrar.open(paths.profile("registrar")) as registrar,
        progress("enrolling meters", meters) as advance,
    ):
        registrar.enrol(fleet.enrolments(city_id, range(meters)), advance)


def _wait_until_ready(city: LocalCity) -> None:
    (channel,) = city.gateway_channels(1)
    until = time.monotonic() + START_S
    with channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH)
        while time.monotonic() < until:
            answer = check(b"", wait_for_ready=True, timeout=START_S)
            status = health_pb2.HealthCheckResponse.FromString(answer).status
            if status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.2)
    raise RuntimeError("the aggregator did not become ready")


def _ports() -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in SERVICES]
        return [int(s.getsockname()[1]) for s in sockets]


def local_epoch(registers: int) -> tuple[SignedParameters, Secrets]:
    """An epoch of a city that exists in memory only, with its secret keys; not signed."""
    policy = CityPolicy(
        city_id=os.urandom(16),
        parameter_set=DEFAULT_PARAMETER_SET,
        registers=tuple(Register(f"register_{at}", "Wh", 200_000) for at in range(registers)),
        window_length=LENGTH,
        grace=300,
        early_leeway=60,
        min_cohort=100,
        colluding=0,
        min_coverage_ppm=800_000,
        batch_limit=BATCH,
        entry_audience=EntryAudience.NOBODY,
        failing_lanes=FailingLanes.LEAVE_OUT,
        failure_budget=5,
        development=True,
    )
    sealing = os.urandom(32)
    public, residues = generate_ckks_keys(policy.crypto)
    epoch = Epoch(os.urandom(16), DAY, DAY + DAY_S, x25519_public(sealing), public)
    signed = SignedParameters(CityParameters(policy, epoch), bytes(64))
    return signed, Secrets(sealing, residues)
