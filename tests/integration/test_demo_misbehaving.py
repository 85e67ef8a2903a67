"""``gridveil demo --misbehaving``, checked through the SDKs and the log, not by what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from gridveil.meter_identity import read_fleet
from gridveil.operator import Operator, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.v1.log_pb2 import DestructionCause, LogRecord
from gridveil.protocol.windows import lane_of
from gridveil.registrar import Registrar, Suspect
from gridveil.simulator.readings import ReadingBounds
from gridveil.simulator.standard_load import StandardLoadSource
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.demo.plan import EVENING
from gridveil_services.demo.processes import ServiceProcess
from gridveil_services.releaselog.reader import LogReader
from tests.integration.test_demo import run_demo

pytestmark = pytest.mark.long

METERS, WINDOWS, LIARS = 300, 6, 3
STARTS = [EVENING + at * 900 for at in range(WINDOWS)]


@dataclass
class Played:
    """A demonstration that is over, and what its services say when they are started anew."""

    told: dict[str, Any]
    totals: list[ReleasedTotal]
    suspects: list[Suspect]
    log: list[LogRecord]
    fleet: list[bytes]

    def lanes(self, total: ReleasedTotal) -> list[int]:
        """The lane of each meter of the fleet in a total's window."""
        epoch_id, lanes = total.total.epoch_id, total.total.lanes
        return [lane_of(epoch_id, total.window_start, meter, lanes) for meter in self.fleet]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    city = tmp_path_factory.mktemp("demo") / "city"
    done = run_demo(
        *("--meters", str(METERS), "--windows", str(WINDOWS)),
        *("--misbehaving", str(LIARS), "--json", "--keep", city),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    paths = CityPaths(city)
    log = LogReader(paths.published / "log").poll()
    services = [ServiceProcess(role, paths, None) for role in ("keyholder", "totals")]
    for service in services:
        service.start()
    try:
        with Operator.open(Profile.load(paths.profile("operator"))) as operator:
            outcomes = list(operator.list(STARTS[0], STARTS[-1] + 900))
        with Registrar.open(Profile.load(paths.profile("registrar"))) as registrar:
            suspects = registrar.suspects(1_000)
    finally:
        for service in services:
            service.stop()
    totals = [outcome for outcome in outcomes if isinstance(outcome, ReleasedTotal)]
    fleet = [meter.meter_id for meter in read_fleet(paths.fleet)]
    return Played(json.loads(done.stdout), totals, suspects, list(log), fleet)


def test_every_total_is_exact_for_the_meters_that_it_counts(played: Played) -> None:
    assert [total.window_start for total in played.totals] == STARTS
    table = StandardLoadSource().read(
        [None] * METERS, STARTS, ReadingBounds(900, -200_000, 200_000)
    )
    for total, wh in zip(played.totals, table.wh, strict=True):
        counted = [lane not in total.total.left_out for lane in played.lanes(total)]
        assert total.count == sum(counted) < METERS == total.total.enrolled
        assert total.sum("import_wh") == int(wh[counted].sum())
        assert total.sum("export_wh") == 0


def test_the_lane_of_the_lying_meter_is_left_out_and_no_other(played: Played) -> None:
    liars = [bytes.fromhex(meter_id) for meter_id in played.told["misbehaving"]]
    assert len(set(liars)) == LIARS
    for at, total in enumerate(played.totals):
        lane = played.lanes(total)[played.fleet.index(liars[at % LIARS])]
        assert total.total.left_out == (lane,)


def test_the_epoch_ends_with_its_budget_and_its_successor_loses_no_window(played: Played) -> None:
    destroyed = [r.epoch_destroyed for r in played.log if r.HasField("epoch_destroyed")]
    (spent,) = [
        gone for gone in destroyed if gone.cause == DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
    ]
    failures = {
        r.released.window_start: r.released.failures for r in played.log if r.HasField("released")
    }
    # A seal that does not open spends nothing of the budget.
    assert [failures[start] for start in STARTS] == [1, 1, 1, 0, 0, 0]
    assert spent.end_window == STARTS[3]
    epochs = [total.total.epoch_id for total in played.totals]
    assert epochs[:3] == [spent.epoch_id] * 3
    assert len(set(epochs[3:])) == 1
    assert epochs[3] != spent.epoch_id


def test_the_lying_meters_are_the_first_suspects_and_proven(played: Played) -> None:
    liars = {bytes.fromhex(meter_id) for meter_id in played.told["misbehaving"]}
    assert {suspect.meter_id for suspect in played.suspects[:LIARS]} == liars
    assert [suspect.proven for suspect in played.suspects[: LIARS + 1]] == [1, 1, 1, 0]


def test_the_json_says_what_the_services_say(played: Played) -> None:
    told = played.told
    assert (told["min_coverage"], told["failure_budget"]) == (0.5, LIARS)
    assert (told["released"], told["exact"]) == (WINDOWS, WINDOWS)
    for window, total in zip(told["windows"], played.totals, strict=True):
        assert window["exact"] is True
        assert window["count"] == window["households"] == total.count
        assert window["left_out"] == list(total.total.left_out)
        assert window["sum"]["import_wh"] == total.sum("import_wh") == window["truth"]["import_wh"]
        assert window["epoch_id"] == total.total.epoch_id.hex()
    how = [window["misbehaved"]["how"] for window in told["windows"]]
    assert how == ["other_reading"] * LIARS + ["broken_seal"] * LIARS
    assert told["epochs"][0]["destroyed"] == "budget_spent"
    assert told["epochs"][0]["end_window"] == told["epochs"][1]["first_window"] == STARTS[3]
    listed = [suspect["meter_id"] for suspect in told["suspects"]]
    assert listed == [suspect.meter_id.hex() for suspect in played.suspects][: len(listed)]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--misbehaving", "17", "--windows", "40", "--meters", "300"], "--misbehaving is 0 to"),
        (["--misbehaving", "-1"], "--misbehaving is 0 to"),
        (["--misbehaving", "1", "--meters", "299"], "--meters is 300 or more"),
        (["--misbehaving", "3", "--meters", "300", "--windows", "5"], "--windows is 6 or more"),
    ],
)
def test_what_could_not_be_shown_is_refused(arguments: list[str], wanted: str) -> None:
    done = run_demo(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("CONFIG_INVALID: ")
    assert wanted in done.stderr
