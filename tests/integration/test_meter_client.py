"""Meters over mutual TLS: every recorded reading is brought to an end, and never twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridveil.clock import Clock, ManualClock, ScaledClock
from gridveil.meter import AsyncMeter, Meter, MeterKeys, State
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    InternalFault,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.report import Report
from gridveil_services.rpc import Role
from tests.support.clients import settle
from tests.support.epochs import CityKeys, city_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW

END = WINDOW + 900
KEYS = MeterKeys.create()
DRAWN = 0.05
"""Jitter is drawn early: there is time left where the machine is slow."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls"), CITY_ID)


@pytest.fixture(scope="module")
def city() -> CityKeys:
    return city_keys()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(END)


class Setup:
    """A receiver that serves, and meters that know it."""

    def __init__(
        self, receiver: Receiver, certificates: Certificates, address: str, folder: Path
    ) -> None:
        self.receiver = receiver
        self.address = address
        self.profile = certificates.profile(Role.METER, receiver.keys, address)
        self.outbox = folder / "outbox.db"

    def meter(self, clock: Clock) -> Meter:
        return Meter.open(
            self.profile, keys=KEYS, outbox=self.outbox, clock=clock, draw=lambda: DRAWN
        )

    def async_meter(self, clock: Clock) -> AsyncMeter:
        return AsyncMeter.open(
            self.profile, keys=KEYS, outbox=self.outbox, clock=clock, draw=lambda: DRAWN
        )

    def values(self) -> list[list[int]]:
        """What the accepted reports hold, opened, by window."""
        accepted = sorted(self.receiver.accepted.items())
        return [self.receiver.keys.open_report(r, KEYS.member)[0] for _, r in accepted]


@pytest.fixture
def setup(
    city: CityKeys, clock: ManualClock, certificates: Certificates, tmp_path: Path
) -> Iterator[Setup]:
    receiver = Receiver(city, clock)
    with serving(receiver, certificates) as address:
        yield Setup(receiver, certificates, address, tmp_path)


def statuses(meter: Meter) -> list[tuple[State, Reason | None]]:
    return [(status.state, status.reason) for status in meter.status()]


def test_a_recorded_reading_arrives_whole_and_is_settled(setup: Setup, clock: ManualClock) -> None:
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        assert [s for s, _ in statuses(meter)] == [State.WAITING]
        settle(meter, clock)
        (status,) = meter.status()
        assert (status.state, status.attempts, status.answered) == (State.SETTLED, 1, True)
        assert meter.status(END) == []
    assert setup.values() == [[412, 7]]
    assert END <= clock.now() <= END + 200


def test_a_meter_offered_another_key_than_the_pinned_refuses_to_encrypt(
    setup: Setup, clock: ManualClock
) -> None:
    genuine = setup.receiver.keys
    setup.receiver.keys = city_keys(identity=type(genuine.identity)(bytes(32)))
    with setup.meter(clock) as meter:
        with pytest.raises(NotAuthentic) as refused:
            meter.record(WINDOW, import_wh=412, export_wh=7)
        assert refused.value.reason is Reason.KEY_NOT_PINNED
        assert meter.status() == []
    assert setup.receiver.seen == []


