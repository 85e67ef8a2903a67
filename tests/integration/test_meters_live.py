"""A live meter behind a server that drops connections: what was seen is reported."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gridveil.clock import ScaledClock
from gridveil.meter import Meter, MeterKeys
from gridveil.meters.following import Follower, run_home
from gridveil.meters.gateway import HomeGateway, News
from gridveil.meters.intervals import Rules
from gridveil.meters.p1 import TelegramReader
from gridveil.meters.registers import P1_REGISTERS
from gridveil.meters.sources import open_source
from gridveil.meters.state import StateFile
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil_services.rpc import Role
from tests.support.epochs import city_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.telegrams import telegram

pytestmark = pytest.mark.long

LENGTH = 60
RATE = 10.0
A_TELEGRAM = 40
"""Telegrams until the server drops the connection."""


class Port:
    """A server that says what the meter shows now, and drops each connection after a while."""

    def __init__(self, clock: ScaledClock) -> None:
        self.clock = clock
        self.connections = 0
        self.stopped = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def close(self) -> None:
        self.stopped.set()
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while not self.stopped.is_set():
                connection, _ = self.server.accept()
                self.connections += 1
                with connection, suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        for _ in range(A_TELEGRAM):
            at = int(self.clock.now())
            connection.sendall(telegram(at, 3 * (at - WINDOW) + 10_000))
            if self.stopped.wait(0.1):
                return


def test_a_port_that_comes_and_goes_costs_no_window_and_no_energy(tmp_path: Path) -> None:
    clock = ScaledClock(WINDOW - 5, time.time(), RATE)
    keys, identity = (
        city_keys(city_policy(window_length=LENGTH, early_leeway=30)),
        MeterKeys.create(),
    )
    receiver, certificates = Receiver(keys, clock), Certificates.make(tmp_path, CITY_ID)
    port, stop, told = Port(clock), threading.Event(), list[News | GridveilError]()
    with serving(receiver, certificates) as address:
        profile = certificates.profile(Role.METER, keys, address)
        outbox = tmp_path / "outbox.db"
        with Meter.open(
            profile, keys=identity, outbox=outbox, clock=clock, draw=lambda: 0.0
        ) as meter:
            rules = Rules(meter.policy().window_length, P1_REGISTERS)
            state = StateFile(tmp_path / "state", identity.meter_id)
            gateway = HomeGateway(meter, state, clock, rules, told.append)
            source = f"tcp://127.0.0.1:{port.server.getsockname()[1]}"
            follower = Follower(
                gateway, TelegramReader(P1_REGISTERS), clock, lambda: open_source(source)
            )
            running = threading.Thread(target=run_home, args=(meter, follower, stop))
            running.start()
            while len(receiver.accepted) < 2 or port.connections < 2:
                stop.wait(0.05)
            stop.set()
            running.join()
            port.close()
    for report in receiver.accepted.values():
        (drawn, fed), _ = keys.open_report(report, identity.member)
        # Both ends may be read up to the tolerance late.
        assert 3 * (LENGTH - 30) <= drawn <= 3 * (LENGTH + 30)
        assert fed == 0
    gone = [one for one in told if isinstance(one, GridveilError)]
    assert gone
    assert {(type(one), one.reason) for one in gone} == {(Unavailable, Reason.UNREACHABLE)}
