"""The key-holder as a process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gridveil.clock import Clock
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.key_custody import open_at_rest
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.service import bindings
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal
from gridveil_services.rpc.credentials import server_credentials
from gridveil_services.rpc.process import SIGNALS

MOST_MESSAGE_BYTES = 1_048_576 + 65_536
"""An entry chunk of 1 MiB with its frame; a full enrolment is shorter."""


def make_server(keyholder: KeyHolder, config: KeyHolderConfig) -> Server:
    """A server for an open key-holder; not started yet."""
    return Server(
        bindings(keyholder),
        ServerOptions(
            listen=config.listen,
            tls=config.tls,
            city_id=config.city_id,
            role=Role.KEYHOLDER,
            max_message_bytes=MOST_MESSAGE_BYTES,
        ),
    )


def serve(config: KeyHolderConfig, clock: Clock, unlock: int | None = None) -> None:
    """Serve until a signal comes; refuses to start as :class:`KeyHolder` says.

    With a sealed key-encrypting key it first waits for officers' shares, or for the signal.
    """
    # Found before officers are asked for their shares, not after.
    server_credentials(config.tls, Role.KEYHOLDER, config.city_id)
    with _ending_on_signal():
        at_rest = open_at_rest(config)
    keyholder = KeyHolder(config, clock, at_rest, unlock=unlock)
    try:
        server = make_server(keyholder, config)
        keyholder.witnesses.start()
        keyholder.upkeep.start(lambda: server.set_ready(not keyholder.ledger.failed))
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
