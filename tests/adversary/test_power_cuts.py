"""The power may go at any moment: nothing that was acknowledged is lost, nothing is half there.

The disk is simulated below SQLite and below the release log, see tests/support/power.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.torture.kinds import power_log, power_outbox, power_store
from tests.torture.tally import Tally

SEED = int(os.environ.get("GRIDVEIL_SEED", "7"))
LOST = "lost or half there after a power cut"


@pytest.mark.parametrize(
    ("run", "cuts"),
    [
        pytest.param(power_store.run, 1_000, id="store"),
        pytest.param(power_outbox.run, 500, id="outbox"),
        pytest.param(power_log.run, 500, id="log"),
    ],
)
def test_a_power_cut_takes_nothing_that_was_acknowledged(
    run: Callable[[int, int], Tally], cuts: int
) -> None:
    tally = run(SEED, cuts)
    assert not tally.violations, f"{LOST}: {tally.violations[:5]}"
    assert tally.injected >= cuts


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            lambda: power_store.run(SEED, 200, pragma="PRAGMA synchronous = normal"),
            id="store-synced-at-checkpoints-only",
        ),
        pytest.param(
            lambda: power_store.run(SEED, 200, lies_about="-wal"), id="store-on-a-lying-disk"
        ),
        pytest.param(
            lambda: power_outbox.run(SEED, 200, pragma="PRAGMA synchronous = normal"),
            id="outbox-synced-at-checkpoints-only",
        ),
        pytest.param(lambda: power_log.run(SEED, 200, lies=True), id="log-on-a-lying-disk"),
    ],
)
def test_what_a_store_that_does_not_sync_loses_is_noticed(broken: Callable[[], Tally]) -> None:
    """The control: the simulated disk is able to lose what was not synced."""
    assert broken().violations
