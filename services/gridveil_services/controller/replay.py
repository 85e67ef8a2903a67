"""What would have been signalled: totals of the past as the events that they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.release import Total
from gridveil.totals_file import Row
from gridveil_services.controller.core import Event, Gap, Settled, Signal, State, Tick, step
from gridveil_services.controller.rules import ControlRules

MOST_WINDOWS = 1_000_000


class Replayed(NamedTuple):
    """What was signalled when a window was due, and what was known of it."""

    window_start: int
    event: Event
    signal: Signal


def replay(
    rules: ControlRules, rows: Sequence[Row], settle_s: int, until: int = 0
) -> Iterator[Replayed]:
    """The signals from the first window of ``rows`` to the last, or to one before ``until``.

    Args:
        rules: of the city.
        rows: ascending by window, each window at most once.
        settle_s: how long after its end a window is taken to have been settled: totals do not say.
        until: first window start that is left out; 0: none after the last row.

    Raises:
        MalformedInput: CONFIG_INVALID if the totals are not of windows and a register as in the
            rules; RANGE_INVALID for more than 1,000,000 windows.
    """
    state = State()
    for window, event in _events(rules, rows, settle_s, until):
        state, signal = step(rules, state, event)
        yield Replayed(window, event, signal)


def _events(
    rules: ControlRules, rows: Sequence[Row], settle_s: int, until: int
) -> Iterator[tuple[int, Event]]:
    if not rows:
        return
    length, first = rules.window_length, rows[0].window_start
    end = max(until, rows[-1].window_start + 1)
    if (end - first) // length > MOST_WINDOWS:
        raise MalformedInput(Reason.RANGE_INVALID, "these are more than 1,000,000 windows")
    by_window = {row.window_start: row for row in rows}
    if any((window - first) % length for window in by_window):
        raise MalformedInput(Reason.WINDOW_MISALIGNED, "a window is off the grid of its length")
    for window in range(first, end, length):
        yield window, _event(rules, by_window.get(window), window + length + settle_s)


def _event(rules: ControlRules, row: Row | None, at: int) -> Event:
    if row is None:
        return Tick(at)
    if not isinstance(row, Total):
        return Gap(at, row.window_start, row.reason.value)
    units = {register.name: register.unit for register in row.registers}
    if units.get(rules.register) != "Wh" or row.window_length != rules.window_length:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "the totals have no such register in Wh, or other windows"
        )
    return Settled(at, row.window_start, row.sum(rules.register), row.count, row.enrolled)
