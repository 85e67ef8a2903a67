"""A store with a bounded file: what was taken is sealed, whatever else no longer fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.sealer import Sealer
from gridveil_services.aggregator.store.database import PAGE_BYTES
from gridveil_services.aggregator.store.documents import SqliteDocuments
from gridveil_services.aggregator.store.interface import LaneBatch, Phase, StoredReport, Window
from tests.support.aggregators import LENGTH, IngestHarness
from tests.support.reports import WINDOW

BOUND_BYTES = 3_000_000
BATCH = 100
DAY = 86_400
NEXT = WINDOW + LENGTH


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[IngestHarness]:
    made = IngestHarness(tmp_path, max_bytes=BOUND_BYTES)
    yield made
    made.close()


def batch(harness: IngestHarness, start: int, number: int) -> LaneBatch:
    """The ``number``-th hundred of a window's reports."""
    crypto = harness.parameters.policy.crypto
    ids = [at.to_bytes(16, "big") for at in range(number * BATCH, (number + 1) * BATCH)]
    reports = [StoredReport(i, bytes(32), i + bytes(ENTRY_BYTES - len(i))) for i in ids]
    total = np.ones(2 * harness.window.slots + crypto.degree, dtype=np.uint64)
    return LaneBatch(start, 0, reports, total, harness.parameters.digest)


def fill(harness: IngestHarness, start: int, most: int = 1_000) -> int:
    """Reports that a window took before the store was full."""
    for number in range(most):
        try:
            harness.committer.commit([batch(harness, start, number)])
        except Unavailable as error:
            if error.reason is not Reason.STORE_FULL:
                raise
            return number * BATCH
    return most * BATCH


def open_next(harness: IngestHarness) -> Window:
    closes = harness.window.closes + LENGTH
    window = replace(harness.window, start=NEXT, end=NEXT + LENGTH, closes=closes)
    harness.committer.run(lambda: harness.store.open_window(window))
    return window


def sealer(harness: IngestHarness) -> Sealer:
    return Sealer(
        city=harness.city,
        store=harness.store,
        documents=SqliteDocuments(harness.store._database),
        committer=harness.committer,
        clock=harness.clock,
        retention_s=DAY,
    )


def phases(harness: IngestHarness) -> dict[int, Phase]:
    return {window.start: window.phase for window in harness.store.windows()}


def test_a_window_that_filled_the_store_is_sealed_when_it_closes(harness: IngestHarness) -> None:
    """What was taken is not lost: there is room left for the receipts of it."""
    taken = fill(harness, WINDOW)
    assert 0 < taken < 1_000 * BATCH
    harness.clock.move_to(harness.window.closes)
    sealer(harness).step()
    assert phases(harness) == {WINDOW: Phase.SEALED}
    assert harness.store.count(WINDOW) == taken


def test_a_full_store_seals_and_takes_reports_again_beside_an_old_window(
    harness: IngestHarness,
) -> None:
    """An old window's receipts do not keep the new window open, also not after a restart."""
    fill(harness, WINDOW, 20)
    harness.clock.move_to(harness.window.closes)
    sealer(harness).step()
    harness.committer.run(lambda: harness.store.settle(WINDOW, Phase.RELEASED))
    later = open_next(harness)
    taken = fill(harness, NEXT)
    harness.clock.move_to(later.closes)
    sealer(harness).step()
    harness.restart()
    assert phases(harness) == {WINDOW: Phase.RELEASED, NEXT: Phase.SEALED}
    assert harness.store.count(NEXT) == taken


def test_windows_past_their_retention_are_forgotten_before_others_are_sealed(
    tmp_path: Path,
) -> None:
    """A file without a free page seals a window in the room of the receipts it forgets."""
    harness = IngestHarness(tmp_path)
    fill(harness, WINDOW, 60)
    harness.clock.move_to(harness.window.closes)
    sealer(harness).step()
    harness.committer.run(lambda: harness.store.settle(WINDOW, Phase.RELEASED))
    later = open_next(harness)
    fill(harness, NEXT, 58)
    harness._max_bytes = PAGE_BYTES  # SQLite takes at least what the file has already
    harness.restart()
    harness.clock.move_to(later.end + DAY)
    sealer(harness).step()
    assert phases(harness) == {NEXT: Phase.SEALED}
    harness.close()
