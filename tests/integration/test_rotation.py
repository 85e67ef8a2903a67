"""A spent epoch is replaced while the city runs, and no meter loses the next window's reading."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from gridveil.meter import AsyncMeter, Meter, State
from gridveil.meter_identity import MeterKeys
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import Reason
from gridveil.protocol.release import Total, open_total
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil.simulator import CsvSource, Simulator, Tally
from gridveil.transport import from_rpc_error
from gridveil_services.aggregator.follower import confirm_at
from gridveil_services.aggregator.ingest import Accepted
from gridveil_services.aggregator.store.interface import LaneBatch, Outcome, Phase
from gridveil_services.aggregator.upstream import KeyHolderClient
from gridveil_services.keyholder.policy import Status
from gridveil_services.releaselog.reader import LogReader
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW, build_report, make_members

pytestmark = pytest.mark.long

FLEET = 110
NEXT = WINDOW + LENGTH
GRACE = 600
SPENT = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT


def profile(city: LocalCity, role: str) -> Profile:
    made = Profile.load(city.paths.profile(role))
    return replace(made, endpoints={**made.endpoints, "aggregator": city.address})


def retire(city: LocalCity, window: int) -> CityParameters:
    """Destroy the keys of a window's epoch now; its parameters."""
    old = city.parameters(window)
    city.keyholder.ring.retire(old.epoch.epoch_id, SPENT, city.clock.now())
    return old


def total_of(city: LocalCity, window: int) -> Total:
    signed = [
        record.released.total
        for record in LogReader(city.keyholder_config.published / "log").poll()
        if record.WhichOneof("event") == "released" and record.released.window_start == window
    ]
    return open_total(signed[0].total, signed[0].signature, city.aggregator_config.identity_key)


@dataclass
class Players:
    """A fleet behind a gateway and two meters of their own, one on an event loop."""

    blocking: Meter
    event_loop: AsyncMeter
    fleet: Simulator
    loop: asyncio.AbstractEventLoop
    tally: Tally | None = None

    def record(self, window: int, values: tuple[int, int]) -> None:
        self.blocking.record(window, import_wh=values[0], export_wh=0)
        recorded = self.event_loop.record(window, import_wh=0, export_wh=values[1])
        asyncio.run_coroutine_threadsafe(recorded, self.loop).result(30)

    def settled(self, window: int) -> bool:
        statuses = [*self.blocking.status(window), *self.event_loop.status(window)]
        return [status.state for status in statuses] == [State.SETTLED] * 2


@contextmanager
def playing(city: LocalCity, folder: Path, keys: list[MeterKeys]) -> Iterator[Players]:
    """All send at their own pace; the fleet reports WINDOW and NEXT."""
    *fleet, own, other = keys
    rows = [f"home {at},{at},{2 * at}" for at in range(len(fleet))]
    source = folder / "readings.csv"
    source.write_text("\n".join(["meter_id,first,second", *rows]))
    loop = asyncio.new_event_loop()
    stop = threading.Event()
    with ExitStack() as opened:
        blocking = opened.enter_context(
            Meter.open(profile(city, "meter"), keys=own, outbox=folder / "own.db", clock=city.clock)
        )

        async def open_meter() -> AsyncMeter:
            return AsyncMeter.open(
                profile(city, "meter"), keys=other, outbox=folder / "other.db", clock=city.clock
            )

        turning = threading.Thread(target=loop.run_forever)
        turning.start()
        opened.callback(loop.close)
        opened.callback(turning.join)
        opened.callback(lambda: loop.call_soon_threadsafe(loop.stop))
        event_loop = asyncio.run_coroutine_threadsafe(open_meter(), loop).result(30)
        simulator = opened.enter_context(
            Simulator(
                profile(city, "gateway"),
                fleet,
                CsvSource(source, WINDOW),
                folder / "fleet.db",
                clock=city.clock,
            )
        )
        players = Players(blocking, event_loop, simulator, loop)

        def play() -> None:
            players.tally = simulator.run(WINDOW, 2)

        threads = [
            threading.Thread(target=lambda: blocking.run(stop)),
            threading.Thread(target=play),
        ]
        running = asyncio.run_coroutine_threadsafe(event_loop.run(), loop)
        for thread in threads:
            thread.start()
        try:
            yield players
        finally:
            stop.set()
            blocking.close()
            asyncio.run_coroutine_threadsafe(event_loop.close(), loop).result(30)
            running.result(30)
            # The fleet ends with its two windows, however far it came.
            until = time.monotonic() + 60
            while threads[1].is_alive() and time.monotonic() < until:
                city.clock.move_to(city.clock.now() + 30)
                time.sleep(0.01)
            for thread in threads:
                thread.join(30)


