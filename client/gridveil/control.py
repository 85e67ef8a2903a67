"""What a city's controller signals, and what it goes by.

Signals rest on released totals and the city's rules only (docs/control.md). The clients reconnect
while they watch; all calls raise the errors of :mod:`gridveil.protocol.errors`.
:class:`ControlClient` blocks, :class:`AsyncControlClient` is for asyncio::

    with ControlClient.open("city/operator/profile.toml") as control:
        for signal in control.watch():
            print(signal.at, signal.level, signal.basis, signal.cause)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from gridveil.profile import Profile
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason, WrongState
from gridveil.protocol.v1 import controller_pb2, controller_pb2_grpc
from gridveil.reconnection import Reconnection
from gridveil.transport import (
    connect,
    connect_async,
    connect_timeout,
    from_rpc_error,
    reach,
    reach_async,
    server_stream,
    server_stream_async,
)

CALL_TIMEOUT_S = 15.0
SERVICE = "controller"

_FIRST_OF_ALL = 1
"""The earliest time to watch from: 0 asks for new signals only."""


class Basis(StrEnum):
    """What a signal rests on."""

    MEASURED = "MEASURED"
    """A fresh total over every enrolled meter."""
    ESTIMATED = "ESTIMATED"
    """A fresh total over most, scaled up to all."""
    HELD = "HELD"
    """No fresh total: the last signal stands."""
    NEUTRAL = "NEUTRAL"
    """No fresh total for too long, or never: level 0."""


class Delivery(StrEnum):
    """What became of an object for the VTN."""

    NOT_SENT = "NOT_SENT"
    """No VTN is configured."""
    PENDING = "PENDING"
    """To be sent, or sent and not answered."""
    DELIVERED = "DELIVERED"
    REFUSED = "REFUSED"
    """The VTN has refused it for good."""
    SUPERSEDED = "SUPERSEDED"
    """Another signal came before it could be sent."""


class ForecastMethod(StrEnum):
    """How a day was forecast."""

    RIDGE = "RIDGE"
    LAST_WEEK = "LAST_WEEK"


@dataclass(frozen=True)
class OpenAdrObject:
    """An event of OpenADR 3.1 as JSON, and what became of it when the signal was fetched."""

    json: str
    delivery: Delivery


@dataclass(frozen=True)
class ControlSignal:
    """What is signalled from ``at`` (Unix seconds) on. Power in W over the window, None for none.

    ``measured_w`` is of the meters in the total only; ``estimated_w`` is that scaled up to all
    enrolled, and only there if some are missing.
    """

    number: int
    """Its place in the controller's history, from 1 on."""
    at: int
    window_start: int | None
    """The window it is about; None before any was."""
    level: int
    """0 to 3, as OpenADR's SIMPLE."""
    basis: Basis
    cause: str
    """Why, a word of docs/control.md."""
    measured_w: int | None
    estimated_w: int | None
    ramp_w: int | None
    reason: str
    """Why the window was not released, if it was not."""
    openadr: tuple[OpenAdrObject, ...]
    """What is sent to the VTN for it; none where no program is configured."""


@dataclass(frozen=True)
class ControlRules:
    """The rules that signals are made by. Power in W, times in seconds."""

    register: str
    window_length: int
    capacity_w: int
    thresholds_w: tuple[int, int, int]
    """From which demand on level 1, 2 and 3 is signalled."""
    hysteresis_w: int
    ramp_limit_w: int
    hold_s: int
    stale_after_s: int
    hold_safe_s: int
    min_coverage_percent: int
    time_zone: str
    """Where the city's days begin and end: a name of the IANA time zone database."""


@dataclass(frozen=True)
class ForecastPoint:
    """A window's forecast and what it is compared with, in W; None where there is no figure."""

    window_start: int
    expected_w: int | None
    low_w: int | None
    high_w: int | None
    """Nine in ten windows are expected between the two."""
    yesterday_w: int | None
    last_week_w: int | None


@dataclass(frozen=True)
class DemandForecast:
    """A local day's forecast, a point each window, in order."""

    day: date
    method: ForecastMethod
    points: tuple[ForecastPoint, ...]


def _ignore(_error: GridveilError) -> None:
    pass


