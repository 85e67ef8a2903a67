"""A meter: readings in, settled reports out. Blocking and asyncio, with the same decisions.

    from gridveil.meter import Meter

    with Meter.open("city/meter/profile.toml", keys="meter.key", outbox="outbox.db") as meter:
        meter.record(window_start, import_wh=412, export_wh=0)
        meter.flush()

Encryption needs the extra ``gridveil[meter]``.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from gridveil.clock import Clock, SystemClock
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Entry, Outbox, State, Verdict
from gridveil.pacing import Draw, system_draw
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.report import Report
from gridveil.reporting import ReportBuilder
from gridveil.submission import Steps, Submitter
from gridveil.submission_calls import async_caller, blocking_caller, run_steps, run_steps_async
from gridveil.tracing.spans import make_tracer
from gridveil.transport import connect, connect_async

__all__ = ["AsyncMeter", "Meter", "MeterKeys", "ReportStatus", "State"]

_Opened = TypeVar("_Opened", bound="_MeterBase")
_IDLE_S = 60.0
"""Longest sleep of run(), real seconds, if nothing waits."""

_ROLE = "aggregator"


@dataclass(frozen=True)
class ReportStatus:
    """Where the report of one window stands."""

    window_start: int
    state: State
    reason: Reason | None
    """Why the last attempt failed, or why it was given up."""
    attempts: int
    answered: bool
    """Whether the aggregator's own answer ended it; if not, its fate is unknown."""


class _MeterBase:
    """What both meters share: everything but waiting and calling."""

    def __init__(
        self, profile: Profile, keys: MeterKeys, outbox: Outbox, clock: Clock, draw: Draw
    ) -> None:
        self._address = profile.endpoint(_ROLE)
        self._profile = profile
        self._keys = keys
        self._outbox = outbox
        self._clock = clock
        self._closed = False
        self._tracer = make_tracer(profile.tracing, "meter")
        self._builder = lru_cache(maxsize=4)(partial(ReportBuilder, keys=keys))
        self._submitter = Submitter(profile, outbox, clock, self._build, draw=draw)

    @classmethod
    def open(
        cls: type[_Opened],
        profile: Profile | Path | str,
        *,
        keys: MeterKeys | Path | str,
        outbox: Path | str,
        clock: Clock | None = None,
        draw: Draw = system_draw,
    ) -> _Opened:
        """A meter of the profile's city. Nothing is sent yet.

        Args:
            profile: the city's profile, or its file.
            keys: the meter's identity, or its file.
            outbox: the outbox file, made if there is none.
            clock: metering time; the machine's if left out.
            draw: uniform randomness in [0, 1) for jitter.

        Raises:
            MalformedInput: CONFIG_INVALID, naming what is wrong with a file.
            Unavailable: STORE_UNAVAILABLE if another process has the outbox open.
            IntegrityLost: PARTIAL_CORRUPT if the outbox is damaged.
        """
        city = profile if isinstance(profile, Profile) else Profile.load(Path(profile))
        meter = keys if isinstance(keys, MeterKeys) else MeterKeys.load(keys)
        opened = Outbox(outbox, city.city_id)
        try:
            return cls(city, meter, opened, clock or SystemClock(), draw)
        except BaseException:
            opened.close()
            raise

    def status(self, window_start: int | None = None) -> list[ReportStatus]:
        """Where reports stand: those not settled, and those that ended within the last hour.

        Args:
            window_start: only this window's.
        """
        return [_status(entry) for entry in self._outbox.entries(window_start)]

    def next_due(self) -> float | None:
        """When the next report is to be sent, metering time; None if none waits."""
        return self._outbox.next_due()

    def _build(
        self,
        parameters: CityParameters,
        _meter_id: bytes,
        window_start: int,
        values: Mapping[str, int],
    ) -> Report:
        return self._builder(parameters).build(window_start, values)

    def _record(
        self, window_start: int, values: Mapping[str, int] | None, registers: dict[str, int]
    ) -> Steps[None]:
        return self._submitter.record(
            self._keys.meter_id, window_start, {**(values or {}), **registers}
        )

    def _delay(self) -> float | None:
        """Real seconds until the next entry is due; None if none waits, or after close()."""
        try:
            due_at = self._outbox.next_due()
        except Unavailable:
            if not self._closed:
                raise
            return None
        if due_at is None:
            return None
        return max(0.0, self._clock.real(due_at - self._clock.now()))