def test_a_server_without_the_aggregators_certificate_gets_nothing(
    city: CityKeys, clock: ManualClock, certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates.make(tmp_path, CITY_ID)
    with serving(Receiver(city, clock), certificates) as address:
        profile = other.profile(Role.METER, city, address)
        with Meter.open(profile, keys=KEYS, outbox=tmp_path / "o.db", clock=clock) as meter:
            with pytest.raises(Unavailable) as refused:
                meter.record(WINDOW, import_wh=1, export_wh=0)
            assert refused.value.reason in {Reason.UNREACHABLE, Reason.DEADLINE_EXCEEDED}


def test_a_lost_answer_is_settled_as_a_duplicate(setup: Setup, clock: ManualClock) -> None:
    lost = iter([Unavailable(Reason.STORE_UNAVAILABLE, "lost"), InternalFault(Reason.INTERNAL, "")])

    def lose(_report: Report) -> None:
        for error in lost:
            raise error

    setup.receiver.after = lose
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        verdicts = settle(meter, clock)
    assert [v.duplicate for v in verdicts] == [False, False, True]
    assert len({r.claim.digest() for r in setup.receiver.seen}) == 1
    assert len(setup.receiver.seen) == 3
    assert setup.values() == [[412, 7]]


def test_a_report_unsent_when_the_window_closed_is_given_up_with_the_aggregators_word(
    setup: Setup, clock: ManualClock
) -> None:
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        clock.move_to(END + 400)
        meter.submit_due()
        (status,) = meter.status()
    assert (status.state, status.reason, status.answered) == (
        State.GAVE_UP,
        Reason.WINDOW_CLOSED,
        True,
    )


def test_an_accepted_report_whose_answers_were_lost_learns_its_fate_after_the_window(
    setup: Setup, clock: ManualClock
) -> None:
    def lose(_report: Report) -> None:
        if clock.now() < END + 350:
            raise Unavailable(Reason.STORE_UNAVAILABLE, "lost")

    setup.receiver.after = lose
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        settle(meter, clock)
        assert statuses(meter) == [(State.SETTLED, None)]
    assert clock.now() > END + 300


def test_in_an_outage_a_report_is_sent_three_times_in_ten_seconds_at_most(
    setup: Setup, clock: ManualClock
) -> None:
    def refuse(_report: Report) -> None:
        raise Exhausted(Reason.OVERLOADED, "no")

    setup.receiver.before = refuse
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        settle(meter, clock)
        (status,) = meter.status()
    times = [at for name, at in setup.receiver.calls if name == "SubmitReport"]
    assert (status.state, status.attempts, status.answered) == (State.GAVE_UP, len(times), False)
    assert len(times) > 8
    assert all(times[at + 3] - times[at] >= 10 for at in range(len(times) - 3))


def test_a_restarted_meter_carries_on_with_the_same_bytes(setup: Setup, clock: ManualClock) -> None:
    def lose(_report: Report) -> None:
        raise Unavailable(Reason.DRAINING, "going")

    setup.receiver.before = lose
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        settle(meter, clock, until=END + 210)
    setup.receiver.before = lambda _report: None
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        with pytest.raises(Conflict):
            meter.record(WINDOW, import_wh=413, export_wh=7)
        settle(meter, clock)
        assert statuses(meter) == [(State.SETTLED, None)]
        meter.record(WINDOW, import_wh=412, export_wh=7)
        assert meter.next_due() is None
    assert len({r.claim.digest() for r in setup.receiver.seen}) == 1
    assert setup.values() == [[412, 7]]


def test_an_epoch_that_changed_gets_the_reading_anew(setup: Setup, clock: ManualClock) -> None:
    with setup.meter(clock) as meter:
        meter.record(WINDOW, import_wh=412, export_wh=7)
        setup.receiver.keys = city_keys(name=b"epoch-0000000001")
        settle(meter, clock)
        assert statuses(meter) == [(State.SETTLED, None)]
    assert setup.values() == [[412, 7]]


def test_a_wrong_reading_goes_nowhere(setup: Setup, clock: ManualClock) -> None:
    with setup.meter(clock) as meter:
        with pytest.raises(MalformedInput) as refused:
            meter.record(WINDOW, {"import_wh": 200_001, "export_wh": 0})
        assert refused.value.reason is Reason.READING_INVALID
        assert meter.status() == []


def test_flush_waits_for_each_reports_time_and_stops_at_its_own(
    city: CityKeys, certificates: Certificates, tmp_path: Path
) -> None:
    def refuse(_report: Report) -> None:
        raise Exhausted(Reason.OVERLOADED, "no")

    clock = ScaledClock(END, time.time(), 60)
    receiver = Receiver(city, clock, before=refuse)
    with serving(receiver, certificates) as address:
        setup = Setup(receiver, certificates, address, tmp_path)
        with setup.meter(clock) as meter:
            meter.record(WINDOW, import_wh=1, export_wh=0)
            due = meter.next_due()
            begun = clock.now()
            (status,) = meter.flush(timeout_s=20)
            assert status.state is State.WAITING
            assert clock.now() >= begun + 20
            receiver.before = lambda _report: None
            (status,) = meter.flush()
            assert status.state is State.SETTLED
    assert due is not None
    assert all(at >= due for name, at in receiver.calls if name == "SubmitReport")


def test_run_sends_what_is_recorded_meanwhile_and_ends_with_close(
    city: CityKeys, certificates: Certificates, tmp_path: Path
) -> None:
    clock = ScaledClock(END, time.time(), 60)
    receiver = Receiver(city, clock)
    with serving(receiver, certificates) as address:
        setup = Setup(receiver, certificates, address, tmp_path)
        meter = setup.meter(clock)
        runner = threading.Thread(target=meter.run)
        runner.start()
        meter.record(WINDOW, import_wh=1, export_wh=0)
        deadline = time.monotonic() + 60
        while not receiver.accepted and time.monotonic() < deadline:
            time.sleep(0.01)
        meter.close()
        runner.join(60)
        assert not runner.is_alive()
    assert setup.values() == [[1, 0]]


async def test_the_asyncio_meter_decides_the_same(
    city: CityKeys, certificates: Certificates, tmp_path: Path
) -> None:
    clock = ScaledClock(END, time.time(), 60)
    receiver = Receiver(city, clock)
    lost = iter([Unavailable(Reason.STORE_UNAVAILABLE, "lost")])

    def lose(_report: Report) -> None:
        for error in lost:
            raise error

    receiver.after = lose
    with serving(receiver, certificates) as address:
        setup = Setup(receiver, certificates, address, tmp_path)
        async with setup.async_meter(clock) as meter:
            with pytest.raises(MalformedInput):
                await meter.record(WINDOW, import_wh=-1, export_wh=0)
            runner = asyncio.create_task(meter.run())
            await meter.record(WINDOW, import_wh=412, export_wh=7)
            with pytest.raises(Conflict):
                await meter.record(WINDOW, import_wh=413, export_wh=7)
            (status,) = await meter.flush()
            assert (status.state, status.attempts) == (State.SETTLED, 2)
        await asyncio.wait_for(runner, 60)
    assert [r.claim.digest() for r in receiver.seen] == [receiver.seen[0].claim.digest()] * 2
    assert setup.values() == [[412, 7]]


async def test_the_asyncio_meter_refuses_an_unpinned_key(
    setup: Setup, city: CityKeys, clock: ManualClock
) -> None:
    setup.receiver.keys = city_keys(identity=type(city.identity)(bytes(32)))
    async with setup.async_meter(clock) as meter:
        with pytest.raises(NotAuthentic) as refused:
            await meter.record(WINDOW, import_wh=1, export_wh=0)
        assert refused.value.reason is Reason.KEY_NOT_PINNED
        assert meter.status() == []


def test_a_profile_without_an_aggregator_is_a_configuration_error(setup: Setup) -> None:
    setup.profile = replace(setup.profile, endpoints={})
    with pytest.raises(MalformedInput, match="aggregator"):
        setup.meter(ManualClock(END))
    setup.profile = replace(setup.profile, endpoints={"aggregator": setup.address})
    setup.meter(ManualClock(END)).close()
