"""One meter among a fleet, in a whole city: its reading is in the total, whatever is killed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gridveil.meter import Meter, State
from gridveil.meter_identity import MeterKeys
from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.errors import Conflict, Reason
from gridveil.simulator import CsvSource, Simulator, Tally
from tests.support.city import TestCity

pytestmark = pytest.mark.long

FLEET = 110
RATE = 60
GRACE = 3600
"""A minute here: an aggregator may take a while to start."""


@pytest.mark.timeout(280)
def test_the_total_holds_every_reading_though_the_aggregator_was_killed(tmp_path: Path) -> None:
    with TestCity.create(tmp_path, meters=FLEET + 1, rate=RATE, grace=GRACE) as city:
        assert city.clock is not None
        city.start_all()
        window = city.enrol().effective_window
        *fleet, own = city.meters
        source = readings(tmp_path, fleet, window)
        meter = Meter.open(
            city.profile("meter"),
            keys=own,
            outbox=tmp_path / "own.db",
            clock=city.clock,
            draw=lambda: 0.1,
        )
        simulator = Simulator(
            city.profile("gateway"),
            fleet,
            source,
            tmp_path / "fleet.db",
            clock=city.clock,
            draw=lambda: 0.1,
        )
        tallies: list[Tally] = []
        with meter, simulator:
            playing = threading.Thread(target=lambda: tallies.append(simulator.run(window, 1)))
            playing.start()
            city.wait_until(window + 900)
            meter.record(window, import_wh=0, export_wh=7_000)
            with pytest.raises(Conflict) as refused:
                meter.record(window, import_wh=7_000, export_wh=0)
            assert refused.value.reason is Reason.EQUIVOCATION
            city.restart("aggregator")
            (status,) = meter.flush(timeout_s=GRACE)
            playing.join(120)
        assert status.state is State.SETTLED
        assert (tallies[0].accepted, tallies[0].unsettled) == (FLEET, 0)
        total = released(city, window)
    assert total.count == FLEET + 1
    assert total.sum("import_wh") == sum(range(FLEET))
    assert total.sum("export_wh") == 7_000


def readings(folder: Path, fleet: list[MeterKeys], window: int) -> CsvSource:
    rows = [f"home {at},{at}" for at in range(len(fleet))]
    path = folder / "readings.csv"
    path.write_text("\n".join(["meter_id,first", *rows]))
    return CsvSource(path, window)


def released(city: TestCity, window: int) -> ReleasedTotal:
    with Operator.open(city.profile("operator")) as operator:
        outcome = next(iter(operator.watch(window)))
    assert isinstance(outcome, ReleasedTotal)
    return outcome
