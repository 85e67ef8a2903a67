"""Verified totals against what a feeder measured: the losses of a city, window by window and day.

``difference = feeder - (import - export)``: technical losses, theft, and meters that are wrong,
all in one; nothing here tells them apart. What meters did not report is not a loss: a total of
fewer meters than are enrolled is scaled to all of them, and such a window is ESTIMATED, as is every
day that has one. A window that only one side has is not compared, and never counts as zero.

Pure: the same totals, feeder and terms give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, tzinfo
from enum import StrEnum
from itertools import groupby

from gridveil.days import day_of, windows_of
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.register_names import EXPORT_REGISTER, IMPORT_REGISTER
from gridveil.settlements import NotReleased, Outcome, ReleasedTotal

Settled = tuple[Outcome, Mapping[str, float]]
"""An outcome, and the standard deviation of the noise in each of its sums."""


class Basis(StrEnum):
    """What a total of the city rests on."""

    MEASURED = "MEASURED"
    """All enrolled meters."""
    ESTIMATED = "ESTIMATED"
    """Some of them, scaled to all."""


class Verdict(StrEnum):
    """What a difference is, next to the losses that are expected."""

    WITHIN = "WITHIN"
    ABOVE = "ABOVE"
    """More was lost than expected, by more than noise explains."""
    BELOW = "BELOW"
    """Meters counted more than was fed in, by more than noise explains."""


class Missing(StrEnum):
    """Why a window is not compared."""

    NO_FEEDER = "NO_FEEDER"
    """The feeder has no such row."""
    NOT_SETTLED = "NOT_SETTLED"
    """The totals have no such window."""
    REFUSED = "REFUSED"
    EXPIRED = "EXPIRED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    COVERAGE = "COVERAGE"
    """Too few meters to scale from."""
    NOISE_UNKNOWN = "NOISE_UNKNOWN"
    """The total has noise, and nothing says how much."""


@dataclass(frozen=True)
class Terms:
    """What is expected, and what is said of it."""

    zone: tzinfo
    """Where the city's days begin and end."""
    losses_percent: float | None = None
    """Most losses that are expected, of the feeder's energy; None: no verdict is given."""
    deviations: float = 2.0
    """So many standard deviations of noise explain a difference."""
    min_coverage: float = 0.8
    """Least share of enrolled meters to scale from, 0 to 1."""


@dataclass(frozen=True)
class Comparison:
    """Totals and feeder over the same windows. Energies are in Wh."""

    basis: Basis
    feeder_wh: int
    city_wh: int
    """Import less export; if ESTIMATED, with the estimated windows scaled, rounded down."""
    noise_wh: float
    """Standard deviation of the noise in ``city_wh``; 0: exact."""
    within_noise: bool
    """The difference is as small as noise may make it from none."""
    verdict: Verdict | None

    @property
    def difference_wh(self) -> int:
        """What the feeder delivered and no meter counted."""
        return self.feeder_wh - self.city_wh

    @property
    def percent(self) -> float | None:
        """The difference by the feeder's energy; None if that is 0."""
        return 100 * self.difference_wh / abs(self.feeder_wh) if self.feeder_wh else None


@dataclass(frozen=True)
class Window:
    """One window; ``compared`` or ``missing``, never both."""

    window_start: int
    coverage: float | None
    """Of its total, 0 to 1; None if there is none."""
    compared: Comparison | None
    missing: Missing | None


@dataclass(frozen=True)
class Day:
    """A local day, over those of its windows that could be compared."""

    day: date
    windows: int
    """That the day has: 92, 96 or 100 quarter-hours."""
    compared: int
    estimated: int
    """Of ``compared``."""
    comparison: Comparison | None
    """None if nothing could be compared."""


@dataclass(frozen=True)
class Reconciliation:
    """What came out."""

    windows: tuple[Window, ...]
    days: tuple[Day, ...]

    @property
    def beyond(self) -> bool:
        """Whether a window or a day is ABOVE or BELOW what is expected."""
        found = [window.compared for window in self.windows]
        found += [day.comparison for day in self.days]
        return any(one.verdict not in (None, Verdict.WITHIN) for one in found if one)

    @property
    def empty(self) -> bool:
        """Whether no window could be compared."""
        return not any(window.compared for window in self.windows)


