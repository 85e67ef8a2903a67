"""``gridveil meters simulate`` says what became of every reading, in words, JSON and exit code."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys, write_fleet
from gridveil.protocol.errors import NotAllowed, Reason
from gridveil.protocol.report import Report
from gridveil_services.rpc import Role
from tests.support.epochs import city_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW

pytestmark = pytest.mark.long

END = WINDOW + 900
RATE = 50.0
ROWS = {"home 1": 100, "home 2": -250, "home 3": 0}


class Command:
    """The command against a receiver on the same clock."""

    def __init__(self, folder: Path, receiver: Receiver, clock: ScaledClock) -> None:
        self.folder = folder
        self.receiver = receiver
        self.clock = clock
        self.fleet = [MeterKeys.create() for _ in ROWS]
        write_fleet(folder / "fleet.jsonl", self.fleet)
        lines = [f"{name},{wh}" for name, wh in ROWS.items()]
        (folder / "readings.csv").write_text("\n".join(["meter_id,first", *lines]))

    def write_profile(self, address: str, *, development: bool = True) -> None:
        certificates = Certificates(self.folder, CITY_ID).tls(Role.GATEWAY)
        (self.folder / "profile.toml").write_text(
            f"""
            city_id = "{CITY_ID.hex()}"
            identity_key = "{self.receiver.keys.identity_key.hex()}"
            development = {"true" if development else "false"}
            [aggregator]
            address = "{address}"
            [tls]
            ca = "{certificates.ca}"
            certificate = "{certificates.certificate}"
            key = "{certificates.key}"
            """
        )

    def run(self, *more: str, file: bool = True) -> Result:
        readings = ("--readings", str(self.folder / "readings.csv"), "--start", str(WINDOW))
        origin = f"{self.clock.origin!r}@{self.clock.started!r}"
        return CliRunner().invoke(
            app,
            [
                *("meters", "simulate", "--profile", str(self.folder), "--windows", "1"),
                *("--fleet", str(self.folder / "fleet.jsonl")),
                *("--clock-origin", origin, "--clock-rate", str(self.clock.rate)),
                *(readings if file else ()),
                *more,
            ],
        )

    def summary(self, *more: str) -> Any:
        return json.loads(self.run(*more, "--json").stdout)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    clock = ScaledClock(END, time.time(), RATE)
    receiver = Receiver(city_keys(), clock)
    certificates = Certificates.make(tmp_path, CITY_ID)
    made = Command(tmp_path, receiver, clock)
    with serving(receiver, certificates) as address:
        made.write_profile(address)
        yield made


def test_all_accepted_is_0_and_the_readings_are_the_files(command: Command) -> None:
    ended = command.run()
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "3 of 3 readings accepted.\n"
    found = {}
    for (_, meter_id), report in command.receiver.accepted.items():
        (meter,) = [m for m in command.fleet if m.meter_id == meter_id]
        values, _ = command.receiver.keys.open_report(report, meter.member)
        found[command.fleet.index(meter)] = values
    assert found == {0: [100, 0], 1: [0, 250], 2: [0, 0]}


def test_json_has_one_schema(command: Command) -> None:
    assert command.summary() == {
        "window_start": WINDOW,
        "window": "2023-11-14T22:15:00Z",
        "windows": 1,
        "readings": 3,
        "recorded": 3,
        "accepted": 3,
        "duplicates": 0,
        "refused": {},
        "late": 0,
        "unsettled": 0,
        "missing": 0,
        "skipped": 0,
    }


def test_a_refused_report_is_1_and_its_reason_is_told(command: Command) -> None:
    revoked = command.fleet[1].meter_id

    def refuse(report: Report) -> None:
        if report.claim.meter_id == revoked:
            raise NotAllowed(Reason.METER_REVOKED, "withdrawn")

    command.receiver.before = refuse
    ended = command.run()
    assert ended.exit_code == 1
    assert ended.stdout == "2 of 3 readings accepted.\n1 refused.\n  METER_REVOKED: 1\n"
    again = command.run("--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["refused"] == {"METER_REVOKED": 1}


def test_readings_of_a_closed_window_are_1_and_called_late(command: Command) -> None:
    command.clock = ScaledClock(END + 300, time.time(), RATE)
    ended = command.run()
    assert ended.exit_code == 1
    assert "3 too late: their window was closed before they could be encrypted." in ended.stdout
    assert command.receiver.seen == []


def test_a_bad_reading_is_2_by_line_and_column_and_nothing_is_sent(command: Command) -> None:
    file = command.folder / "readings.csv"
    file.write_text(file.read_text().replace("-250", "-250.5"))
    ended = command.run()
    assert ended.exit_code == 2
    assert ended.stderr == (
        "READING_INVALID: readings.csv, line 3, column 2: not a whole number of Wh\n"
    )
    assert command.receiver.seen == []
    ended = command.run("--skip-bad")
    assert ended.exit_code == 0
    assert ended.stdout == (
        "2 of 2 readings accepted.\n1 missing in the readings.\n1 bad rows and readings skipped.\n"
    )


def test_an_aggregator_out_of_reach_is_3(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridveil.simulator.replay._PATIENCE_S", 0.1)
    command.write_profile("127.0.0.1:1")
    ended = command.run()
    assert ended.exit_code == 3
    assert ended.stderr.startswith("UNREACHABLE: ")


def test_another_key_than_the_pinned_is_1(command: Command) -> None:
    command.receiver.keys = city_keys(identity=type(command.receiver.keys.identity)(bytes(32)))
    ended = command.run()
    assert ended.exit_code == 1
    assert ended.stderr.startswith("KEY_NOT_PINNED: ")
    assert command.receiver.seen == []


def test_made_up_households_are_played_too(command: Command) -> None:
    # The profile takes seconds to load.
    command.clock = command.receiver.clock = ScaledClock(END - 500, time.time(), RATE)
    ended = command.run("--generate", "--start-window", str(WINDOW), "--meters", "2", file=False)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "2 of 2 readings accepted.\n"


@pytest.mark.parametrize(
    ("more", "file", "told"),
    [
        (["--generate"], True, "either --readings or --generate"),
        ([], False, "either --readings or --generate"),
        (["--start-window", str(WINDOW + 1)], True, "not the start of a window"),
        (["--start-window", str(WINDOW - 900)], True, "has intervals from"),
        (["--start-window", "tomorrow"], True, "neither Unix seconds nor a time"),
        (["--fleet", "nowhere.jsonl"], True, "nowhere.jsonl cannot be read"),
        (["--profile", "nowhere.toml"], True, "nowhere.toml does not exist"),
        (["--outbox", "nowhere/outbox.db"], True, "outbox.db.lock cannot be opened"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    command: Command, more: list[str], file: bool, told: str
) -> None:
    ended = command.run(*more, file=file)
    assert ended.exit_code == (3 if "outbox" in told else 2)
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_empty_fleet_and_a_clock_outside_development_are_2(command: Command) -> None:
    (command.folder / "fleet.jsonl").write_text("")
    assert command.run().exit_code == 2
    command.write_profile("127.0.0.1:1", development=False)
    ended = command.run()
    assert ended.exit_code == 2
    assert "development cities only" in ended.stderr
