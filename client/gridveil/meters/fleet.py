"""The meters of many homes behind one gateway: one outbox, one connection, reports in batches."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gridveil.clock import Clock
from gridveil.meter import ReportStatus
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Entry, Outbox, State
from gridveil.pacing import Draw, system_draw
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.report import Report
from gridveil.reporting import ReportBuilder
from gridveil.submission import Submitter
from gridveil.submission_calls import blocking_caller, run_steps
from gridveil.transport import connect

_ROLE = "aggregator"
_CALLS_A_TURN = 1
"""What has become due since the last turn goes in one call, up to the city's batch limit."""

_WINDOWS_WAITING = 96
"""Windows whose reports the outbox has room for: a day of quarter-hours."""

_LEAST_WAITING = 10_000
_NAP_S = 0.25
"""Longest wait at a time, real seconds."""


class Fleet:
    """Records and sends reports of several meters. Its methods may be called from many threads."""

    def __init__(
        self,
        profile: Profile,
        meters: Sequence[MeterKeys],
        outbox: Path | str,
        clock: Clock,
        draw: Draw = system_draw,
    ) -> None:
        """Open the outbox; nothing is sent yet. Errors as of :meth:`gridveil.meter.Meter.open`.

        Args:
            profile: of the gateway role.
            meters: the keys of all homes.
            outbox: the outbox file, made if there is none; of this fleet alone.
            clock: metering time.
            draw: uniform randomness in [0, 1) for jitter.
        """
        address = profile.endpoint(_ROLE)
        self._meters = {keys.meter_id: keys for keys in meters}
        self._clock = clock
        most = max(_LEAST_WAITING, len(meters) * _WINDOWS_WAITING)
        self._outbox = Outbox(outbox, profile.city_id, most_waiting=most)
        self._draw = draw
        self._together = threading.local()
        self._last = (-1, 0.0)
        self._channel = connect(address, _ROLE, profile.city_id, profile.tls)
        self._call = blocking_caller(self._channel)
        self._submitter = Submitter(
            profile, self._outbox, clock, self._build, batches=True, draw=self._drawn
        )
        self._recording = threading.Lock()
        self._sending = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what is not settled stays in the outbox for the next run."""
        self._channel.close()
        with self._sending, self._recording:
            self._outbox.close()

    def policy(self) -> CityPolicy:
        """As :meth:`gridveil.meter.Meter.policy`."""
        with self._recording:
            return run_steps(self._submitter.known_policy(), self._call)

    def home(self, meter_id: bytes) -> FleetMeter:
        """One of its meters."""
        return FleetMeter(self, meter_id)

    def record(self, meter_id: bytes, window_start: int, values: Mapping[str, int]) -> None:
        """As :meth:`gridveil.meter.Meter.record`, of one of its meters."""
        with self._recording:
            if self._last[0] != window_start:
                self._last = window_start, self._draw()
            self._together.drawn = self._last[1]
            run_steps(self._submitter.record(meter_id, window_start, values), self._call)

    def submit_due(self) -> None:
        """Send the reports whose time has come, in batches."""
        with self._sending:
            run_steps(self._submitter.submit_due(_CALLS_A_TURN), self._call)

    def flush(self) -> list[ReportStatus]:
        """Send reports, each at its time, until none waits; where all reports stand then."""
        while (due_at := self._outbox.next_due()) is not None:
            self.submit_due()
            missing = max(0.0, due_at - self._clock.now())
            self._clock.sleep(min(missing, _NAP_S / self._clock.real(1.0)))
        return self.status()

    def status(
        self, window_start: int | None = None, meter_id: bytes | None = None
    ) -> list[ReportStatus]:
        """Where reports stand; only a window's, or a meter's, if told so."""
        return [
            _status(entry)
            for entry in self._outbox.entries(window_start)
            if meter_id is None or entry.meter_id == meter_id
        ]

    def waiting(self) -> int:
        """How many reports are not settled."""
        return sum(entry.state is State.WAITING for entry in self._outbox.entries())

    def _drawn(self) -> float:
        """One draw for the homes of a window, that what is recorded together is sent together."""
        drawn: float | None = getattr(self._together, "drawn", None)
        return self._draw() if drawn is None else drawn

    def _build(
        self,
        parameters: CityParameters,
        meter_id: bytes,
        window_start: int,
        values: Mapping[str, int],
    ) -> Report:
        return ReportBuilder(parameters, self._meters[meter_id]).build(window_start, values)


@dataclass(frozen=True)
class FleetMeter:
    """One meter of a fleet, as its home's gateway uses it."""

    fleet: Fleet
    meter_id: bytes

    def record(self, window_start: int, values: Mapping[str, int]) -> None:
        """As :meth:`gridveil.meter.Meter.record`."""
        self.fleet.record(self.meter_id, window_start, values)

    def status(self, window_start: int) -> list[ReportStatus]:
        """As :meth:`gridveil.meter.Meter.status`."""
        return self.fleet.status(window_start, self.meter_id)


def _status(entry: Entry) -> ReportStatus:
    return ReportStatus(
        entry.window_start, entry.state, entry.reason, entry.attempts, entry.answered
    )
