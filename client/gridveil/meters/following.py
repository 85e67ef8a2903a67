"""Sources followed: their bytes read, messages cut and read, readings given to a home's gateway.

Reports are sent by a thread of their own, meanwhile. A source that goes away is opened again for
as long as it takes; a message that is none is named and dropped, and the next one is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from gridveil.clock import Clock
from gridveil.meter import Meter, ReportStatus
from gridveil.meters.gateway import AGAIN_S, FAILED_STORE, HomeGateway
from gridveil.meters.registers import Reading
from gridveil.meters.sources import Source
from gridveil.protocol.errors import MalformedInput, Reason, Unavailable


class Cutter(Protocol):
    """Cuts a stream into messages."""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Messages that are complete with ``data``; a MalformedInput for each that is none."""
        ...


class Reader(Protocol):
    """Reads the messages of one kind of meter."""

    def cutter(self) -> Cutter:
        """What cuts a new stream."""
        ...

    def read(self, message: Any, heard: float | None) -> Reading | None:
        """The reading of a message; None for one that is not about the registers."""
        ...


class Sender(Protocol):
    """Sends what is due: :class:`gridveil.meter.Meter` does."""

    def submit_due(self) -> object:
        """As :meth:`gridveil.meter.Meter.submit_due`."""


@dataclass
class Follower:
    """One home: its gateway, and where its messages come from."""

    gateway: HomeGateway
    reader: Reader
    clock: Clock
    opened: Callable[[], AbstractContextManager[Source]] = field(repr=False)
    begun: bool = False
    """Whether the source was there once."""

    def run(self, stop: threading.Event, sending: Sending) -> bool:
        """Follow the source until ``stop``, or a file to its end; whether it was live.

        Raises:
            Unavailable: UNREACHABLE if the source cannot be opened at first; STORE_UNAVAILABLE or
                STORE_FULL if a disk fails.
        """
        live = True
        while live and not stop.is_set():
            try:
                with self.opened() as source:
                    live, self.begun = source.live, True
                    self._follow(source, stop, sending)
            except Unavailable as error:
                if error.reason in FAILED_STORE or not self.begun:
                    raise
                self.gateway.tell(error)
                sending.check()
                self.clock.sleep(AGAIN_S)
        if not live:
            self.gateway.drain(wait=True)
        return live

    def _follow(self, source: Source, stop: threading.Event, sending: Sending) -> None:
        connection, cutter = source.connection, self.reader.cutter()
        self.gateway.drain(wait=not source.live)
        while not stop.is_set() and (data := source.read()) != b"":
            if source.connection != connection:
                connection, cutter = source.connection, self.reader.cutter()
            for message in cutter.feed(data or b""):
                self._take(message, source.live)
                self.gateway.drain(wait=not source.live)
            if data is None:
                self.gateway.drain(wait=False)
            sending.check()

    def _take(self, message: Any, live: bool) -> None:
        gateway = self.gateway
        try:
            if isinstance(message, MalformedInput):
                raise message
            reading = self.reader.read(message, self.clock.now() if live else None)
            if reading is not None:
                gateway.take(reading)
            gateway.tally.telegrams += 1
        except MalformedInput as fault:
            if fault.reason is not Reason.READING_INVALID:
                raise
            gateway.tally.faults[fault.metadata["fault"]] += 1
            gateway.tell(fault)


class Sending:
    """The thread that sends, and what it died of."""

    def __init__(self) -> None:
        self.failed: Exception | None = None

    def check(self) -> None:
        """Raise what it died of, if it did."""
        if self.failed is not None:
            raise self.failed


@contextmanager
def sending(sender: Sender) -> Iterator[Sending]:
    """Send what is due, beside the block."""
    state, stop = Sending(), threading.Event()

    def send() -> None:
        try:
            while not stop.is_set():
                sender.submit_due()
                stop.wait(0.25)
        except Exception as error:  # told by whoever reads on: nothing would be sent any more
            state.failed = error

    thread = threading.Thread(target=send, name="sending", daemon=True)
    thread.start()
    try:
        yield state
    finally:
        stop.set()
        thread.join()


def run_home(meter: Meter, follower: Follower, stop: threading.Event) -> list[ReportStatus]:
    """Follow one home until ``stop``; a file to its end, and until its reports are settled.

    Raises:
        Unavailable: UNREACHABLE if the source cannot be opened at first; STORE_UNAVAILABLE or
            STORE_FULL if a disk fails.
        GridveilError: what the meter's parameters are refused for.
    """
    with sending(meter) as state:
        live = follower.run(stop, state)
    state.check()
    return meter.status() if live else meter.flush()
