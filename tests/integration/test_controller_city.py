"""From meters that encrypt to a signal and its OpenADR event, through every service of a city."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from gridveil.control import Basis, ControlClient, Delivery
from gridveil.simulator.readings import ReadingBounds
from gridveil.simulator.replay import Simulator
from gridveil.simulator.standard_load import StandardLoadSource
from tests.support.city import TestCity
from tests.support.controllers import LENGTH, write_rules

pytestmark = pytest.mark.long

METERS = 110


def test_a_peak_of_a_city_becomes_a_signal_and_an_event(tmp_path: Path) -> None:
    source = StandardLoadSource()
    with TestCity.create(tmp_path, meters=METERS, rate=60, grace=300) as city:
        # Whatever the households use is more than this grid carries.
        write_rules(city.paths, capacity_w=1_000, hysteresis_w=10)
        with city.paths.config("controller").open("a") as config:
            config.write('\n[vtn]\nprogram_id = "city-dr"\n')
        city.start_all()
        city.start("controller")
        city.enrol()
        window = city.window(ahead=1)
        with Simulator(
            city.profile("gateway"), city.meters, source, tmp_path / "city.db", clock=city.clock
        ) as simulator:
            simulator.run(window, 1)
        used = source.read([None] * METERS, [window], ReadingBounds(LENGTH, 0, 200_000)).wh.sum()

        with ControlClient.open(city.profile("operator")) as client:
            signals = islice(client.watch(1, give_up_after_s=30), 40)
            found = next(one for one in signals if one.basis is Basis.MEASURED)

        assert city.stop("controller") == 0

    assert (found.window_start, found.level, found.cause) == (window, 3, "CAPACITY")
    assert found.measured_w == int(used) * 3600 // LENGTH
    (event,) = found.openadr
    assert event.delivery is Delivery.NOT_SENT
    payload = {"type": "SIMPLE", "values": [3]}
    assert json.loads(event.json)["intervals"][0]["payloads"] == [payload]