class Meter(_MeterBase):
    """One meter, blocking. Its methods may be called from several threads."""

    def __init__(
        self, profile: Profile, keys: MeterKeys, outbox: Outbox, clock: Clock, draw: Draw
    ) -> None:
        super().__init__(profile, keys, outbox, clock, draw)
        self._channel = connect(self._address, _ROLE, profile.city_id, profile.tls)
        self._call = blocking_caller(self._channel, self._tracer)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._recorded = 0

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
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._channel.close()
        with self._sending:
            self._outbox.close()
        self._tracer.close()

    def record(
        self, window_start: int, values: Mapping[str, int] | None = None, **registers: int
    ) -> None:
        """Check the values of a window, encrypt them and persist the report.

        The same values again change nothing. ``flush`` or ``run`` send the report.

        Args:
            window_start: start of the interval, Unix seconds UTC.
            values: energy of the interval in whole units, by register name.
            **registers: the same, as keywords.

        Raises:
            MalformedInput: READING_INVALID, naming the register and never the value, before
                anything else; WINDOW_MISALIGNED.
            WrongState: WINDOW_TOO_EARLY before the interval ended, WINDOW_CLOSED after its grace.
            NotAuthentic: KEY_NOT_PINNED if the aggregator offers parameters that the pinned
                key-holder did not sign; nothing was encrypted or persisted.
            Conflict: EQUIVOCATION if another reading of the window was recorded.
            Unavailable: the city's parameters are unknown and cannot be fetched, or the outbox
                is full or failing.
        """
        run_steps(self._record(window_start, values, registers), self._call)
        with self._changed:
            self._recorded += 1
            self._changed.notify_all()

    def policy(self) -> CityPolicy:
        """What the city asks of a meter: registers and windows. Fetched once, then kept.

        Raises:
            NotAuthentic: KEY_NOT_PINNED if the pinned key-holder did not sign it.
            Unavailable: it is not known yet, and the aggregator is out of reach.
        """
        return run_steps(self._submitter.known_policy(), self._call)

    def submit_due(self) -> list[Verdict]:
        """Send the reports whose time has come, once; what became of them."""
        with self._sending:
            if self._closed:
                return []
            return run_steps(self._submitter.submit_due(), self._call)

    def flush(self, timeout_s: float | None = None) -> list[ReportStatus]:
        """Send reports, each at its time, until none waits; where all reports stand then.

        Args:
            timeout_s: stop after this much metering time, and leave the rest in the outbox.
        """
        until = math.inf if timeout_s is None else self._clock.now() + timeout_s
        while True:
            seen = self._recorded
            self.submit_due()
            delay, left = self._delay(), until - self._clock.now()
            if delay is None or left <= 0 or self._closed:
                return self.status()
            self._wait(min(delay, self._clock.real(left)), seen)

    def run(self, stop: threading.Event | None = None) -> None:
        """Send every report at its time until ``stop`` is set or close() is called."""
        while not (self._closed or (stop and stop.is_set())):
            seen = self._recorded
            self.submit_due()
            delay = self._delay()
            self._wait(_IDLE_S if delay is None else min(delay, _IDLE_S), seen)

    def _wait(self, seconds: float, seen: int) -> None:
        """Until then, or until something was recorded since ``seen``, or close()."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._recorded != seen, seconds)


class AsyncMeter(_MeterBase):
    """One meter for asyncio. Encryption and the outbox run in threads; calls on the loop."""

    def __init__(
        self, profile: Profile, keys: MeterKeys, outbox: Outbox, clock: Clock, draw: Draw
    ) -> None:
        super().__init__(profile, keys, outbox, clock, draw)
        self._channel = connect_async(self._address, _ROLE, profile.city_id, profile.tls)
        self._call = async_caller(self._channel, self._tracer)
        self._sending = asyncio.Lock()
        self._recorded = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop; what is not settled stays in the outbox for the next run."""
        self._closed = True
        self._recorded.set()
        await self._channel.close()
        async with self._sending:
            await asyncio.to_thread(self._outbox.close)
        await asyncio.to_thread(self._tracer.close)

    async def record(
        self, window_start: int, values: Mapping[str, int] | None = None, **registers: int
    ) -> None:
        """As :meth:`Meter.record`."""
        await run_steps_async(self._record(window_start, values, registers), self._call)
        self._recorded.set()

    async def policy(self) -> CityPolicy:
        """As :meth:`Meter.policy`."""
        return await run_steps_async(self._submitter.known_policy(), self._call)

    async def submit_due(self) -> list[Verdict]:
        """As :meth:`Meter.submit_due`."""
        async with self._sending:
            if self._closed:
                return []
            return await run_steps_async(self._submitter.submit_due(), self._call)

    async def flush(self, timeout_s: float | None = None) -> list[ReportStatus]:
        """As :meth:`Meter.flush`."""
        until = math.inf if timeout_s is None else self._clock.now() + timeout_s
        while True:
            self._recorded.clear()
            await self.submit_due()
            delay, left = self._delay(), until - self._clock.now()
            if delay is None or left <= 0 or self._closed:
                return self.status()
            await self._wait(min(delay, self._clock.real(left)))

    async def run(self) -> None:
        """Send every report at its time until close() is called or the task is cancelled."""
        while not self._closed:
            self._recorded.clear()
            await self.submit_due()
            async with self._sending:
                delay = self._delay()
            await self._wait(_IDLE_S if delay is None else min(delay, _IDLE_S))

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._recorded.wait(), seconds)


def _status(entry: Entry) -> ReportStatus:
    return ReportStatus(
        entry.window_start, entry.state, entry.reason, entry.attempts, entry.answered
    )