def advance(city: LocalCity, until: float, done: Callable[[], bool] = lambda: False) -> None:
    """Let metering time pass, slowly while meters report, and the aggregator work beside it."""
    while city.clock.now() < until and not done():
        reporting = city.clock.now() % LENGTH < GRACE and city.clock.now() >= NEXT
        city.clock.move_to(min(until, city.clock.now() + (4 if reporting else 30)))
        city.aggregator.follower.step()
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        city.keyholder.upkeep.tick()
        time.sleep(0.05 if reporting else 0.02)


def lying_report(city: LocalCity, meter: int, window: int) -> report_pb2.Report:
    """The signed report of a meter whose ciphertext is not of what it committed to."""
    from tests.adversary.forging import forged_report
    from tests.support.reports import generators

    parameters = city.parameters(window)
    honest = build_report(parameters, city.meters[meter], window, [1, 1])
    committed = generators(parameters, window).commit([2, 2], 5)
    return forged_report(
        parameters, city.meters[meter], window, committed, honest.ciphertext
    ).to_message()


@pytest.mark.timeout(240)
def test_the_window_after_a_spent_budget_is_released_with_every_reading(tmp_path: Path) -> None:
    """Blocking and asyncio meters, and a fleet behind a gateway, had the old parameters."""
    with LocalCity.create(tmp_path, meters=1, failure_budget=1, grace=GRACE) as city:
        keys = [MeterKeys.create(f"home {at}") for at in range(FLEET + 2)]
        city.keyholder.roster.enrol([meter.member for meter in keys])
        city.aggregator.follower.step()
        with playing(city, tmp_path, keys) as players:
            advance(city, NEXT)
            old = city.parameters()
            city.stub("meter").SubmitReport(lying_report(city, 0, WINDOW))
            players.record(WINDOW, (700, 7))
            advance(city, NEXT + GRACE, lambda: city.stored_window().phase.settled)
            assert city.stored_window().phase is Phase.REFUSED
            advance(city, city.clock.now() + 15)
            new = city.parameters(NEXT)
            assert new.epoch.epoch_id != old.epoch.epoch_id
            assert city.stored_window(NEXT).parameters_digest == new.digest
            city.keyholder.roster.withdraw([city.meters[0].meter_id])
            advance(city, NEXT + LENGTH)
            players.record(NEXT, (900, 9))
            advance(
                city, NEXT + LENGTH + GRACE + 20, lambda: city.stored_window(NEXT).phase.settled
            )
            assert city.stored_window(NEXT).phase is Phase.RELEASED
            assert players.settled(NEXT)
        total = total_of(city, NEXT)
        assert total.count == FLEET + 2
        assert total.parameters_digest == new.digest
        sums = {register.name: register.sum for register in total.registers}
        assert sums == {"import_wh": sum(2 * at for at in range(FLEET)) + 900, "export_wh": 9}
        assert players.tally is not None
        assert (players.tally.accepted, players.tally.unsettled) == (2 * FLEET, 0)


def asked(city: LocalCity, window: int) -> CityParameters:
    """What the aggregator tells a meter about a window."""
    request = aggregator_pb2.GetCityParametersRequest(window_start=window)
    answer = city.stub("meter").GetCityParameters(request)
    config = city.aggregator_config
    return open_city_parameters(
        answer.parameters, answer.signature, config.identity_key, config.city_id
    )


def asked_of_the_keyholder(city: LocalCity, window: int) -> CityParameters:
    config = city.aggregator_config
    client = KeyHolderClient(config.keyholder, config.city_id, config.identity_key, config.tls)
    try:
        return client.parameters(window).parameters
    finally:
        client.close()


