"""Interval values of a file to windows, and what may be said of each (VEE).

A window is validated if all of it was measured, and plausible. One that holds anything estimated,
substituted or edited is estimated; one of which anything is missing, or said twice and differently,
has no value. Windows are told in order, gaps with them. Pure: slots in, findings out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from gridveil.meters.intervals import Cause, Finding, Interval, Lapse, Quality
from gridveil.meters.registers import MOST_PER_HOUR
from gridveil.meters.slots import MICRO, Grade, Slot, fault
from gridveil.meters.still import Runs, watch


@dataclass(frozen=True)
class _Part:
    """One channel's energy of a window."""

    wh: int
    quality: Quality


_Parts = dict[int, _Part | Cause]
"""By window start: a value, or why there is none."""


@dataclass
class _Gathered:
    """The slots of one channel and window, while they are taken."""

    covered: int = 0
    micro: int = 0
    end: int = 0
    estimated: bool = False
    missing: bool = False
    contradicted: bool = False


def validate(
    channels: Mapping[str, Iterable[Slot]],
    registers: Mapping[str, tuple[str, ...]],
    length: int,
) -> list[Finding]:
    """Every window from the first that the file holds to the last, in order.

    Args:
        channels: the slots of one meter, in any order.
        registers: the channels that each register is the sum of.
        length: of a window, seconds.

    Raises:
        MalformedInput: READING_INVALID with the fault ``interval`` for slots that do not make up
            windows of this length; with ``register`` if a channel is not in the file.
    """
    wanted = dict.fromkeys(channel for named in registers.values() for channel in named)
    if not wanted or not wanted.keys() <= channels.keys():
        raise fault("register", "the meter has no such channel of energy")
    parts = {channel: _parts(channels[channel], length) for channel in wanted}
    starts = sorted(set().union(*parts.values()))
    findings = [_finding(start, parts, registers, length) for start in starts]
    return list(_watched(_without_holes(findings, length), length))


def _parts(slots: Iterable[Slot], length: int) -> _Parts:
    gathered: dict[int, _Gathered] = {}
    before: Slot | None = None
    for slot in sorted(slots):
        _check(slot, length)
        window = gathered.setdefault(slot.start // length * length, _Gathered())
        if slot == before:
            continue
        before = slot
        _gather(window, slot)
    return _rounded(gathered, length)


def _check(slot: Slot, length: int) -> None:
    if slot.start // length != (slot.start + slot.seconds - 1) // length:
        raise fault(
            "interval",
            f"intervals of {slot.seconds:,} s, which do not make up windows of {length:,} s",
        )


def _gather(window: _Gathered, slot: Slot) -> None:
    window.contradicted |= slot.start < window.end
    window.end = max(window.end, slot.start + slot.seconds)
    window.covered += slot.seconds
    window.micro += slot.micro
    window.estimated |= slot.grade is Grade.ESTIMATED
    window.missing |= slot.grade is Grade.MISSING


def _rounded(gathered: Mapping[int, _Gathered], length: int) -> _Parts:
    """Whole Wh: what is below one goes into the window after it, as it does in a register."""
    parts: _Parts = {}
    carried, before = 0, (-length, Quality.VALIDATED)
    for start, window in gathered.items():
        cause = _cause(window, length)
        if cause is not None:
            parts[start] = cause
            continue
        quality = Quality.ESTIMATED if window.estimated else Quality.VALIDATED
        if before != (start - length, quality):
            carried = 0
        wh, carried = divmod(window.micro + carried, MICRO)
        before = start, quality
        parts[start] = _Part(wh, quality)
    return parts


def _cause(window: _Gathered, length: int) -> Cause | None:
    if window.contradicted:
        return Cause.CONTRADICTION
    if window.missing or window.covered < length:
        return Cause.GAP
    most = MOST_PER_HOUR * MICRO * length // 3600
    return None if 0 <= window.micro <= most else Cause.IMPLAUSIBLE


def _finding(
    start: int,
    parts: Mapping[str, _Parts],
    registers: Mapping[str, tuple[str, ...]],
    length: int,
) -> Finding:
    here = {channel: found.get(start, Cause.GAP) for channel, found in parts.items()}
    causes = [part for part in here.values() if isinstance(part, Cause)]
    if causes:
        return Lapse(start, start + length, min(causes, key=_GRAVITY.index))
    known = {channel: part for channel, part in here.items() if isinstance(part, _Part)}
    values = {name: sum(known[channel].wh for channel in c) for name, c in registers.items()}
    estimated = any(part.quality is Quality.ESTIMATED for part in known.values())
    return Interval(start, values, Quality.ESTIMATED if estimated else Quality.VALIDATED)


_GRAVITY = [Cause.CONTRADICTION, Cause.IMPLAUSIBLE, Cause.GAP]
"""Which cause is told if channels have several."""


def _without_holes(findings: list[Finding], length: int) -> Iterator[Finding]:
    """With a lapse wherever the file says nothing; lapses of one cause in one piece."""
    lapse: Lapse | None = None
    for finding in _filled(findings, length):
        if isinstance(finding, Lapse) and lapse is not None and lapse.cause is finding.cause:
            lapse = Lapse(lapse.start, finding.end, lapse.cause)
            continue
        if lapse is not None:
            yield lapse
        lapse = finding if isinstance(finding, Lapse) else None
        if isinstance(finding, Interval):
            yield finding
    if lapse is not None:
        yield lapse


def _filled(findings: list[Finding], length: int) -> Iterator[Finding]:
    yield from findings[:1]
    for before, finding in pairwise(findings):
        if before.start + length < finding.start:
            yield Lapse(before.start + length, finding.start, Cause.GAP)
        yield finding


def _watched(findings: Iterable[Finding], length: int) -> Iterator[Finding]:
    runs: Runs = {}
    for finding in findings:
        if isinstance(finding, Lapse):
            runs = {}
            yield finding
            continue
        runs, still = watch(runs, finding.values, length)
        yield Interval(finding.start, finding.values, finding.quality, still)
