"""What became of reports: each answer judged beside what its kind must be told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

from gridveil.loadtest.load import EXPECTED, Kind
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.v1.report_pb2 import Receipt

LONGEST_US = 3_600_000_000
_DIGITS = 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


class Latencies:
    """An HDR histogram of microseconds, 1 us to an hour with three digits; merged losslessly."""

    def __init__(self, encoded: bytes | None = None) -> None:
        self._histogram: Any = HdrHistogram(1, LONGEST_US, _DIGITS)
        if encoded:
            self._histogram.decode_and_add(encoded)

    def record(self, seconds: float, count: int = 1) -> None:
        """Add ``count`` reports that took so long."""
        microseconds = min(LONGEST_US, max(1, round(seconds * 1e6)))
        self._histogram.record_value(microseconds, count)

    def add(self, other: Latencies) -> None:
        """Add another's."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """Reports that were recorded."""
        return int(self._histogram.get_total_count())

    def seconds(self) -> dict[str, float]:
        """Percentiles and the maximum by name, seconds; empty if nothing was recorded."""
        if not self.count:
            return {}
        found = {
            name: self._histogram.get_value_at_percentile(percentile) / 1e6
            for name, percentile in PERCENTILES.items()
        }
        return found | {"max": self._histogram.get_max_value() / 1e6}

    def above(self, seconds: float) -> int:
        """How many reports took longer."""
        recorded = self._histogram.get_recorded_iterator()
        return sum(
            int(step.count_added_in_this_iter_step)
            for step in recorded
            if step.value_iterated_to > seconds * 1e6
        )

    def encode(self) -> bytes:
        """For another process."""
        return bytes(self._histogram.encode())

    def __reduce__(self) -> tuple[type[Latencies], tuple[bytes]]:
        return Latencies, (self.encode(),)


class Prepared(NamedTuple):
    """A report without its ciphertext, ready to be sent."""

    kind: Kind
    place: int
    """Of its meter in the fleet."""
    pooled: int
    """Which ciphertext of the process's pool."""
    meter_id: bytes
    commitment_hash: bytes
    sealed_commitment: bytes
    signature: bytes
    digest: bytes
    """What a receipt must name."""


@dataclass
class Tally:
    """What became of the reports of one window or of several, each counted once."""

    sent: int = 0
    accepted: int = 0
    """Reports with a receipt; those that were sent again on purpose are not counted twice."""
    places: set[int] = field(default_factory=set)
    """Places in the fleet of the meters whose report has a receipt."""
    duplicates: int = 0
    """Receipts for reports that were sent again on purpose."""
    known_already: int = 0
    """Accepted reports that were answered as duplicates: the first answer was lost, or the copy
    that was sent on purpose overtook them."""
    refused: Counter[Reason] = field(default_factory=Counter)
    """Refusals that had to be."""
    errors: Counter[str] = field(default_factory=Counter)
    """Reports that were not answered as they must be, by what is wrong."""
    retries: Counter[Reason] = field(default_factory=Counter)
    """Further attempts, by why."""
    reports_in_calls: int = 0
    """Reports in all calls, repeated ones included."""
    bytes_in_calls: int = 0
    """Their SubmitReports messages, without what TLS and HTTP/2 add."""
    latencies: Latencies = field(default_factory=Latencies)
    """Of reports that were sent on time, good or bad."""
    begun: float | None = None
    """Intended time of the first report, seconds of the machine's steady clock."""
    ended: float | None = None
    """When the last report was answered that was sent on time."""
    behind_s: float = 0.0
    """How far the load generator itself was behind its schedule at most; part of latencies."""
    _fresh: set[bytes] = field(default_factory=set)

    def settle(self, report: Prepared, answer: Receipt | GridveilError) -> None:
        """Count a report by its last answer."""
        if isinstance(answer, GridveilError):
            self._settle_refusal(report.kind, answer.reason)
        else:
            self._settle_receipt(report, answer)

    def unsettled(self, report: Prepared, reason: Reason) -> None:
        """Count a report that nobody answered for good."""
        self.errors[f"{report.kind.name} has no answer: {reason}"] += 1

    def answered(self, latency_s: float, count: int, now: float) -> None:
        """Count how long reports took that were sent on time."""
        self.latencies.record(latency_s, count)
        self.ended = max(now, self.ended or now)

    def add(self, other: Tally) -> None:
        """Add what another process, or another window, counted."""
        self.sent += other.sent
        self.accepted += other.accepted
        self.places |= other.places
        self.duplicates += other.duplicates
        self.known_already += other.known_already
        self.refused += other.refused
        self.errors += other.errors
        self.retries += other.retries
        self.reports_in_calls += other.reports_in_calls
        self.bytes_in_calls += other.bytes_in_calls
        self.latencies.add(other.latencies)
        self.begun = _either(min, self.begun, other.begun)
        self.ended = _either(max, self.ended, other.ended)
        self.behind_s = max(self.behind_s, other.behind_s)

    @property
    def settled(self) -> int:
        """Reports that were answered, or given up."""
        return (
            self.accepted
            + self.duplicates
            + self.refused.total()
            + sum(n for what, n in self.errors.items() if what not in _OF_COUNTED)
        )

    def _settle_refusal(self, kind: Kind, reason: Reason) -> None:
        if reason in EXPECTED[kind]:
            self.refused[reason] += 1
        else:
            self.errors[f"{kind.name} was refused: {reason}"] += 1

    def _settle_receipt(self, report: Prepared, receipt: Receipt) -> None:
        kind = report.kind
        if receipt.report_digest != report.digest:
            self.errors[f"{kind.name} has another report's receipt"] += 1
            return
        if EXPECTED[kind]:
            self.errors[f"{kind.name} was accepted"] += 1
            return
        if not receipt.duplicate:
            if report.digest in self._fresh:
                self.errors[_TWICE] += 1
            self._fresh.add(report.digest)
        if kind is Kind.RESENT:
            self.duplicates += 1
        else:
            self.accepted += 1
            self.places.add(report.place)
            self.known_already += receipt.duplicate


_TWICE = "a report was accepted twice"
_OF_COUNTED = {_TWICE}
"""Errors of reports that are counted elsewhere as well."""


def heals(answer: Receipt | GridveilError) -> bool:
    """Whether a report with this answer is sent again: the rules of the client."""
    return isinstance(answer, GridveilError) and OUTCOMES[answer.reason] is Ending.RETRY


def _either(choose: Any, one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    found: float | None = choose(known) if known else None
    return found
