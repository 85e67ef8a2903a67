"""The totals service's metrics: how far it has read, and how old that is."""

from __future__ import annotations

from gridveil.protocol.release import Total
from gridveil_services.metrics.instruments import ProcessMetrics
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.totals.follower import Follower
from gridveil_services.totals.index import SettledIndex


class TotalsMetrics(ProcessMetrics):
    """Of the process, its calls, and the log that it reads."""

    def __init__(self) -> None:
        super().__init__("totals")

    def look_at(
        self, log: PublishedLog, index: SettledIndex, follower: Follower, window_length: int
    ) -> None:
        """Tell of the log and of the windows in it."""
        gauge = self.looked_up.gauge
        gauge(
            "gridveil_totals_newest_window_end_timestamp_seconds",
            "End of the newest window that has a total; 0 if none has.",
            lambda: 0.0 if index.newest is None else index.newest + window_length,
        )
        gauge(
            "gridveil_totals_newest_coverage_ratio",
            "Meters in the newest total by meters enrolled, 0 to 1; absent if there is none.",
            lambda: newest_coverage(index),
        )
        gauge(
            "gridveil_totals_newest_lanes_left_out",
            "Lanes that the newest total leaves out; absent if there is none.",
            lambda: newest_left_out(index),
        )
        gauge(
            "gridveil_totals_log_records",
            "Records under the newest checkpoint of the release log.",
            lambda: 0.0 if log.checkpoint is None else log.checkpoint.head.size,
        )
        gauge(
            "gridveil_totals_log_read_age_seconds",
            "Time since the release log was last read to its end.",
            lambda: follower.read_age_s,
        )


def newest_coverage(index: SettledIndex) -> float | None:
    """Of the newest total; it says no more than the release log does."""
    total = newest_total(index)
    return total.coverage if total else None


def newest_left_out(index: SettledIndex) -> float | None:
    """Of the newest total."""
    total = newest_total(index)
    return float(len(total.left_out)) if total else None


def newest_total(index: SettledIndex) -> Total | None:
    """The newest total, if there is one and the log can be read."""
    outcome = None if index.newest is None else index.get(index.newest)
    return Total.decode(outcome.total.total) if outcome else None
