"""The key-holder as a process."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gridveil.clock import Clock
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.key_custody import open_at_rest
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.service import bindings
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal
from gridveil_services.rpc.credentials import server_credentials
from gridveil_services.rpc.process import SIGNALS

if TYPE_CHECKING:
    from gridveil_services.keyholder.metrics import KeyHolderMetrics

LEAST_FREE_BYTES = 16 * 1024 * 1024
"""On the disks of state and log, to be called ready."""
MOST_MESSAGE_BYTES = 1_048_576 + 65_536
"""An entry chunk of 1 MiB with its frame; a full enrolment is shorter."""


def make_server(
    keyholder: KeyHolder, config: KeyHolderConfig, metrics: KeyHolderMetrics | None = None
) -> Server:
    """A server for an open key-holder; not started yet."""
    server = Server(
        bindings(keyholder),
        ServerOptions(
            listen=config.listen,
            tls=config.tls,
            city_id=config.city_id,
            role=Role.KEYHOLDER,
            max_message_bytes=MOST_MESSAGE_BYTES,
        ),
        metrics,
        keyholder.tracer,
    )
    ledger, require = keyholder.ledger, server.readiness.require
    require("log", lambda: not ledger.failed)
    require("unlocked", lambda: ledger.locked_at is None)
    require("disk", lambda: all(map(_has_room, (config.state, config.published))))
    return server


def make_metrics(config: KeyHolderConfig) -> KeyHolderMetrics | None:
    """Only where they are served is what counts them loaded."""
    if config.metrics is None:
        return None
    from gridveil_services.keyholder.metrics import KeyHolderMetrics

    return KeyHolderMetrics()


@contextmanager
def serving_metrics(
    keyholder: KeyHolder,
    server: Server,
    config: KeyHolderConfig,
    metrics: KeyHolderMetrics | None,
) -> Iterator[str | None]:
    """Serve metrics meanwhile, if the configuration says where; their address."""
    if config.metrics is None or metrics is None:
        yield None
        return
    from gridveil_services.metrics.exposition import MetricsServer

    metrics.tell_of(server)
    metrics.look_at(keyholder)
    with MetricsServer(config.metrics, metrics.registry) as exposed:
        yield exposed.url


def serve(config: KeyHolderConfig, clock: Clock, unlock: int | None = None) -> None:
    """Serve until a signal comes; refuses to start as :class:`KeyHolder` says.

    With a sealed key-encrypting key it first waits for officers' shares, or for the signal.
    """
    # Found before officers are asked for their shares, not after.
    server_credentials(config.tls, Role.KEYHOLDER, config.city_id)
    with _ending_on_signal():
        at_rest = open_at_rest(config)
    metrics = make_metrics(config)
    keyholder = KeyHolder(config, clock, at_rest, unlock=unlock, observer=metrics)
    try:
        server = make_server(keyholder, config, metrics)
        keyholder.witnesses.start()
        keyholder.upkeep.start(server.look)
        with serving_metrics(keyholder, server, config, metrics):
            run_until_signal(server)
    finally:
        keyholder.close()


@contextmanager
def _ending_on_signal() -> Iterator[None]:
    """A signal ends the process well: nothing has been opened yet."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = [(number, signal.signal(number, end)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _has_room(folder: Path) -> bool:
    return shutil.disk_usage(folder).free >= LEAST_FREE_BYTES
