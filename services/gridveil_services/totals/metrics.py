"""The totals service's metrics: how far it has read, and how old that is."""

from __future__ import annotations

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
            "gridveil_totals_log_records",
            "Records under the newest checkpoint of the release log.",
            lambda: 0.0 if log.checkpoint is None else log.checkpoint.head.size,
        )
        gauge(
            "gridveil_totals_log_read_age_seconds",
            "Time since the release log was last read to its end.",
            lambda: follower.read_age_s,
        )
