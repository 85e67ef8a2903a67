"""Rows and columns of a table of totals: pure functions of outcomes, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from itertools import chain

from gridveil.days import offset_at
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.release import RegisterTotal, Total
from gridveil.settlements import NotReleased, NotReleasedReason, Outcome, ReleasedTotal

MOST_ROWS = 1_000_000
"""28 years of quarter-hours. A range of so many is a mistake."""

_LATEST = 2**37
"""Unix seconds that calendars have, of any zone."""

Value = str | int | float | None
Deviations = Callable[[ReleasedTotal], Mapping[str, float]]
"""Such as :meth:`gridveil.operator.Operator.deviations`; empty if they are not known."""


class Status(StrEnum):
    """What became of a window, as far as is known."""

    RELEASED = "released"
    NOT_RELEASED = "not_released"
    """Settled, without a total; the reason says why."""
    NOT_SETTLED = "not_settled"
    """Not over, not yet opened, or not within what was asked for."""


class Kind(StrEnum):
    """What the values of a column are."""

    INSTANT = "instant"
    """Unix seconds, UTC."""
    WALL_CLOCK = "wall_clock"
    """What a clock on the wall shows, as seconds since it showed 1970-01-01."""
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"


@dataclass(frozen=True)
class Layout:
    """What all rows of a table share."""

    registers: tuple[tuple[str, str], ...] = ()
    """Name and unit, in order."""
    window_length: int | None = None
    """Seconds; None while no total tells: then no window can be said to be missing."""
    zone: tzinfo = UTC
    """Of the local time."""

    @classmethod
    def of(cls, total: Total, zone: tzinfo = UTC) -> Layout:
        """The layout that a total asks for."""
        return cls(_registers(total.registers), total.window_length, zone)


@dataclass(frozen=True)
class Row:
    """A window. Either ``released`` is its total, or there is none."""

    window_start: int
    """Unix seconds UTC."""
    status: Status
    reason: NotReleasedReason | None = None
    """Why a settled window has no total."""
    released: ReleasedTotal | None = None
    deviations: Mapping[str, float] = field(default_factory=dict)
    """Standard deviation of the noise by register, in its unit; 0 if exact, none if not known."""

    def utc_offset(self, zone: tzinfo) -> int:
        """Seconds that a zone's clocks are ahead of UTC when the window begins."""
        return int(offset_at(self.window_start, zone).total_seconds())


@dataclass(frozen=True)
class Column:
    """A column, and how a row gives its value."""

    name: str
    kind: Kind
    value: Callable[[Row], Value]
    unit: str | None = None


def survey(outcomes: Iterable[Outcome], zone: tzinfo = UTC) -> tuple[Layout, Iterator[Outcome]]:
    """The layout by the first total there is, and all outcomes again.

    Reads no further than that total.
    """
    source, before = iter(outcomes), []
    for outcome in source:
        before.append(outcome)
        if isinstance(outcome, ReleasedTotal):
            return Layout.of(outcome.total, zone), chain(before, source)
    return Layout(zone=zone), iter(before)


def rows(
    outcomes: Iterable[Outcome],
    layout: Layout,
    *,
    first: int | None = None,
    end: int | None = None,
    deviations: Deviations | None = None,
) -> Iterator[Row]:
    """A row a window, those that are not settled included.

    Args:
        outcomes: ascending by window; those before ``first`` or from ``end`` on are passed over.
        layout: of every total among them.
        first: the first window; None: the first one that is settled.
        end: the first window that is left out; None: the table ends with the last settled one.
        deviations: asked for the totals that have noise.

    Raises:
        MalformedInput: RANGE_INVALID if outcomes do not ascend, have other registers or windows
            of another length than the layout, or are more than a table may have;
            WINDOW_MISALIGNED for windows that are none of this length.
    """
    expected, count = first, 0
    for outcome in outcomes:
        start = outcome.window_start
        if (first is not None and start < first) or (end is not None and start >= end):
            continue
        for row in chain(
            _unsettled(expected, start, layout, count), (_row(outcome, layout, deviations),)
        ):
            yield row
            count += 1
        expected = start + (layout.window_length or 1)
    if end is not None:
        yield from _unsettled(expected, end, layout, count)


