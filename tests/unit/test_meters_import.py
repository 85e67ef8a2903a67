"""``gridveil meters import``: a file in, windows out, and a history that can be replayed."""

from __future__ import annotations

import json
import stat
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.days import windows_of
from gridveil.simulator import CsvSource
from gridveil.simulator.readings import ReadingBounds
from tests.support.meter_files import (
    NMI,
    at,
    espi,
    espi_reading,
    espi_value,
    nem12,
    nem12_channel,
    nem12_day,
)


def imported(*words: object) -> Result:
    return CliRunner().invoke(app, ["meters", "import", *map(str, words)])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    day = nem12_day("20260101", range(96), "V", ["1,90,A,,", "91,92,S14,,", "93,96,N,,"])
    fed = nem12_day("20260101", [1] * 96)
    channels = nem12_channel("E1", [day], unit="Wh"), nem12_channel("B1", [fed], unit="Wh")
    (tmp_path / "nem12.csv").write_bytes(nem12(*channels))
    start = at("2026-01-01T00:00")
    values = [espi_value(start + 300 * part, part, 300) for part in range(6)]
    (tmp_path / "usage.xml").write_bytes(espi(espi_reading(1, [values])))
    return tmp_path


def test_what_was_measured_can_be_replayed_and_nothing_else(files: Path) -> None:
    out = files / "readings.csv"
    done = imported(files / "nem12.csv", "--format", "nem12", "--csv", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == (f"{NMI}: 90 windows measured, 2 estimated, 4 missing")
    assert "2026-01-01T13:00:00Z  missing, 4 windows: gap" in done.stdout
    page = (Path(__file__).parents[2] / "docs" / "meters.md").read_text("utf-8")
    assert done.stdout in page
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    source = CsvSource(out)
    windows = [at("2025-12-31T14:00") + 900 * window for window in range(96)]
    table = source.read([NMI], windows, ReadingBounds(900, -1000, 1000))
    assert table.present[:, 0].tolist() == [True] * 90 + [False] * 6
    assert table.wh[:90, 0].tolist() == [window - 1 for window in range(90)]


def test_json_says_of_every_window_what_it_is(files: Path) -> None:
    done = imported(files / "nem12.csv", "--format", "nem12", "--json", "--zone", "UTC")
    *windows, summary = map(json.loads, done.stdout.splitlines())
    assert [one["quality"] for one in windows] == ["validated"] * 90 + ["estimated"] * 2 + [
        "missing"
    ]
    assert windows[7] == {
        "meter": NMI,
        "window_start": at("2025-12-31T15:45"),
        "window": "2025-12-31T15:45:00Z",
        "quality": "validated",
        "values": {"import_wh": 7, "export_wh": 1},
        "still": [],
    }
    assert (windows[-1]["windows"], windows[-1]["why"]) == (4, "gap")
    assert (summary["validated"], summary["missing"]) == (90, {"gap": 4})
    assert [(day["windows"], day["validated"]) for day in summary["days"]] == [(96, 40), (96, 50)]


def test_intervals_of_five_minutes_make_windows_and_those_that_do_not_are_refused(
    files: Path,
) -> None:
    done = imported(files / "usage.xml", "--format", "espi", "--json")
    *windows, _ = map(json.loads, done.stdout.splitlines())
    assert [one["values"] for one in windows] == [{"import_wh": 3}, {"import_wh": 12}]
    refused = imported(files / "usage.xml", "--format", "espi", "--window", "60")
    assert refused.exit_code == 2
    assert "do not make up windows of 60 s" in refused.stderr


@pytest.mark.parametrize(("day", "windows"), [("2026-03-29", 92), ("2026-10-25", 100)])
def test_a_local_day_of_92_or_100_quarter_hours_is_whole(
    day: str, windows: int, tmp_path: Path
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    starts = windows_of(date.fromisoformat(day), zone, 900)
    rows = [f"{start},{at % 7}" for at, start in enumerate(starts)]
    (tmp_path / "home.csv").write_text("\n".join(["timestamp,import_wh", *rows]))
    done = imported(tmp_path / "home.csv", "--format", "csv", "--zone", "Europe/Berlin")
    assert done.exit_code == 0, done.output
    assert f"home: {windows} windows measured, 0 estimated, 0 missing" in done.stdout
    assert f"{day} has {windows} windows" in done.stdout
    assert "1 of 1 local days are whole" in done.stdout


def test_a_register_that_stands_still_is_told_and_its_values_stay(tmp_path: Path) -> None:
    rows = [f"{1_767_225_600 + 900 * at},0.2" for at in range(100)]
    (tmp_path / "home.csv").write_text("\n".join(["timestamp,import_kwh", *rows]))
    done = imported(tmp_path / "home.csv", "--format", "csv", "--csv", tmp_path / "out.csv")
    assert "import_wh stood still in 5 windows" in done.stdout
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 101


def test_registers_and_meters_of_a_file_can_be_chosen(files: Path) -> None:
    more = ["--register", "import_wh=B1", "--meter", NMI, "--json"]
    done = imported(files / "nem12.csv", "--format", "nem12", *more)
    assert json.loads(done.stdout.splitlines()[0])["values"] == {"import_wh": 1}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--format", "espi"], "READING_INVALID: file: not well-formed XML"),
        (["--format", "csv"], "READING_INVALID: file, line 1: the header"),
        (["--format", "nem12", "--meter", "QAAA000002"], "no such meter"),
        (["--format", "nem12", "--register", "import_wh=E9"], "no such channel"),
        (["--format", "nem12", "--register", "E1"], "NAME=CHANNEL"),
        (["--format", "nem12", "--register", "import_wh=E1+E1"], "counted twice"),
        (["--format", "nem12", "--zone", "../etc"], "an IANA name"),
        (["--format", "nem12", "--zone", "Europe/Nowhere"], "an IANA name"),
        (["--format", "nem12", "--window", "1000"], "--window divides a day"),
        (["--format", "nem12", "--csv", "no/where.csv"], "where.csv cannot be written"),
        (["--format", "nem12", "--csv", "nem12.csv"], "is the file itself"),
        (["--format", "nem12", "--register", "a_varh=E1", "--csv", "x.csv"], "nothing else"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    more: list[str], told: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    done = imported("nem12.csv", *more)
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = imported(tmp_path / "none.xml", "--format", "espi")
    assert (done.exit_code, done.stderr) == (2, "CONFIG_INVALID: none.xml cannot be read\n")


def test_a_file_longer_than_is_read_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "long.xml").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    done = imported(tmp_path / "long.xml", "--format", "espi")
    assert done.exit_code == 2
    assert "longer than 67,108,864 bytes" in done.stderr