def test_a_meter_with_the_old_parameters_is_told_the_epoch_to_use(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        city.clock.move_to(WINDOW + 100)
        late = city.report(1)
        retire(city, WINDOW)
        city.aggregator.follower.follow_epochs()
        city.aggregator.follower.step()
        new = city.parameters(WINDOW)
        assert asked(city, WINDOW) == asked_of_the_keyholder(city, WINDOW) == new
        assert asked(city, NEXT) == asked(city, 0) == new
        city.clock.move_to(WINDOW + LENGTH)
        with pytest.raises(grpc.RpcError) as refused:
            city.stub("meter").SubmitReport(late)
        error = from_rpc_error(refused.value)
        assert error.reason is Reason.KEY_EPOCH
        assert error.metadata["epoch"] == new.epoch.epoch_id.hex()
        city.stub("meter").SubmitReport(city.report(1))
        assert city.aggregator.store.count(WINDOW) == 1
        city.restart_aggregator()
        assert city.stored_window().parameters_digest == new.digest
        assert asked(city, WINDOW) == new


def test_an_aggregator_that_was_told_nothing_asks_before_reports_are_taken(
    tmp_path: Path,
) -> None:
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(NEXT)
        city.clock.move_to(NEXT + 100)
        old = retire(city, NEXT)
        due = confirm_at(old.policy.rules, NEXT)
        assert due < old.policy.rules.opens(NEXT)
        city.clock.move_to(due - 1)
        city.aggregator.follower.step()
        assert city.stored_window(NEXT).parameters_digest == old.digest
        city.clock.move_to(due)
        city.aggregator.follower.step()
        assert city.stored_window(NEXT).parameters_digest == city.parameters(NEXT).digest


def test_a_window_with_reports_under_destroyed_keys_ends_at_once_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalCity.create(tmp_path, meters=120) as city:
        city.enter_window(WINDOW)
        batch = city.batch()
        city.stub("gateway").SubmitReports(batch)
        old = retire(city, WINDOW)
        city.aggregator.follower.follow_epochs()
        city.aggregator.follower.step()
        assert city.stored_window().parameters_digest == old.digest
        # The same report again is answered as before: it is not made anew for another epoch.
        again = city.stub("meter").SubmitReport(batch.reports[0])
        assert again.duplicate
        city.clock.move_to(city.stored_window().closes)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert city.stored_window().phase in {Phase.REFUSED, Phase.EXPIRED}
        attempts: list[object] = []
        monkeypatch.setattr(city.aggregator.releaser, "_attempt", attempts.append)
        city.aggregator.releaser.step()
        assert not attempts
        monkeypatch.undo()
        city.enter_window(NEXT)
        city.stub("gateway").SubmitReports(city.batch(NEXT))
        city.clock.move_to(city.stored_window(NEXT).closes)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert city.stored_window(NEXT).phase is Phase.RELEASED
        assert total_of(city, NEXT).count == 120
        assert city.keyholder.ledger.state(WINDOW).status in {Status.REFUSED, Status.EXPIRED}


def test_an_aggregator_whose_current_window_is_lost_follows_on(tmp_path: Path) -> None:
    """It learns the next window's parameters though the current one has none."""
    with LocalCity.create(tmp_path, meters=3) as city:
        city.clock.move_to(WINDOW + LENGTH - 50)
        retire(city, WINDOW)
        city.aggregator.follower.step()
        assert city.aggregator.store.window(WINDOW) is None
        assert asked(city, NEXT) == city.parameters(NEXT)
        city.enter_window(NEXT)
        city.stub("meter").SubmitReport(city.report(0, NEXT))


def test_a_report_whose_window_moves_before_it_is_stored_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lane would not open: it is told the epoch to use instead."""
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        city.clock.move_to(WINDOW + 100)
        report = city.report(0)
        retire(city, WINDOW)
        city.clock.move_to(WINDOW + LENGTH)
        committer, commit = city.aggregator.committer, city.aggregator.committer.commit

        def after_the_move(batches: list[LaneBatch]) -> list[Outcome]:
            city.aggregator.follower.follow_epochs()
            city.aggregator.follower.step()
            return list(commit(batches))

        monkeypatch.setattr(committer, "commit", after_the_move)
        (answer,) = city.aggregator.ingest.submit([report])
        assert not isinstance(answer, Accepted)
        assert answer.reason is Reason.KEY_EPOCH
        assert city.aggregator.store.count(WINDOW) == 0
        assert city.stored_window().parameters_digest == city.parameters().digest


def test_a_report_that_was_stored_is_never_made_anew(tmp_path: Path) -> None:
    """Its receipt was lost, then its epoch was destroyed: the meter learns that it was counted."""
    with LocalCity.create(tmp_path, meters=3) as city:
        own = MeterKeys.create()
        city.keyholder.roster.enrol([own.member])
        city.enter_window(WINDOW)
        meter = Meter.open(
            profile(city, "meter"), keys=own, outbox=tmp_path / "own.db", clock=city.clock
        )
        with meter:
            meter.record(WINDOW, import_wh=5, export_wh=0)
            (entry,) = meter._outbox.due(1e12, 1)
            city.stub("meter").SubmitReport(report_pb2.Report.FromString(entry.report or b""))
            retire(city, WINDOW)
            city.aggregator.follower.follow_epochs()
            city.aggregator.follower.step()
            city.clock.move_to(meter.next_due() or 0)
            (verdict,) = meter.submit_due()
            assert (verdict.state, verdict.duplicate) == (State.SETTLED, True)


def test_many_meters_enrolled_later_change_nothing_of_a_window_that_moves(tmp_path: Path) -> None:
    """A moved window keeps its roster version and its count of meters."""
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        city.clock.move_to(WINDOW + 100)
        before = city.stored_window()
        city.keyholder.roster.enrol([meter.member for meter in make_members(400, seed=9)])
        retire(city, WINDOW)
        city.aggregator.follower.follow_epochs()
        city.aggregator.follower.step()
        moved = city.stored_window()
        assert moved == replace(before, parameters_digest=city.parameters().digest)
