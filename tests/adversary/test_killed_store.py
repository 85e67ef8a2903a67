"""Killed at any moment, the aggregator's store keeps what it acknowledged, and counts it once."""

from __future__ import annotations

import os

from tests.torture.kinds import kill_store

SEED = int(os.environ.get("GRIDVEIL_SEED", "7"))
KILLS = 200
LOST = "lost, torn or counted twice after a kill"


def test_kills_lose_no_acknowledged_report_and_no_retry_counts_twice() -> None:
    """Which meters are in a sum can be read from it."""
    tally = kill_store.run(SEED, KILLS)
    assert not tally.violations, f"{LOST}: {tally.violations[:5]}"
    assert tally.injected == KILLS
    assert min(tally.counts["at named points"], tally.counts["at random moments"]) > KILLS / 4