def reconcile(
    settled: Sequence[Settled], feeder: Mapping[int, int], terms: Terms
) -> Reconciliation:
    """Compare every window that either side has.

    Args:
        settled: outcomes of one city, each window at most once.
        feeder: Wh by window start, on the grid of the city's windows.
        terms: what is expected.

    Raises:
        MalformedInput: CONFIG_INVALID if the city has no ``import_wh`` in Wh, or windows of
            more than one length.
    """
    outcomes = {outcome.window_start: (outcome, noise) for outcome, noise in settled}
    length = window_length(settled)
    windows = tuple(
        _window(window, outcomes.get(window), feeder.get(window), terms)
        for window in sorted(outcomes.keys() | feeder.keys())
    )
    by_day = groupby(windows, key=lambda window: day_of(window.window_start, terms.zone))
    return Reconciliation(
        windows, tuple(_day(day, tuple(found), length, terms) for day, found in by_day)
    )


def window_length(settled: Sequence[Settled], default: int = 900) -> int:
    """Seconds of the windows of these totals; ``default`` if there is none.

    Raises:
        MalformedInput: CONFIG_INVALID for windows of more than one length, or of none.
    """
    found = {one.total.window_length for one, _ in settled if isinstance(one, ReleasedTotal)}
    if len(found) > 1 or 0 in found:
        raise MalformedInput(Reason.CONFIG_INVALID, "the totals are not of windows of one length")
    return found.pop() if found else default


def net(total: ReleasedTotal) -> int:
    """Import less export, Wh.

    Raises:
        MalformedInput: CONFIG_INVALID for a city without ``import_wh``, or in another unit.
    """
    units = {register.name: register.unit for register in total.total.registers}
    if units.get(IMPORT_REGISTER) != "Wh" or units.get(EXPORT_REGISTER, "Wh") != "Wh":
        raise MalformedInput(
            Reason.CONFIG_INVALID, f"the city's totals have no {IMPORT_REGISTER} in Wh"
        )
    fed_in = total.sum(EXPORT_REGISTER) if EXPORT_REGISTER in units else 0
    return total.sum(IMPORT_REGISTER) - fed_in


def scaled(wh: int, total: ReleasedTotal) -> int:
    """A sum over the meters of a total, for all that are enrolled; rounded down."""
    return wh * total.total.enrolled // total.count


def _window(start: int, settled: Settled | None, feeder: int | None, terms: Terms) -> Window:
    outcome, noise = settled or (None, {})
    total = outcome if isinstance(outcome, ReleasedTotal) else None
    coverage = total.coverage if total else None
    missing = _missing(outcome, noise, feeder, terms)
    if missing or total is None or feeder is None:
        return Window(start, coverage, None, missing)
    city = net(total)
    deviation = math.hypot(*(noise.get(name, 0.0) for name in (IMPORT_REGISTER, EXPORT_REGISTER)))
    basis = Basis.MEASURED
    if total.count < total.total.enrolled:
        basis, city, deviation = Basis.ESTIMATED, scaled(city, total), deviation / total.coverage
    return Window(start, coverage, _judged(basis, feeder, city, deviation, terms), None)


def _missing(
    outcome: Outcome | None, noise: Mapping[str, float], feeder: int | None, terms: Terms
) -> Missing | None:
    if outcome is None:
        return Missing.NOT_SETTLED
    if isinstance(outcome, NotReleased):
        return Missing(outcome.reason.value)
    if outcome.coverage < terms.min_coverage:
        return Missing.COVERAGE
    if outcome.noise and IMPORT_REGISTER not in noise:
        return Missing.NOISE_UNKNOWN
    return Missing.NO_FEEDER if feeder is None else None


def _day(day: date, windows: Sequence[Window], length: int, terms: Terms) -> Day:
    found = [window.compared for window in windows if window.compared]
    estimated = sum(one.basis is Basis.ESTIMATED for one in found)
    comparison = None
    if found:
        comparison = _judged(
            Basis.ESTIMATED if estimated else Basis.MEASURED,
            sum(one.feeder_wh for one in found),
            sum(one.city_wh for one in found),
            math.hypot(*(one.noise_wh for one in found)),
            terms,
        )
    whole = len(windows_of(day, terms.zone, length))
    return Day(day, whole, len(found), estimated, comparison)


def _judged(basis: Basis, feeder: int, city: int, noise: float, terms: Terms) -> Comparison:
    slack, difference = terms.deviations * noise, feeder - city
    verdict = None
    if terms.losses_percent is not None:
        expected = abs(feeder) * terms.losses_percent / 100
        verdict = Verdict.WITHIN
        if difference > expected + slack:
            verdict = Verdict.ABOVE
        elif difference < -slack:
            verdict = Verdict.BELOW
    return Comparison(basis, feeder, city, noise, noise > 0 and abs(difference) <= slack, verdict)
