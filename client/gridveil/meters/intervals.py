"""Cumulative registers to the energy of each window, and what may be said of it (VEE).

A window's energy is what the registers counted between the reading at its start and the one at its
end: the first reading at or after a boundary, no later than the tolerance. Nothing else is a
measurement. Where a boundary has no such reading, energy is estimated in proportion to time, and
called so; where nothing can be known, there is a lapse with its cause. Whatever happens to a
meter's clock, a window is concluded once: what comes later can never say otherwise.

All functions are pure: state and reading in, state and findings out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gridveil.meters.registers import MODULUS, Reading, RegisterMap, advance


class Quality(StrEnum):
    """What a value is. Only a validated one may be sent: a report cannot say that it is less."""

    VALIDATED = "validated"
    """Measured at both ends of its window, and plausible."""
    ESTIMATED = "estimated"
    """Interpolated over a gap."""


class Cause(StrEnum):
    """Why nothing is known of some windows."""

    STARTED = "started"
    """The first reading came within the window."""
    REPLACED = "replaced"
    """Another meter was put in."""
    CLOCK_SET = "clock_set"
    """The meter's clock jumped."""
    REGISTER_SET = "register_set"
    """A register went back, or counted more than it can have."""
    GAP = "gap"
    """No reading for longer than is estimated; in a file, no value or half of one."""
    CONTRADICTION = "contradiction"
    """A file says two things of it."""
    IMPLAUSIBLE = "implausible"
    """A file says less than nothing, or more than a home's connection carries."""


class Ignored(StrEnum):
    """Why a reading changed nothing."""

    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    """Other values at a moment that has some: the first stand."""
    OUT_OF_ORDER = "out_of_order"


@dataclass(frozen=True)
class Interval:
    """The energy of one window."""

    start: int
    """Unix seconds UTC."""
    values: Mapping[str, int] = field(repr=False)
    """Whole Wh or varh, by the city's name of the register."""
    quality: Quality
    still: frozenset[str] = frozenset()
    """Registers that may be stuck (see :mod:`gridveil.meters.still`)."""


@dataclass(frozen=True)
class Lapse:
    """Windows without a value: a gap, never a zero."""

    start: int
    end: int
    """First second after the last of them."""
    cause: Cause


Finding = Interval | Lapse


@dataclass(frozen=True)
class Point:
    """The registers at a boundary between windows."""

    at: int
    registers: Mapping[str, int] = field(repr=False)
    measured: bool


@dataclass(frozen=True)
class Rules:
    """How findings are made."""

    length: int
    """Of a window, seconds."""
    registers: RegisterMap
    tolerance: int = 30
    """How late after a boundary a reading still is the boundary's, seconds."""
    jump: int = 30
    """By how much a meter's clock may run ahead or behind between two readings, seconds."""
    longest_estimate: int = 24 * 3600
    """Gaps up to so many seconds are estimated."""
    modulus: int = MODULUS

    def boundary(self, at: int) -> int:
        """The last boundary at or before a moment."""
        return at // self.length * self.length


@dataclass(frozen=True)
class Track:
    """What is known of one meter."""

    last: Reading
    point: Point | None
    """At the start of the window in progress; None if that is unknown."""
    horizon: int
    """Windows that begin before this are concluded."""
    cause: Cause = Cause.STARTED
    """Why the point is unknown, if it is."""


@dataclass(frozen=True)
class Step:
    """What a reading made of a track."""

    track: Track
    findings: tuple[Finding, ...] = ()
    ignored: Ignored | None = None


def follow(track: Track | None, reading: Reading, rules: Rules) -> Step:
    """Take the next reading of a home.

    Args:
        track: of the readings before; None if there are none.
        reading: holds every code of the rules' registers.
        rules: window length, registers and tolerances.
    """
    if track is None:
        begun = _afresh(reading, rules, rules.boundary(reading.at), Cause.STARTED)
        return Step(begun)
    last = track.last
    if reading.meter != last.meter or reading.registers.keys() != last.registers.keys():
        return _interrupted(track, reading, rules, Cause.REPLACED)
    if _clock_was_set(last, reading, rules):
        return _interrupted(track, reading, rules, Cause.CLOCK_SET)
    if reading.at <= last.at:
        return Step(track, ignored=_why_ignored(last, reading))
    if _counted(last.registers, reading, reading.at - last.at, rules) is None:
        return _interrupted(track, reading, rules, Cause.REGISTER_SET)
    return _continued(track, reading, rules)