def columns(layout: Layout) -> tuple[Column, ...]:
    """The columns of a table, in order; what docs/operations.md lists.

    A register's column ends with its unit in lower case, and never has the name of another.
    """
    zone = layout.zone
    leading = (
        Column("window_start", Kind.INSTANT, lambda row: row.window_start),
        Column("local_start", Kind.WALL_CLOCK, lambda row: row.window_start + row.utc_offset(zone)),
        Column("utc_offset_minutes", Kind.INTEGER, lambda row: row.utc_offset(zone) // 60, "min"),
        Column("window_length", Kind.INTEGER, lambda _row: layout.window_length, "s"),
        Column("status", Kind.TEXT, lambda row: row.status.value),
        Column("reason", Kind.TEXT, lambda row: row.reason and row.reason.value),
    )
    trailing = (
        Column("count", Kind.INTEGER, _of_total(lambda found: found.count)),
        Column("enrolled", Kind.INTEGER, _of_total(lambda found: found.total.enrolled)),
        Column("coverage", Kind.NUMBER, _of_total(lambda found: found.coverage)),
        Column("signed_total", Kind.TEXT, _of_total(lambda found: found.encoded.hex())),
        Column("signature", Kind.TEXT, _of_total(lambda found: found.signature.hex())),
    )
    taken, registers = {column.name for column in leading + trailing}, list[Column]()
    for name, unit in layout.registers:
        found = _register_columns(name, unit, taken)
        taken |= {column.name for column in found}
        registers += found
    return (*leading, *registers, *trailing)


def _register_columns(register: str, unit: str, taken: set[str]) -> tuple[Column, Column]:
    suffix = f"_{unit.lower()}"
    name = register if register.endswith(suffix) else register + suffix
    while taken & {name, f"{name}_deviation"}:
        name = f"register_{name}"
    return (
        Column(name, Kind.INTEGER, _of_total(lambda found: found.sum(register)), unit),
        Column(f"{name}_deviation", Kind.NUMBER, lambda row: row.deviations.get(register), unit),
    )


def _of_total(figure: Callable[[ReleasedTotal], Value]) -> Callable[[Row], Value]:
    """Null where there is no total, never 0."""
    return lambda row: None if row.released is None else figure(row.released)


def _row(outcome: Outcome, layout: Layout, deviations: Deviations | None) -> Row:
    _check_start(outcome.window_start, layout)
    if isinstance(outcome, NotReleased):
        return Row(outcome.window_start, Status.NOT_RELEASED, outcome.reason)
    total = outcome.total
    if _registers(total.registers) != layout.registers:
        raise _invalid("the totals of this range have different registers")
    if total.window_length != layout.window_length:
        raise _invalid("the windows of this range have different lengths")
    if outcome.noise is None:
        noise: Mapping[str, float] = dict.fromkeys((name for name, _ in layout.registers), 0.0)
    else:
        noise = deviations(outcome) if deviations else {}
    return Row(outcome.window_start, Status.RELEASED, released=outcome, deviations=noise)


def _unsettled(expected: int | None, until: int, layout: Layout, count: int) -> Iterator[Row]:
    """The windows from the expected one to another, left out."""
    length = layout.window_length
    if expected is None:
        return
    if until < expected:
        raise _invalid("the windows do not ascend, or the range ends before it begins")
    if length is None:
        return
    _check_start(expected, layout)
    missing = range(expected, until, length)
    if count + len(missing) >= MOST_ROWS:
        raise _invalid(f"a table has less than {MOST_ROWS:,} windows")
    for start in missing:
        yield Row(start, Status.NOT_SETTLED)


def _check_start(start: int, layout: Layout) -> None:
    if not 0 <= start <= _LATEST:
        raise _invalid("no calendar has this window")
    if start % (layout.window_length or 1):
        raise MalformedInput(Reason.WINDOW_MISALIGNED, "not the start of a window")


def _registers(registers: Iterable[RegisterTotal]) -> tuple[tuple[str, str], ...]:
    return tuple((register.name, register.unit) for register in registers)


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.RANGE_INVALID, message)
