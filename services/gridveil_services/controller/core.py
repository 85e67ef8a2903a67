"""From totals and time to a signal: a pure function of state and event, replayable to the byte.

The signal is a fold: ``state, signal = step(rules, state, event)``. Only integers take part, so the
same events give the same bytes anywhere. What a forecast says takes no part (docs/control.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

import msgspec

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.rules import ControlRules


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """A verified total, known at ``at`` (Unix seconds). ``energy_wh`` over ``count`` meters."""

    at: int
    window_start: int
    energy_wh: int
    count: int
    enrolled: int


class Gap(msgspec.Struct, frozen=True, tag="gap"):
    """A window settled without a total, for a reason that the operator's client gives."""

    at: int
    window_start: int
    reason: str


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """Time has come to ``at``, and nothing else has happened."""

    at: int


Event = Settled | Gap | Tick


class Basis(StrEnum):
    """What a signal rests on."""

    MEASURED = "MEASURED"
    """A fresh total over every enrolled meter."""
    ESTIMATED = "ESTIMATED"
    """A fresh total over most, scaled up to all: an estimate, and acted on as one."""
    HELD = "HELD"
    """No fresh total: the last signal stands."""
    NEUTRAL = "NEUTRAL"
    """No fresh total for too long, or never: level 0."""


class Cause(StrEnum):
    """Why the signal is what it is."""

    CAPACITY = "CAPACITY"
    RAMP = "RAMP"
    BELOW = "BELOW"
    """Demand asks for nothing."""
    HOLD_TIME = "HOLD_TIME"
    """Demand asks for less, but the level has not stood for long enough."""
    HYSTERESIS = "HYSTERESIS"
    """Demand is below the threshold, but not far enough."""
    NOT_RELEASED = "NOT_RELEASED"
    COVERAGE = "COVERAGE"
    """Too few meters are in the total."""
    LATE = "LATE"
    """The total is of a window that is stale, or older than one that was acted on."""
    WAITING = "WAITING"
    """No news; the newest total is still fresh."""
    STALE = "STALE"
    NO_TOTAL = "NO_TOTAL"


class State(msgspec.Struct, frozen=True):
    """All that later signals depend on."""

    at: int = 0
    level: int = 0
    changed_at: int | None = None
    window_start: int | None = None
    """The newest window that was acted on."""
    demand_w: int | None = None
    """Its demand."""
    estimated: bool = False


class Signal(msgspec.Struct, frozen=True):
    """What is signalled from ``at`` on. Power in W, None where there is no figure: never 0 for it.

    ``measured_w`` is of the meters in the total only; ``estimated_w`` is that scaled up to all
    enrolled, and only there if some are missing.
    """

    at: int
    window_start: int | None
    level: int
    basis: Basis
    cause: Cause
    measured_w: int | None = None
    estimated_w: int | None = None
    ramp_w: int | None = None
    reason: str = ""
    """Of a window that was not released."""

    def encode(self) -> bytes:
        """One line of JSON."""
        return msgspec.json.encode(self)


class _Demand(NamedTuple):
    measured_w: int
    estimated_w: int | None
    ramp_w: int | None

    @property
    def acted_on_w(self) -> int:
        return self.measured_w if self.estimated_w is None else self.estimated_w


def fold(
    rules: ControlRules, events: Iterable[Event], state: State | None = None
) -> Iterator[Signal]:
    """The signals of events in order, from a state on."""
    state = state or State()
    for event in events:
        state, signal = step(rules, state, event)
        yield signal


def step(rules: ControlRules, state: State, event: Event) -> tuple[State, Signal]:
    """The next state and the signal.

    Raises:
        MalformedInput: RANGE_INVALID if time goes back, a window starts off the grid or has not
            ended, or a total's counts are impossible.
    """
    _check(rules, state, event)
    state = msgspec.structs.replace(state, at=event.at)
    if isinstance(event, Tick):
        return _without_news(rules, state, Cause.WAITING)
    if isinstance(event, Gap):
        return _without_news(rules, state, Cause.NOT_RELEASED, event.reason, event.window_start)
    if _is_late(rules, state, event):
        return _without_news(rules, state, Cause.LATE, "", event.window_start)
    if not rules.covers(event.count, event.enrolled):
        return _without_news(rules, state, Cause.COVERAGE, "", event.window_start)
    return _act(rules, state, event)


