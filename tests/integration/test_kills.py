"""Kills at random moments: no acknowledged report is lost, no window released twice or wrongly."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gridveil.operator import Operator, ReleasedTotal
from gridveil.outbox import Outbox, State
from gridveil.protocol.release import OPENED_ENTRY_BYTES
from gridveil.simulator.readings import ReadingBounds, Readings
from gridveil.simulator.replay import Simulator
from gridveil_services.releaselog.reader import LogReader
from tests.support.city import TestCity

pytestmark = pytest.mark.long

METERS = 120
WINDOWS = 5
"""As many as the outbox remembers the receipts of."""

KILLS = 50
RATE = 45.0
WINDOW_S = 900


@dataclass
class RandomReadings:
    """Other readings for every meter and window, some of them negative."""

    seed: int
    skipped: int = 0

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        table = Readings.none(windows, len(labels))
        for at, window in enumerate(windows):
            table.wh[at] = np.random.default_rng([self.seed, window]).integers(
                -20_000, bounds.most, len(labels)
            )
        table.present[:] = True
        return table

    def of(self, window: int) -> list[int]:
        bounds = ReadingBounds(WINDOW_S, -200_000, 200_000)
        return [int(wh) for wh in self.read([None] * METERS, [window], bounds).wh[0]]


def test_fifty_kills_lose_no_acknowledged_report_and_release_no_window_twice_or_wrongly(
    tmp_path: Path,
) -> None:
    """Aggregator and key-holder are killed in turn of chance while meters report."""
    seed = int(os.environ.get("GRIDVEIL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"GRIDVEIL_SEED={seed}")
    chance, readings = random.Random(seed), RandomReadings(seed)
    with TestCity.create(tmp_path, meters=METERS, rate=RATE, grace=840) as city:
        city.start_all()
        city.enrol()
        first = city.window(ahead=1)
        simulator = Simulator(
            city.profile("gateway"), city.meters, readings, tmp_path / "outbox.db", clock=city.clock
        )
        kills = Counter[str]()
        with simulator:
            reporting = threading.Thread(target=simulator.run, args=(first, WINDOWS))
            reporting.start()
            while reporting.is_alive() or kills.total() < KILLS:
                time.sleep(chance.uniform(0.0, 1.0))
                victim = chance.choice(("aggregator", "keyholder"))
                city.restart(victim)
                kills[victim] += 1
            reporting.join()
        last = first + (WINDOWS - 1) * WINDOW_S
        city.wait_until(last + WINDOW_S + 840)
        acknowledged = _acknowledged(tmp_path / "outbox.db", city)
        totals = _totals(city, first, last)
        assert kills.total() >= KILLS
        assert min(kills.values()) > 0
        assert acknowledged.keys() == totals.keys()
        _check(city, readings, acknowledged, totals)
        _check_log(city)


def _acknowledged(outbox: Path, city: TestCity) -> dict[int, set[bytes]]:
    """Meters by window that hold a receipt."""
    found: dict[int, set[bytes]] = {}
    with Outbox(outbox, city.profile("gateway").city_id) as kept:
        for entry in kept.entries():
            if entry.state is State.SETTLED:
                found.setdefault(entry.window_start, set()).add(entry.meter_id)
    return found


def _totals(city: TestCity, first: int, last: int) -> dict[int, ReleasedTotal]:
    """The totals of all windows, once all are settled."""
    wanted = set(range(first, last + 1, WINDOW_S))
    found: dict[int, ReleasedTotal] = {}
    until = time.monotonic() + 60
    with Operator.open(city.profile("operator")) as operator:
        while found.keys() != wanted and time.monotonic() < until:
            for outcome in operator.list(first, last + WINDOW_S):
                assert isinstance(outcome, ReleasedTotal), outcome
                found[outcome.window_start] = outcome
            time.sleep(0.3)
    missing = sorted(wanted - found.keys())
    assert not missing, f"not settled: {missing}\n{city.log('aggregator')[-3000:]}"
    return found


def _check(
    city: TestCity,
    readings: RandomReadings,
    acknowledged: dict[int, set[bytes]],
    totals: dict[int, ReleasedTotal],
) -> None:
    """Each total counts every acknowledged meter, and is the plain sum over those it counts."""
    with Operator.open(city.profile("auditor")) as auditor:
        for window, total in totals.items():
            opened = b"".join(auditor.entries(window))
            counted = [opened[at : at + 16] for at in range(0, len(opened), OPENED_ENTRY_BYTES)]
            wh = dict(zip((m.meter_id for m in city.meters), readings.of(window), strict=True))
            assert len(counted) == len(set(counted)) == total.count
            assert acknowledged[window] <= set(counted)
            assert total.sum("import_wh") == sum(max(wh[meter], 0) for meter in counted)
            assert total.sum("export_wh") == sum(max(-wh[meter], 0) for meter in counted)


def _check_log(city: TestCity) -> None:
    """Each window has at most one intent and at most one total."""
    events = Counter[tuple[str, int]]()
    for record in LogReader(city.paths.published / "log").poll():
        kind = record.WhichOneof("event")
        if kind in ("intent", "released", "refused"):
            events[kind, getattr(record, kind).window_start] += 1
    assert events
    assert set(events.values()) == {1}
    assert not any(kind == "refused" for kind, _ in events)
