"""A fleet's readings, replayed through a gateway, arrive whole: once each, whatever fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from gridveil.meter_identity import MeterKeys
from gridveil.protocol.errors import (
    Conflict,
    MalformedInput,
    NotAllowed,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.report import Report
from gridveil.simulator import CsvSource, Simulator, Tally
from gridveil_services.rpc import Role
from tests.support.clients import LeapingClock
from tests.support.epochs import CityKeys, city_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW, city_policy

METERS, WINDOWS = 24, 2
END = WINDOW + 900


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls"), CITY_ID)


@pytest.fixture(scope="module")
def city() -> CityKeys:
    return city_keys(city_policy(batch_limit=8))


@pytest.fixture(scope="module")
def fleet() -> list[MeterKeys]:
    return [MeterKeys.create(f"home {n}") for n in range(METERS)]


def reading(meter: int, window: int) -> int:
    return (meter - 5) * 100 + window


@pytest.fixture
def readings(tmp_path: Path) -> CsvSource:
    columns = ",".join(f"i{at}" for at in range(WINDOWS))
    rows = (
        f"home {meter}," + ",".join(str(reading(meter, at)) for at in range(WINDOWS))
        for meter in range(METERS)
    )
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([f"meter_id,{columns}", *rows, ""]))
    return CsvSource(path, WINDOW)


class Setup:
    """A receiver on a clock that starts when the first window ends."""

    def __init__(self, city: CityKeys, certificates: Certificates, folder: Path) -> None:
        self.clock = LeapingClock(END)
        self.receiver = Receiver(city, self.clock)
        self.certificates = certificates
        self.outbox = folder / "outbox.db"
        self.address = "127.0.0.1:1"

    def simulator(
        self, fleet: list[MeterKeys], source: CsvSource, *, workers: int = 0
    ) -> Simulator:
        profile = self.certificates.profile(Role.GATEWAY, self.receiver.keys, self.address)
        return Simulator(profile, fleet, source, self.outbox, clock=self.clock, workers=workers)

    def opened(self, fleet: list[MeterKeys]) -> dict[tuple[int, int], int]:
        """Signed Wh of every accepted report, by place in the fleet and window."""
        places = {meter.meter_id: (at, meter) for at, meter in enumerate(fleet)}
        found = {}
        for (window, meter_id), report in self.receiver.accepted.items():
            place, meter = places[meter_id]
            values, _ = self.receiver.keys.open_report(report, meter.member)
            found[place, (window - WINDOW) // 900] = values[0] - values[1]
        return found


@pytest.fixture
def setup(city: CityKeys, certificates: Certificates, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(city, certificates, tmp_path)
    with serving(made.receiver, certificates) as made.address:
        yield made


def whole(meters: int = METERS, windows: int = WINDOWS) -> dict[tuple[int, int], int]:
    return {(m, w): reading(m, w) for m in range(meters) for w in range(windows)}


def test_every_reading_arrives_once_and_after_its_interval(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    seen: list[Tally] = []
    with setup.simulator(fleet, readings) as simulator:
        tally = simulator.run(WINDOW, WINDOWS, seen.append)
    assert (tally.accepted, tally.unsettled, tally.late) == (METERS * WINDOWS, 0, 0)
    assert setup.opened(fleet) == whole()
    assert seen[-1] is tally
    batches = [at for name, at in setup.receiver.calls if name == "SubmitReports"]
    assert len(batches) >= WINDOWS * 3
    assert len(setup.receiver.seen) == METERS * WINDOWS


def test_worker_processes_make_the_same_reports(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    with setup.simulator(fleet[:20], readings, workers=2) as simulator:
        tally = simulator.run(WINDOW, 1)
    assert tally.accepted == 20
    assert setup.opened(fleet[:20]) == whole(20, 1)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        """
import multiprocessing, time
from gridveil.simulator.building import ReportFactory

