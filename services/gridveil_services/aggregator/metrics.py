"""The aggregator's metrics: how many and how long, by reason and stage; never who or how much."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError, Reason
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.observer import Stage
from gridveil_services.aggregator.store.interface import Phase, Store
from gridveil_services.metrics.instruments import (
    RELEASE_BUCKETS_S,
    STAGE_BUCKETS_S,
    ProcessMetrics,
)

if TYPE_CHECKING:
    from gridveil_services.aggregator.ingest import Answer

COMMIT_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1_024, 2_048)


class AggregatorMetrics(ProcessMetrics):
    """Implements ``aggregator.observer``."""

    def __init__(self) -> None:
        super().__init__("aggregator")
        registry = self.registry
        self._reports = Counter(
            "gridveil_reports",
            "Reports that were answered: accepted, duplicate, or refused with a reason.",
            ["outcome", "reason"],
            registry=registry,
        )
        self._accepted = self._reports.labels("accepted", "")
        self._duplicate = self._reports.labels("duplicate", "")
        stages = Histogram(
            "gridveil_ingest_stage_seconds",
            "Time that one call's reports spent in a stage.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage.value) for stage in Stage}
        self._commit_reports = Histogram(
            "gridveil_commit_reports",
            "Reports in one commit.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self._store_failures = Counter(
            "gridveil_store_failures",
            "Commits and other writes that the store refused or failed, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in (Reason.STORE_FULL, Reason.STORE_UNAVAILABLE):
            self._store_failures.labels(reason.value)
        self._releases = Histogram(
            "gridveil_release_attempt_seconds",
            "Attempts to have a sealed window released, by outcome; retry: it will be tried again.",
            ["outcome"],
            buckets=RELEASE_BUCKETS_S,
            registry=registry,
        )
        for phase in (None, *(phase for phase in Phase if phase.settled)):
            self._releases.labels(_outcome(phase))

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        return self._stages[stage].time()

    def waited(self, seconds: float) -> None:
        self._stages[Stage.COMMIT_WAIT].observe(seconds)

    def committed(self, reports: int) -> None:
        self._commit_reports.observe(reports)

    def answered(self, answers: Sequence[Answer]) -> None:
        reasons: Tally[Reason] = Tally()
        duplicates = 0
        for answer in answers:
            if isinstance(answer, GridveilError):
                reasons[answer.reason] += 1
            else:
                duplicates += answer.duplicate
        self._accepted.inc(len(answers) - duplicates - reasons.total())
        self._duplicate.inc(duplicates)
        for reason, count in reasons.items():
            self.refused(reason, count)

    def refused(self, reason: Reason, reports: int) -> None:
        self._reports.labels("refused", reason.value).inc(reports)

    def store_failed(self, reason: Reason) -> None:
        self._store_failures.labels(reason.value).inc()

    def attempted(self, phase: Phase | None, seconds: float) -> None:
        self._releases.labels(_outcome(phase)).observe(seconds)

    def look_at(self, store: Store, committer: Committer, clock: Clock) -> None:
        """Tell of the windows that are held, and of the work in progress."""
        gauge = self.looked_up.gauge
        gauge(
            "gridveil_reports_in_progress",
            "Reports whose calls are in progress.",
            lambda: committer.reports_in_progress,
        )
        gauge(
            "gridveil_windows",
            "Windows that are held, by phase.",
            lambda: windows_by_phase(store),
            "phase",
        )
        gauge(
            "gridveil_oldest_unsettled_window_age_seconds",
            "Time since the end of the oldest window that is not settled; 0 if there is none.",
            lambda: oldest_unsettled_s(store, clock.now()),
        )
        gauge(
            "gridveil_lane_reports",
            "Reports in each lane of the newest window that is sealed or released.",
            LaneReports(store).look,
            "lane",
        )


class LaneReports:
    """Reports by lane, read once a window: they do not change any more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._window: int | None = None
        self._found: dict[str, float] = {}

    def look(self) -> dict[str, float] | None:
        """By lane, none left out; None while no window is sealed or released."""
        held = [w for w in self._store.windows() if w.phase in (Phase.SEALED, Phase.RELEASED)]
        if not held:
            return None
        newest = held[-1]
        if newest.start != self._window:
            counts = {lane.lane: lane.count for lane in self._store.lane_sums(newest.start)}
            self._found = {str(lane): float(counts.get(lane, 0)) for lane in range(newest.lanes)}
            self._window = newest.start
        return self._found


def _outcome(phase: Phase | None) -> str:
    return "retry" if phase is None else phase.name.lower()


def windows_by_phase(store: Store) -> Mapping[str, float]:
    """How many windows are held in each phase, none left out."""
    held = Tally(window.phase for window in store.windows())
    return {phase.name.lower(): float(held[phase]) for phase in Phase}


def oldest_unsettled_s(store: Store, now: float) -> float:
    """Metering seconds since the end of the oldest unsettled window that has ended."""
    ends = (window.end for window in store.windows() if not window.phase.settled)
    return max(0.0, now - min(ends, default=now))
