"""An aggregator beside a real key-holder: from enrolment to released totals, through restarts."""

from __future__ import annotations

from pathlib import Path

from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.releaselog.reader import LogReader
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW


def released(city: LocalCity) -> list[int]:
    records = LogReader(city.paths.published / "log").poll()
    return [r.released.window_start for r in records if r.WhichOneof("event") == "released"]


def test_a_window_is_released_once_it_closed_and_settles(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=120) as city:
        city.enter_window(WINDOW)
        reply = city.stub("gateway").SubmitReports(city.batch())
        assert [outcome.WhichOneof("outcome") for outcome in reply.outcomes] == ["receipt"] * 120
        city.aggregator.sealer.step()
        assert city.stored_window().phase is Phase.SEALED
        city.clock.move_to(WINDOW + LENGTH + 300)
        city.aggregator.releaser.step()
        assert city.stored_window().phase is Phase.RELEASED
        assert released(city) == [WINDOW]
