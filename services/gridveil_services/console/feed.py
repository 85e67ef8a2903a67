"""Following the totals service and the controller into the model, and telling every open page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import date
from typing import Protocol

import msgspec
import structlog

from gridveil.clock import Clock
from gridveil.operator import AsyncOperator, Outcome
from gridveil.protocol.errors import (
    Exhausted,
    GridveilError,
    MalformedInput,
    Reason,
    Unavailable,
)
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.console.hub import Hub
from gridveil_services.console.model import (
    HISTORY_DAYS,
    CityModel,
    ForecastPoint,
    Row,
    SignalRow,
)
from gridveil_services.console.watching import LEARNED_DAYS, Watching

OPENED_SHOWN = 192
"""So many newest windows are asked when they were opened: what the page for citizens lists."""
FORECASTS_KEPT = 8
FORECAST_WAIT_S = 1.0
"""So long a day's totals wait for its forecast, which pages are told of when it comes later."""
_DAY_S = 86_400
_LOOK_BACK_S = 3 * _DAY_S
"""A window that is this old is settled, or expired."""
PROBE_S = 5.0
_LATER_S = 5.0

_log = structlog.get_logger()


class SignalSource(Protocol):
    """The controller, as the console needs it."""

    def watch(
        self, since: int, on_failure: Callable[[GridveilError], None]
    ) -> AsyncGenerator[SignalRow]:
        """Signals from a time on, then each new one; endless."""
        ...

    async def signal(self) -> SignalRow:
        """The signal that stands, and what became of its events by now."""
        ...

    async def rules(self) -> Mapping[str, object]:
        """The rules that signals are made by."""
        ...

    async def forecast(self, day: date) -> Mapping[int, ForecastPoint]:
        """What is expected of each window of a local day."""
        ...


class Health(msgspec.Struct):
    """How the console's sources are."""

    totals: str = "CONNECTING"
    """``OK``, ``CONNECTING``, or the reason why not."""
    controller: str = "CONNECTING"
    """The same, or ``NONE``."""
    alarm: str = ""
    """The reason for which nothing more of the totals service is believed."""
    loaded: int = 0
    """Windows of the past that were taken so far."""
    loading: bool = True
    watching: str = "OK"
    """Whether the watchdog looks at what settles, or the reason why not."""

    @property
    def ready(self) -> bool:
        """Whether what is shown is what there is."""
        return not self.loading and not self.alarm and self.totals == "OK"