if __name__ == "__main__":
    factory = ReportFactory(2)
    factory.warm_up()
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""
    )
    parent = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_lost_answers_and_refusals_are_retried_and_counted(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    revoked, lossy = fleet[3].meter_id, {meter.meter_id for meter in fleet[10:20]}

    def refuse(report: Report) -> None:
        if report.claim.meter_id == revoked:
            raise NotAllowed(Reason.METER_REVOKED, "withdrawn")

    def lose(report: Report) -> None:
        if report.claim.meter_id in lossy:
            lossy.discard(report.claim.meter_id)
            raise Unavailable(Reason.STORE_UNAVAILABLE, "lost")

    setup.receiver.before, setup.receiver.after = refuse, lose
    with setup.simulator(fleet, readings) as simulator:
        tally = simulator.run(WINDOW, WINDOWS)
    assert tally.refused == {Reason.METER_REVOKED: WINDOWS}
    assert (tally.accepted, tally.duplicates) == ((METERS - 1) * WINDOWS, 10)
    assert setup.opened(fleet) == {k: v for k, v in whole().items() if k[0] != 3}


def test_an_aggregator_that_restarts_gets_every_report(
    city: CityKeys,
    certificates: Certificates,
    tmp_path: Path,
    fleet: list[MeterKeys],
    readings: CsvSource,
) -> None:
    setup = Setup(city, certificates, tmp_path)
    context = serving(setup.receiver, certificates)
    setup.address = context.__enter__()
    restarted: list[AbstractContextManager[str]] = []

    def restart(tally: Tally) -> None:
        if tally.accepted and not restarted:
            context.__exit__(None, None, None)
            again = serving(setup.receiver, certificates, setup.address)
            again.__enter__()
            restarted.append(again)

    with setup.simulator(fleet, readings) as simulator:
        tally = simulator.run(WINDOW, WINDOWS, restart)
    restarted[0].__exit__(None, None, None)
    assert tally.accepted == METERS * WINDOWS
    assert setup.opened(fleet) == whole()


def test_a_restarted_simulator_carries_on_and_blinds_nothing_twice(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    class Stop(Exception):
        pass

    def stop(tally: Tally) -> None:
        if tally.accepted:
            raise Stop

    with setup.simulator(fleet, readings) as simulator, pytest.raises(Stop):
        simulator.run(WINDOW, WINDOWS, stop)
    first = {report.claim.digest() for report in setup.receiver.seen}
    with setup.simulator(fleet, readings) as simulator:
        tally = simulator.run(WINDOW, WINDOWS)
    assert first
    assert (tally.accepted, tally.late) == (METERS * WINDOWS, 0)
    assert setup.opened(fleet) == whole()
    keys = {(r.claim.window_start, r.claim.meter_id): r.claim.digest() for r in setup.receiver.seen}
    assert set(keys.values()) == {r.claim.digest() for r in setup.receiver.seen}


def test_an_outbox_with_other_readings_of_a_window_is_refused(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    with setup.simulator(fleet, readings) as simulator:
        simulator.run(WINDOW, 1)
    setup.clock = setup.receiver.clock = LeapingClock(END)
    readings.path.write_text(readings.path.read_text().replace(",100,", ",101,"))
    with setup.simulator(fleet, readings) as simulator, pytest.raises(Conflict):
        simulator.run(WINDOW, 1)


def test_windows_that_were_closed_already_are_late_and_not_encrypted(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    setup.clock = setup.receiver.clock = LeapingClock(END + 301)
    with setup.simulator(fleet, readings) as simulator:
        tally = simulator.run(WINDOW, 2)
    assert (tally.late, tally.accepted) == (METERS, METERS)


def test_bad_readings_stop_it_before_anything_is_sent_or_are_skipped(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    readings.path.write_text(readings.path.read_text().replace("home 7,200,", "home 7,2.5,"))
    with setup.simulator(fleet, readings) as simulator:
        with pytest.raises(MalformedInput, match=r"wide\.csv, line 9, column 2"):
            simulator.run(WINDOW, WINDOWS)
        assert setup.receiver.seen == []
        readings.skip_bad = True
        tally = simulator.run(WINDOW, 1)
    assert (tally.missing, tally.accepted, readings.skipped) == (1, METERS - 1, 1)


def test_another_key_than_the_pinned_is_refused(
    setup: Setup, city: CityKeys, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    with setup.simulator(fleet, readings) as simulator:
        setup.receiver.keys = city_keys(
            city.parameters.policy, identity=type(city.identity)(bytes(32))
        )
        with pytest.raises(NotAuthentic) as refused:
            simulator.run(WINDOW, 1)
    assert refused.value.reason is Reason.KEY_NOT_PINNED
    assert setup.receiver.seen == []


def test_a_new_epoch_in_the_middle_gets_the_same_readings(
    setup: Setup, city: CityKeys, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    with setup.simulator(fleet, readings) as simulator:
        changed: list[int] = []

        def rotate(tally: Tally) -> None:
            if tally.recorded and not changed:
                setup.receiver.accepted.clear()
                setup.receiver.keys = city_keys(city.parameters.policy, name=b"epoch-0000000001")
                changed.append(tally.accepted)

        tally = simulator.run(WINDOW, WINDOWS, rotate)
    assert tally.accepted == METERS * WINDOWS
    opened = setup.opened(fleet)
    assert len(opened) >= METERS * WINDOWS - changed[0]
    assert opened.items() <= whole().items()


def test_the_spread_stays_within_two_thirds_of_the_grace(
    setup: Setup, fleet: list[MeterKeys], readings: CsvSource
) -> None:
    with setup.simulator(fleet, readings) as simulator:
        simulator.run(WINDOW, WINDOWS)
    times = [at for name, at in setup.receiver.calls if name == "SubmitReports"]
    offsets = [(at - END) % 900 for at in times]
    assert len(offsets) >= 3 * WINDOWS
    assert max(offsets) < 200