class ControlClient:
    """Blocking access to the controller; a context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout = timeout_s
        self._channel = connect(profile.endpoint(SERVICE), SERVICE, profile.city_id, profile.tls)
        self._controller = controller_pb2_grpc.ControllerStub(self._channel)

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """A client of the controller in a profile. Connects at the first call.

        Raises:
            MalformedInput: CONFIG_INVALID if the profile has no ``[controller]``.
        """
        return cls(Profile.of(profile), timeout_s=timeout_s)

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
        """Close the connection."""
        self._channel.close()

    def signal(self) -> ControlSignal:
        """The signal that stands, or WrongState NO_SIGNAL before the first."""
        try:
            message = self._controller.GetSignal(
                controller_pb2.GetSignalRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _signal(message)

    def rules(self) -> ControlRules:
        """The rules that signals are made by."""
        try:
            message = self._controller.GetRules(
                controller_pb2.GetRulesRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _rules(message)

    def forecast(self, day: date) -> DemandForecast:
        """The forecast of a local day, from what was settled before it."""
        request = controller_pb2.GetForecastRequest(day=day.isoformat())
        try:
            message = self._controller.GetForecast(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _forecast(message)

    def watch(
        self,
        from_: int = 0,
        *,
        give_up_after_s: float | None = None,
        on_failure: Callable[[GridveilError], None] = _ignore,
    ) -> Generator[ControlSignal]:
        """Signals from a time on, in order, then each new one; endless, each once.

        Reconnects with backoff and resumes without gap or repetition.

        Args:
            from_: Unix seconds; 0 for new signals only.
            give_up_after_s: raise what failed once the service has been out of reach for so
                long; None: keep trying.
            on_failure: told what failed before each wait for the next attempt.
        """
        state = _Place(from_, give_up_after_s)
        while True:
            try:
                timeout = connect_timeout(self._timeout, give_up_after_s)
                reach(self._channel, SERVICE, timeout)
                state.connected(time.monotonic())
                if state.is_nowhere:
                    state.begin(self._newest())
                with closing(self._signals(state.resume_from)) as signals:
                    yield from filter(state.is_new, signals)
                delay = state.ended(time.monotonic())
            except GridveilError as error:
                delay = state.failed(error, time.monotonic())
                on_failure(error)
            time.sleep(delay)

    def _newest(self) -> ControlSignal | None:
        try:
            return self.signal()
        except WrongState:
            return None

    def _signals(self, from_: int) -> Generator[ControlSignal]:
        with closing(server_stream(self._controller.WatchSignals(_watch(from_)))) as messages:
            yield from map(_signal, messages)


class AsyncControlClient:
    """The same for asyncio; an asynchronous context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout = timeout_s
        self._channel = connect_async(
            profile.endpoint(SERVICE), SERVICE, profile.city_id, profile.tls
        )
        self._controller = controller_pb2_grpc.ControllerStub(self._channel)

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """A client of the controller in a profile; see :meth:`ControlClient.open`."""
        return cls(Profile.of(profile), timeout_s=timeout_s)

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
        """Close the connection."""
        await self._channel.close()

    async def signal(self) -> ControlSignal:
        """The signal that stands, or WrongState NO_SIGNAL before the first."""
        try:
            message = await self._controller.GetSignal(
                controller_pb2.GetSignalRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _signal(message)

    async def rules(self) -> ControlRules:
        """The rules that signals are made by."""
        try:
            message = await self._controller.GetRules(
                controller_pb2.GetRulesRequest(), timeout=self._timeout
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _rules(message)

    async def forecast(self, day: date) -> DemandForecast:
        """The forecast of a local day, from what was settled before it."""
        request = controller_pb2.GetForecastRequest(day=day.isoformat())
        try:
            message = await self._controller.GetForecast(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _forecast(message)

    async def watch(
        self,
        from_: int = 0,
        *,
        give_up_after_s: float | None = None,
        on_failure: Callable[[GridveilError], None] = _ignore,
    ) -> AsyncGenerator[ControlSignal]:
        """Signals from a time on, then each new one; see :meth:`ControlClient.watch`."""
        state = _Place(from_, give_up_after_s)
        while True:
            try:
                timeout = connect_timeout(self._timeout, give_up_after_s)
                await reach_async(self._channel, SERVICE, timeout)
                state.connected(time.monotonic())
                if state.is_nowhere:
                    state.begin(await self._newest())
                async with aclosing(self._signals(state.resume_from)) as signals:
                    async for signal in signals:
                        if state.is_new(signal):
                            yield signal
                delay = state.ended(time.monotonic())
            except GridveilError as error:
                delay = state.failed(error, time.monotonic())
                on_failure(error)
            await asyncio.sleep(delay)

    async def _newest(self) -> ControlSignal | None:
        try:
            return await self.signal()
        except WrongState:
            return None

    async def _signals(self, from_: int) -> AsyncGenerator[ControlSignal]:
        call = self._controller.WatchSignals(_watch(from_))
        async with aclosing(server_stream_async(call)) as messages:
            async for message in messages:
                yield _signal(message)


class _Place(Reconnection):
    """Where a watch is: asked again from the last signal's time on, it leaves that signal out."""

    def __init__(self, from_: int, give_up_after_s: float | None) -> None:
        super().__init__(give_up_after_s)
        self.resume_from = from_
        self._last = (0, 0)

    @property
    def is_nowhere(self) -> bool:
        return self.resume_from == 0

    def begin(self, newest: ControlSignal | None) -> None:
        """Watch what comes after the newest signal, so that nothing is lost when it reconnects."""
        self.resume_from = _FIRST_OF_ALL
        if newest is not None:
            self.is_new(newest)

    def is_new(self, signal: ControlSignal) -> bool:
        self.received()
        place = signal.at, signal.number
        if place <= self._last:
            return False
        self._last, self.resume_from = place, max(signal.at, _FIRST_OF_ALL)
        return True


def _watch(from_: int) -> controller_pb2.WatchSignalsRequest:
    # The field has the name of a keyword.
    return controller_pb2.WatchSignalsRequest(**{"from": from_})


_BASES = {controller_pb2.SignalBasis.Value(f"SIGNAL_BASIS_{basis}"): basis for basis in Basis}
_DELIVERIES = {controller_pb2.DeliveryState.Value(f"DELIVERY_STATE_{one}"): one for one in Delivery}
_METHODS = {
    controller_pb2.ForecastMethod.Value(f"FORECAST_METHOD_{one}"): one for one in ForecastMethod
}


def _signal(message: controller_pb2.ControlSignal) -> ControlSignal:
    def figure(name: str) -> int | None:
        return getattr(message, name) if message.HasField(name) else None

    try:
        objects = (OpenAdrObject(one.json, _DELIVERIES[one.delivery]) for one in message.openadr)
        return ControlSignal(
            number=message.number,
            at=message.at,
            window_start=figure("window_start"),
            level=message.level,
            basis=_BASES[message.basis],
            cause=message.cause,
            measured_w=figure("measured_w"),
            estimated_w=figure("estimated_w"),
            ramp_w=figure("ramp_w"),
            reason=message.reason,
            openadr=tuple(objects),
        )
    except KeyError:
        raise _malformed("a signal") from None


def _rules(message: controller_pb2.ControlRules) -> ControlRules:
    if len(message.thresholds_w) != 3:
        raise _malformed("rules")
    low, middle, high = message.thresholds_w
    return ControlRules(
        register=message.register,
        window_length=message.window_length,
        capacity_w=message.capacity_w,
        thresholds_w=(low, middle, high),
        hysteresis_w=message.hysteresis_w,
        ramp_limit_w=message.ramp_limit_w,
        hold_s=message.hold_s,
        stale_after_s=message.stale_after_s,
        hold_safe_s=message.hold_safe_s,
        min_coverage_percent=message.min_coverage_percent,
        time_zone=message.time_zone,
    )


def _forecast(message: controller_pb2.DemandForecast) -> DemandForecast:
    try:
        return DemandForecast(
            date.fromisoformat(message.day),
            _METHODS[message.method],
            tuple(map(_point, message.points)),
        )
    except (KeyError, ValueError):
        raise _malformed("a forecast") from None


def _point(message: controller_pb2.ForecastPoint) -> ForecastPoint:
    names = ("expected_w", "low_w", "high_w", "yesterday_w", "last_week_w")
    figures = (getattr(message, name) if message.HasField(name) else None for name in names)
    return ForecastPoint(message.window_start, *figures)


def _malformed(what: str) -> MalformedInput:
    return MalformedInput(Reason.MALFORMED_MESSAGE, f"the controller sent what is not {what}")
