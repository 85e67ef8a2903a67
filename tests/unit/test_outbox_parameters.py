"""Which parameters an outbox keeps: those that it needs to end what waits in it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from gridveil.clock import ManualClock
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Outbox, State
from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.reporting import ReportBuilder, signed_reading
from gridveil.submission import Call, Submitter
from gridveil.submission_calls import run_steps
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import CITY_ID, WINDOW

LENGTH = 900
DAY = 86_400
METER = MeterKeys.create()
NO_TLS = Tls(Path("ca"), Path("cert"), Path("key"))


@pytest.fixture(scope="module")
def keys() -> CityKeys:
    return city_keys()


def submitter(keys: CityKeys, outbox: Outbox, clock: ManualClock) -> Submitter:
    profile = Profile(CITY_ID, keys.identity_key, True, {}, NO_TLS)
    return Submitter(
        profile,
        outbox,
        clock,
        lambda parameters, _meter, window, values: ReportBuilder(parameters, METER).build(
            window, values
        ),
        draw=lambda: 0.5,
    )


def away(_call: Call) -> NoReturn:
    raise Unavailable(Reason.UNREACHABLE, "nobody answers", retry_after_s=1)


def test_a_reading_of_an_epoch_that_never_came_ends_when_its_window_has_passed(
    keys: CityKeys, tmp_path: Path
) -> None:
    """A meter that was off for days gives up what nobody takes any more, and waits for no rules."""
    path, clock = tmp_path / "outbox.db", ManualClock(WINDOW + LENGTH)
    unknown = keys.parameters.epoch.end_window

    def aggregator(_call: Call) -> aggregator_pb2.SignedCityParameters:
        return keys.signed()

    with Outbox(path, CITY_ID) as outbox:
        subject = submitter(keys, outbox, clock)
        run_steps(subject.current_parameters(), aggregator)
        clock.move_to(unknown + LENGTH)
        run_steps(subject.record(METER.meter_id, unknown, signed_reading(1)), away)
        assert [entry.state for entry in outbox.entries()] == [State.WAITING]
    for later in (3 * DAY, 3 * DAY + 7200):
        clock.move_to(unknown + later)
        with Outbox(path, CITY_ID) as outbox:
            run_steps(submitter(keys, outbox, clock).submit_due(), away)
    with Outbox(path, CITY_ID) as outbox:
        assert all(entry.state is not State.WAITING for entry in outbox.entries())