class Feed:
    """Keeps the model up to date from two tasks.

    What the operator's client does not believe is not shown: the alarm says why, and stays until a
    restart.
    """

    def __init__(
        self,
        model: CityModel,
        hub: Hub,
        operator: AsyncOperator,
        controller: SignalSource | None,
        clock: Clock,
        watching: Watching,
    ) -> None:
        self.watching = watching
        self.health = Health(controller="CONNECTING" if controller else "NONE")
        self.rules: Mapping[str, object] | None = None
        self._model = model
        self._hub = hub
        self._operator = operator
        self._controller = controller
        self._clock = clock
        self._forecasts: dict[date, tuple[float, Mapping[int, ForecastPoint]]] = {}
        self._asking: dict[date, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow both, until cancelled; ask now and then whether the totals service is there.

        A fault of our own ends it under an alarm: what is shown is not what there is any more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_totals())
                tasks.create_task(self._probe())
                if self._controller is not None:
                    tasks.create_task(self._follow_signals(self._controller))
                    tasks.create_task(self._follow_delivery(self._controller))
        except* Exception as faults:
            _log.critical("nothing is followed any more", faults=_names(faults))
            self.health.alarm = Reason.INTERNAL.value
            self._totals_are(Reason.INTERNAL.value)

    async def forecast(self, day: date) -> Mapping[int, ForecastPoint]:
        """Of a day; empty while the controller has none."""
        if self._controller is None:
            return {}
        at, known = self._forecasts.get(day, (-_DAY_S, {}))
        if self._clock.now() - at < self._model.length:
            return known
        if day not in self._asking and len(self._asking) < FORECASTS_KEPT:
            self._asking[day] = asyncio.create_task(self._ask_forecast(self._controller, day))
        if (asking := self._asking.get(day)) is None:
            return known
        await asyncio.wait({asking}, timeout=FORECAST_WAIT_S)
        return self._forecasts.get(day, (0.0, known))[1]

    async def _ask_forecast(self, controller: SignalSource, day: date) -> None:
        begun = time.monotonic()
        try:
            known = await controller.forecast(day)
        except GridveilError:
            return
        finally:
            del self._asking[day]
        self._forecasts.pop(day, None)
        self._forecasts[day] = self._clock.now(), known
        while len(self._forecasts) > FORECASTS_KEPT:
            del self._forecasts[next(iter(self._forecasts))]
        if time.monotonic() - begun > FORECAST_WAIT_S:
            self._tell_health()

    async def _follow_totals(self) -> None:
        while not self.health.alarm:
            try:
                await self._load()
                await self._watch()
            except (Unavailable, Exhausted) as error:
                self._totals_are(error.reason.value)
                await asyncio.sleep(_LATER_S)
            except GridveilError as error:
                self._alarm(error)

    async def _probe(self) -> None:
        """No total may come for long, though all is well: the log's checkpoint tells."""
        while not self.health.alarm:
            await asyncio.sleep(PROBE_S)
            try:
                await self._operator.follow()
            except (Unavailable, Exhausted) as error:
                self._totals_are(error.reason.value)
            except GridveilError as error:
                self._alarm(error)
            else:
                if not self.health.loading:
                    self._totals_are("OK")

    def _alarm(self, error: GridveilError) -> None:
        self.health.alarm = error.reason.value
        _log.critical("the totals service is not believed any more", reason=error.reason)
        self._totals_are(error.reason.value)

    async def _load(self) -> None:
        """Take the past, page by page."""
        self.health.loading = True
        now = self._clock.now()
        first, learned = (
            self._aligned(now - days * _DAY_S) for days in (HISTORY_DAYS, LEARNED_DAYS)
        )
        recent: list[Outcome] = []
        async with aclosing(self._operator.list(first)) as outcomes:
            async for outcome in outcomes:
                self._model.settle(outcome)
                if outcome.window_start >= learned:
                    recent.append(outcome)
                self.health.loaded += 1
                if self.health.loaded % 1_000 == 0:
                    self._tell_health()
        await self._watch_over(recent)
        self.health.loading = False
        self._totals_are("OK")
        for row in self._model.released(OPENED_SHOWN):
            await self._ask_when_opened(row)

    async def _watch(self) -> None:
        since = self._aligned(self._clock.now() - _LOOK_BACK_S)
        watch = self._operator.watch(since, on_failure=self._totals_failed)
        async with aclosing(watch) as outcomes:
            async for outcome in outcomes:
                self._totals_are("OK")
                if self._model.row(outcome.window_start) is None:
                    await self._settled(outcome)

    async def _settled(self, outcome: Outcome) -> None:
        row = self._model.settle(outcome)
        self._model.forget(self._aligned(self._clock.now() - HISTORY_DAYS * _DAY_S))
        self._hub.tell("window", {"row": row})
        await self._watch_over([outcome])
        await self._ask_when_opened(row)

    async def _watch_over(self, outcomes: Sequence[Outcome]) -> None:
        """Look for what goes wrong; a city that it cannot be done for is shown without."""
        if self.health.watching != "OK":
            return
        try:
            found = await asyncio.to_thread(self.watching.see, outcomes)
        except MalformedInput as error:
            self.health.watching = error.reason.value
            return
        for finding in found if not self.health.loading else ():
            self._hub.tell("finding", finding)

    async def _ask_when_opened(self, row: Row) -> None:
        """The log says when; a window is shown without that too."""
        try:
            _, proof = await self._operator.proven(row.window_start)
        except (Unavailable, Exhausted):
            return
        opened_at = LogRecord.FromString(proof.record).recorded_at_ms // 1_000
        self._model.take([msgspec.structs.replace(row, opened_at=opened_at)])

    async def _follow_signals(self, controller: SignalSource) -> None:
        since = int(self._clock.now()) - HISTORY_DAYS * _DAY_S
        while True:
            try:
                self.rules = await controller.rules()
                watch = controller.watch(since, self._controller_failed)
                async with aclosing(watch) as signals:
                    self._controller_is("OK")
                    async for signal in signals:
                        self._controller_is("OK")
                        self._model.add_signal(signal)
                        since = max(since, signal.at)
                        if signal.at >= self._clock.now() - self._model.length:
                            self._hub.tell("signal", signal)
            except GridveilError as error:
                self._controller_is(error.reason.value)
            await asyncio.sleep(_LATER_S)

    async def _follow_delivery(self, controller: SignalSource) -> None:
        """A signal comes once; what becomes of its events shows only if it is asked for again."""
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                signal = await controller.signal()
            except GridveilError:  # the other task says so
                continue
            if self._model.update_signal(signal):
                self._hub.tell("signal", signal)

    def _totals_failed(self, error: GridveilError) -> None:
        self._totals_are(error.reason.value)

    def _controller_failed(self, error: GridveilError) -> None:
        self._controller_is(error.reason.value)

    def _totals_are(self, how: str) -> None:
        if self.health.totals != how:
            self.health.totals = how
            self._tell_health()

    def _controller_is(self, how: str) -> None:
        if self.health.controller != how:
            self.health.controller = how
            self._tell_health()

    def _tell_health(self) -> None:
        self._hub.tell("health", self.health)

    def _aligned(self, at: float) -> int:
        return max(int(at) // self._model.length * self._model.length, self._model.length)


def _names(faults: BaseExceptionGroup[BaseException]) -> list[str]:
    """Kinds of what went wrong: their texts may have what no log is to have."""
    return [
        name
        for fault in faults.exceptions
        for name in (
            _names(fault) if isinstance(fault, BaseExceptionGroup) else [type(fault).__name__]
        )
    ]
