"""What a file of interval values has come to: to be looked at, and to be replayed.

The form for replay is the simulator's (:mod:`gridveil.simulator.csv_source`), which cannot say that
a value is an estimate: only validated windows are in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from gridveil.days import day_of, windows_of
from gridveil.meters.intervals import Cause, Finding, Interval, Lapse, Quality
from gridveil.meters.registers import DRAWN, FED_IN
from gridveil.protocol.errors import MalformedInput, Reason


@dataclass(frozen=True)
class Day:
    """One local day of a file."""

    day: date
    windows: int
    """92, 96 or 100 quarter-hours."""
    validated: int


@dataclass
class Summary:
    """Counts of windows."""

    validated: int = 0
    estimated: int = 0
    missing: int = 0
    causes: Counter[Cause] = field(default_factory=Counter)
    still: Counter[str] = field(default_factory=Counter)
    """Windows in which a register stood still."""


def summarize(findings: Iterable[Finding], length: int) -> Summary:
    """Count the windows of ``length`` seconds by what they are."""
    summary = Summary()
    for finding in findings:
        if isinstance(finding, Lapse):
            windows = (finding.end - finding.start) // length
            summary.missing += windows
            summary.causes[finding.cause] += windows
            continue
        if finding.quality is Quality.VALIDATED:
            summary.validated += 1
        else:
            summary.estimated += 1
        summary.still.update(finding.still)
    return summary


def days(findings: Sequence[Finding], zone: ZoneInfo, length: int) -> list[Day]:
    """The local days that the validated windows of a file are in, and how whole they are."""
    counts = Counter(day_of(finding.start, zone) for finding in _validated(findings))
    return [Day(day, len(windows_of(day, zone, length)), counts[day]) for day in sorted(counts)]


def replay_rows(meters: Mapping[str, Sequence[Finding]]) -> Iterator[tuple[str, str, str]]:
    """Rows ``meter_id,timestamp,wh`` of what was measured: drawn less fed in, signed Wh.

    Raises:
        MalformedInput: CONFIG_INVALID for registers that this form has no place for.
    """
    yield "meter_id", "timestamp", "wh"
    for name, findings in meters.items():
        for finding in _validated(findings):
            moment = datetime.fromtimestamp(finding.start, UTC)
            yield name, f"{moment:%Y-%m-%dT%H:%M:%SZ}", str(_net(finding.values))


def _validated(findings: Iterable[Finding]) -> Iterator[Interval]:
    for finding in findings:
        if isinstance(finding, Interval) and finding.quality is Quality.VALIDATED:
            yield finding


def _net(values: Mapping[str, int]) -> int:
    if not values.keys() <= {DRAWN, FED_IN}:
        raise MalformedInput(
            Reason.CONFIG_INVALID, f"CSV for replay holds {DRAWN} less {FED_IN}, and nothing else"
        )
    return values.get(DRAWN, 0) - values.get(FED_IN, 0)
