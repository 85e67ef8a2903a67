"""``gridveil totals export`` against a totals service with days of 92, 96 and 100 quarter-hours."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.days import time_zone, windows_of
from gridveil.tables import Layout, columns
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import (
    OpenedWindow,
    city_identity,
    expired,
    open_window,
    publish,
    readings,
    refused,
    released,
)

ZONE = "Europe/Zurich"
DAYS = [("2026-03-29", 92), ("2026-06-01", 96), ("2026-10-25", 100)]


def export(paths: CityPaths, output: Path, *typed: str) -> Result:
    profile = ["--profile", str(paths.profile("operator"))]
    words = ["totals", "export", "--output", str(output), *typed, *profile]
    return CliRunner().invoke(app, words)


def opened(paths: CityPaths, window: int) -> OpenedWindow:
    policy, signer = city_identity(paths)
    return open_window(policy, signer, window, readings(100, seed=window))


def quarter_hours(day: str) -> range:
    return windows_of(date.fromisoformat(day), time_zone(ZONE), 900)


@pytest.mark.parametrize(("day", "size"), DAYS)
def test_a_local_day_is_exported_whole_whatever_is_settled_of_it(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path, day: str, size: int
) -> None:
    windows = quarter_hours(day)
    made = [opened(paths, window) for window in (windows[0] - 900, windows[0], windows[10])]
    publish(paths, *map(released, made), refused(windows[11]), expired(windows[-1]))
    serve()
    of_day = ["--day", day, "--zone", ZONE]

    for_people = export(paths, tmp_path / "day.csv", *of_day)
    for_programs = export(paths, tmp_path / "day.parquet", *of_day, "--format", "parquet")

    assert (for_people.exit_code, for_programs.exit_code) == (0, 0), for_people.output
    table = parquet.read_table(tmp_path / "day.parquet").to_pylist()
    assert [int(row["window_start"].timestamp()) for row in table] == list(windows)
    assert len(table) == size
    wanted = {"released": 2, "not_released": 2, "not_settled": size - 4}
    assert Counter(row["status"] for row in table) == wanted
    assert [row["import_wh"] for row in table if row["import_wh"] is not None] == [
        found.total.registers[0].sum for found in made[1:]
    ]
    with (tmp_path / "day.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["local_start"] for line in lines] == [
        row["local_start"].isoformat() for row in table
    ]
    assert lines[0]["local_start"] == f"{day}T00:00:00"
    assert [line["import_wh"] for line in lines] == [
        "" if row["import_wh"] is None else str(row["import_wh"]) for row in table
    ]
    assert for_people.stdout == ""
    assert for_people.stderr == (
        f"day.csv: {size} windows (2 not released, {size - 4} not settled, 2 released)\n"
    )


def test_without_bounds_everything_settled_is_exported_and_what_lies_between(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path
) -> None:
    windows = quarter_hours("2026-06-01")
    publish(paths, expired(windows[0]), released(opened(paths, windows[3])))
    serve()

    ended = export(paths, tmp_path / "all.csv")
    bounded = export(
        paths, tmp_path / "some.csv", "--from", str(windows[1]), "--until", str(windows[3])
    )

    assert (ended.exit_code, bounded.exit_code) == (0, 0), ended.output + bounded.output
    with (tmp_path / "all.csv").open(newline="") as file:
        found = [line["status"] for line in csv.DictReader(file)]
    assert found == ["not_released", "not_settled", "not_settled", "released"]
    # Without a total in the range its columns are those of the city's other totals.
    with (tmp_path / "some.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["status"] for line in lines] == ["not_settled", "not_settled"]
    assert {line["import_wh"] for line in lines} == {""}


def test_an_export_that_fails_leaves_the_old_file_and_no_part_of_the_new_one(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path
) -> None:
    windows = quarter_hours("2026-06-01")
    publish(paths, *(released(opened(paths, window)) for window in (windows[0], windows[2])))
    serve()
    kept = tmp_path / "kept.csv"
    kept.write_text("of yesterday")

    # The last window is none: found after the first rows were written.
    ended = export(paths, kept, "--from", str(windows[0]), "--until", str(2**52 // 900 * 900))

    assert ended.exit_code == 2
    assert ended.stderr.startswith("RANGE_INVALID: ")
    assert ended.stderr.count("\n") == 1
    assert kept.read_text() == "of yesterday"
    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.csv"]


def test_a_city_without_any_total_has_nothing_to_export(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path
) -> None:
    publish(paths, expired(quarter_hours("2026-06-01")[0]))
    serve()
    ended = export(paths, tmp_path / "none.csv", "--day", "2026-06-01")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("NOT_RELEASED: ")
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ["--zone", "Europe/Springfield"],
        ["--day", "2026-06-01", "--from", "2026-06-01"],
        ["--day", "yesterday"],
        ["--format", "xls"],
    ],
)
def test_export_refuses_what_it_does_not_understand(
    paths: CityPaths, tmp_path: Path, typed: list[str]
) -> None:
    ended = export(paths, tmp_path / "never.csv", *typed)
    assert ended.exit_code == 2
    assert not (tmp_path / "never.csv").exists()


@pytest.mark.parametrize("output", [".", "nowhere/day.csv", "taken/day.csv"])
def test_a_file_that_cannot_be_written_ends_with_2(
    paths: CityPaths,
    serve: Callable[[], TotalsProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    publish(paths, released(opened(paths, quarter_hours("2026-06-01")[0])))
    serve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("not a folder")
    ended = export(paths, Path(output))
    assert ended.exit_code == 2
    assert "Traceback" not in ended.output
    assert str(tmp_path) not in ended.stderr


PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text("utf-8")


def test_the_sample_of_the_documents_makes_a_table_of_its_day(
    paths: CityPaths,
    serve: Callable[[], TotalsProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = [opened(paths, window) for window in quarter_hours("2026-10-25")[:2]]
    publish(paths, *map(released, made))
    serve()
    monkeypatch.chdir(paths.folder.parent)
    (sample,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(sample, {})  # noqa: S102 - the point of the test
    sums = sum(found.total.registers[0].sum for found in made)
    assert capsys.readouterr().out == f"{{'not_settled': 98, 'released': 2}}\n{sums} Wh\n"


def test_the_documents_list_every_column_in_order() -> None:
    listed = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    shown = [name for cell in listed for name in re.findall(r"`(\w+)`", cell)]
    city = Layout((("import_wh", "Wh"), ("export_wh", "Wh")), 900)
    assert shown == [column.name for column in columns(city)]