def _clock_was_set(last: Reading, reading: Reading, rules: Rules) -> bool:
    """By both clocks if both are there; else only a step back that counted on shows."""
    meter = reading.at - last.at
    if last.heard is not None and reading.heard is not None:
        return abs(meter - (reading.heard - last.heard)) > rules.jump
    if meter >= -rules.jump:
        return False
    ahead = _counted(last.registers, reading, 0, rules)
    return ahead is not None and any(ahead.values())


def _why_ignored(last: Reading, reading: Reading) -> Ignored:
    if reading.at < last.at:
        return Ignored.OUT_OF_ORDER
    same = reading.registers == last.registers
    return Ignored.DUPLICATE if same else Ignored.CONTRADICTION


def _counted(
    before: Mapping[str, int], reading: Reading, seconds: int, rules: Rules
) -> dict[str, int] | None:
    """Energy by code since ``before``; None if a register did not count up."""
    energy = {}
    for code, value in before.items():
        counted = advance(value, reading.registers[code], seconds, rules.modulus)
        if counted is None:
            return None
        energy[code] = counted
    return energy


def _afresh(reading: Reading, rules: Rules, horizon: int, cause: Cause) -> Track:
    """A track that begins with a reading, which may be that of its window's start."""
    start = rules.boundary(reading.at)
    on_time = reading.at - start <= rules.tolerance and start >= horizon
    point = Point(start, reading.registers, True) if on_time else None
    return Track(reading, point, max(horizon, start), cause)


def _interrupted(track: Track, reading: Reading, rules: Rules, cause: Cause) -> Step:
    """What the window in progress held is lost, and so are those up to the reading."""
    fresh = _afresh(reading, rules, track.horizon, cause)
    if fresh.point is not None and fresh.point.at == track.horizon and track.point is not None:
        # A window that had begun cannot begin again with another meter or clock.
        fresh = replace(fresh, point=None)
    start = fresh.horizon
    lapse = (Lapse(track.horizon, start, cause),) if start > track.horizon else ()
    return Step(fresh, lapse)


def _continued(track: Track, reading: Reading, rules: Rules) -> Step:
    start = rules.boundary(reading.at)
    if start <= track.horizon and not (track.point is None and start == track.horizon):
        return Step(replace(track, last=reading))
    if start == track.horizon:
        return Step(_begun_late(track, reading, start, rules))
    if track.point is None:
        lapse = Lapse(track.horizon, start, track.cause)
        return Step(_next(track, reading, start, rules), (lapse,))
    if start - track.point.at > rules.longest_estimate:
        lapse = Lapse(track.horizon, start, Cause.GAP)
        return Step(_afresh(reading, rules, start, Cause.GAP), (lapse,))
    following = _next(track, reading, start, rules)
    return Step(following, tuple(_intervals(track, following, reading, rules)))


def _begun_late(track: Track, reading: Reading, start: int, rules: Rules) -> Track:
    """The horizon is reached again, as after a clock was set back: it may be a boundary yet."""
    if track.last.at < start and reading.at - start <= rules.tolerance:
        return replace(track, last=reading, point=Point(start, reading.registers, True))
    return replace(track, last=reading)


def _next(track: Track, reading: Reading, start: int, rules: Rules) -> Track:
    """The track once ``start`` is its boundary: read there, or interpolated over a gap."""
    if reading.at - start <= rules.tolerance:
        point = Point(start, reading.registers, True)
    else:
        point = Point(start, _between(track.last, reading, start, rules), False)
    return Track(reading, point, start)


def _between(last: Reading, reading: Reading, at: int, rules: Rules) -> dict[str, int]:
    """The registers at a moment between two readings, by time; whole numbers, rounded down."""
    span = reading.at - last.at
    energy = _counted(last.registers, reading, span, rules) or {}
    return {
        code: (last.registers[code] + counted * (at - last.at) // span) % rules.modulus
        for code, counted in energy.items()
    }


def _intervals(
    track: Track, following: Track, reading: Reading, rules: Rules
) -> Iterator[Interval]:
    """The windows from the track's boundary to the following one's."""
    first, final = track.point, following.point
    if first is None or final is None:
        return
    before = first
    for at in range(first.at + rules.length, final.at + 1, rules.length):
        if at == final.at:
            after = final
        else:
            after = Point(at, _between(track.last, reading, at, rules), False)
        energy = {
            code: (after.registers[code] - value) % rules.modulus
            for code, value in before.registers.items()
        }
        measured = before.measured and after.measured
        quality = Quality.VALIDATED if measured else Quality.ESTIMATED
        yield Interval(before.at, rules.registers.named(energy), quality)
        before = after