def next_tick(rules: ControlRules, state: State) -> int:
    """When to look at the time again, Unix seconds: at the end of a window, and where it decides.

    Time alone makes a total stale, and ends what was held for long enough.
    """
    instants = [(state.at // rules.window_length + 1) * rules.window_length]
    if state.window_start is not None:
        stale_at = _stale_at(rules, state.window_start)
        instants += [stale_at, stale_at + rules.hold_safe_s]
    return min(instant for instant in instants if instant > state.at)


def _act(rules: ControlRules, state: State, event: Settled) -> tuple[State, Signal]:
    demand = _demand(rules, state, event)
    level, cause = _level(rules, state, demand)
    new = State(
        at=event.at,
        level=level,
        changed_at=event.at if level != state.level else state.changed_at,
        window_start=event.window_start,
        demand_w=demand.acted_on_w,
        estimated=demand.estimated_w is not None,
    )
    basis = Basis.ESTIMATED if new.estimated else Basis.MEASURED
    return new, Signal(event.at, event.window_start, level, basis, cause, *demand)


def _demand(rules: ControlRules, state: State, event: Settled) -> _Demand:
    """W over the window; the ramp only from the very window before, and between like figures."""
    seconds = rules.window_length
    measured = event.energy_wh * 3600 // seconds
    estimated = None
    if event.count < event.enrolled:
        estimated = event.energy_wh * 3600 * event.enrolled // (seconds * event.count)
    ramp = None
    if state.demand_w is not None and state.window_start == event.window_start - seconds:
        ramp = (measured if estimated is None else estimated) - state.demand_w
    return _Demand(measured, estimated, ramp)


def _level(rules: ControlRules, state: State, demand: _Demand) -> tuple[int, Cause]:
    """Up at once; down only below the hysteresis, and not within the hold time."""
    by_capacity = _reached(rules, demand.acted_on_w)
    by_ramp = int(demand.ramp_w is not None and demand.ramp_w >= rules.ramp_limit_w)
    asked = max(by_capacity, by_ramp)
    kept = max(asked, min(state.level, _reached(rules, demand.acted_on_w + rules.hysteresis_w)))
    if kept < state.level and _within_hold(rules, state):
        return state.level, Cause.HOLD_TIME
    if kept > asked:
        return kept, Cause.HYSTERESIS
    if kept == 0:
        return 0, Cause.BELOW
    return kept, Cause.CAPACITY if by_capacity == kept else Cause.RAMP


def _reached(rules: ControlRules, demand_w: int) -> int:
    return sum(demand_w >= rules.threshold_w(level) for level in (1, 2, 3))


def _within_hold(rules: ControlRules, state: State) -> bool:
    return state.changed_at is not None and state.at < state.changed_at + rules.hold_s


def _without_news(
    rules: ControlRules,
    state: State,
    cause: Cause,
    reason: str = "",
    window_start: int | None = None,
) -> tuple[State, Signal]:
    """Hold the last signal for as long as the rules allow; then neutral."""
    shown = state.window_start if window_start is None else window_start
    if state.window_start is None:
        cause = Cause.NO_TOTAL if cause is Cause.WAITING else cause
        return state, Signal(state.at, shown, 0, Basis.NEUTRAL, cause, reason=reason)
    stale_at = _stale_at(rules, state.window_start)
    if state.at >= stale_at + rules.hold_safe_s:
        cause = Cause.STALE if cause is Cause.WAITING else cause
        state = msgspec.structs.replace(state, level=0)
        return state, Signal(state.at, shown, 0, Basis.NEUTRAL, cause, reason=reason)
    if state.at >= stale_at and cause is Cause.WAITING:
        cause = Cause.STALE
    return state, Signal(state.at, shown, state.level, Basis.HELD, cause, reason=reason)


def _is_late(rules: ControlRules, state: State, event: Settled) -> bool:
    if state.window_start is not None and event.window_start <= state.window_start:
        return True
    return event.at >= _stale_at(rules, event.window_start)


def _stale_at(rules: ControlRules, window_start: int) -> int:
    return window_start + rules.window_length + rules.stale_after_s


def _check(rules: ControlRules, state: State, event: Event) -> None:
    if event.at < state.at:
        raise MalformedInput(Reason.RANGE_INVALID, "events are in order of time")
    if isinstance(event, Tick):
        return
    if event.window_start % rules.window_length:
        raise MalformedInput(Reason.WINDOW_MISALIGNED, "a window starts on the grid of its length")
    if event.at < event.window_start + rules.window_length:
        raise MalformedInput(Reason.RANGE_INVALID, "a window has ended before it is settled")
    if isinstance(event, Settled) and not 0 < event.count <= event.enrolled:
        raise MalformedInput(Reason.RANGE_INVALID, "a total has 1 to all enrolled meters")
