"""The key-holder's metrics: how many and how long, and what is left of its budgets."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from gridveil.protocol.errors import Reason
from gridveil.protocol.refusal_lock import DAY_MS
from gridveil_services.keyholder.differencing import Difference
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.policy import noise_policy
from gridveil_services.metrics.instruments import RELEASE_BUCKETS_S, ProcessMetrics

STRONG_BITS = 10.0
"""1,000 to 1 (docs/operations.md)."""


class KeyHolderMetrics(ProcessMetrics):
    """Implements ``keyholder.observer``."""

    def __init__(self) -> None:
        super().__init__("keyholder")
        self._releases = Counter(
            "gridveil_keyholder_releases",
            "Releases that were answered: released, replayed, or refused with a reason.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self._released = self._releases.labels("released", "")
        self._seconds = Histogram(
            "gridveil_keyholder_release_seconds",
            "Time from a release's first message until it was answered.",
            buckets=RELEASE_BUCKETS_S,
            registry=self.registry,
        )
        lanes = Counter(
            "gridveil_keyholder_lanes_decrypted",
            "Lanes that were decrypted, by whether they opened.",
            ["outcome"],
            registry=self.registry,
        )
        self._opened, self._failed = lanes.labels("opened"), lanes.labels("failed")
        cohorts = Counter(
            "gridveil_keyholder_cohorts",
            "Totals by how far the nearest other of the last four cohorts is; few: 1 to 4 meters.",
            ["difference"],
            registry=self.registry,
        )
        self._cohorts = {found: cohorts.labels(found.value) for found in Difference}

    def release_ended(self, outcome: str, reason: Reason | None, seconds: float) -> None:
        self._releases.labels(outcome, "" if reason is None else reason.value).inc()
        self._seconds.observe(seconds)

    def lanes_decrypted(self, opened: int, failed: int) -> None:
        self._opened.inc(opened)
        self._failed.inc(failed)

    def cohort_compared(self, difference: Difference) -> None:
        self._cohorts[difference].inc()

    def look_at(self, keyholder: KeyHolder) -> None:
        """Tell of the log, the lock and the budgets."""
        ledger, gauge = keyholder.ledger, self.looked_up.gauge
        gauge(
            "gridveil_keyholder_failures_left",
            "Lanes that may yet fail to open before the keys of the epoch in force are destroyed.",
            lambda: failures_left(keyholder),
        )
        gauge(
            "gridveil_keyholder_refusals_today",
            "Windows refused in the last 24 hours that count against the budget.",
            lambda: refusals_today(keyholder),
        )
        gauge(
            "gridveil_keyholder_refusals_budget",
            "Windows refused within 24 hours that lock the key-holder.",
            lambda: ledger.refusals.budget,
        )
        gauge(
            "gridveil_keyholder_locked",
            "1 while refusals have locked the key-holder.",
            lambda: float(ledger.locked_at is not None),
        )
        gauge("gridveil_keyholder_log_records", "Records in the release log.", lambda: ledger.size)
        gauge(
            "gridveil_keyholder_last_result_timestamp_seconds",
            "Time of the newest total in the log, by the key-holder's clock; 0 if there is none.",
            lambda: ledger.last_released_at_ms / 1000,
        )
        gauge(
            "gridveil_keyholder_suspects",
            "Meters that are suspected of making lanes fail: by 10 bits or more, or proven.",
            lambda: suspects(keyholder),
            "evidence",
        )
        gauge(
            "gridveil_keyholder_privacy_budget_left_ratio",
            "What is left of today's privacy budget, 0 to 1; absent in a city without noise.",
            lambda: privacy_left(keyholder),
        )


def failures_left(keyholder: KeyHolder) -> float | None:
    """Of the epoch that serves the current window; None if there is none."""
    window = keyholder.policy.rules.start_at(keyholder.clock.now())
    return keyholder.releases.failures_left(window)


def refusals_today(keyholder: KeyHolder) -> int:
    """Since the last unlocking, within the 24 hours before now."""
    since = int(keyholder.clock.now() * 1000) - DAY_MS
    return sum(since < at for at in keyholder.ledger.refusals.refusals)


def suspects(keyholder: KeyHolder) -> dict[str, float]:
    """How many there are by evidence, each counted once."""
    strong, proven = keyholder.suspicions.count(STRONG_BITS)
    return {"strong": float(strong), "proven": float(proven)}


def privacy_left(keyholder: KeyHolder) -> float | None:
    """The share of the day's budget that its windows have not claimed."""
    policy = noise_policy(keyholder.policy, keyholder.policy)
    if policy is None:
        return None
    window = keyholder.policy.rules.start_at(keyholder.clock.now())
    return keyholder.ledger.spent_on_day_of(window).left(policy)
