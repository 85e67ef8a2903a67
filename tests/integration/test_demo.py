"""``gridveil demo``, trusted in nothing that it prints."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gridveil.operator import Operator, ReleasedTotal
from gridveil.profile import Profile
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.demo.processes import ServiceProcess

pytestmark = pytest.mark.long

WINDOW_S = 900
START = "2018-10-28T23:00Z"
FIRST = 1_540_767_600


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gridveil.cli", "demo", *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=280
    )


def column_sums(path: Path, meters: int, windows: int) -> list[Counter[str]]:
    """Import and export of the first meters and intervals of a wide file."""
    sums = [Counter[str]() for _ in range(windows)]
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for _, row in zip(range(meters), rows, strict=False):
            for at in range(windows):
                wh = int(row[1 + at])
                sums[at]["export_wh" if wh < 0 else "import_wh"] += abs(wh)
    return sums


def released_totals(city: Path) -> list[ReleasedTotal]:
    """What an operator reads from a kept city, whose totals service is started anew."""
    paths = CityPaths(city)
    totals = ServiceProcess("totals", paths, None)
    totals.start()
    try:
        with Operator.open(Profile.load(paths.profile("operator"))) as operator:
            outcomes = list(operator.list())
    finally:
        totals.stop()
    return [outcome for outcome in outcomes if isinstance(outcome, ReleasedTotal)]


def check(readings: Path, meters: int, windows: int, city: Path) -> None:
    done = run_demo(
        *("--readings", readings, "--meters", str(meters), "--windows", str(windows)),
        *("--start", START, "--json", "--keep", city),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["released"], told["exact"]) == (windows, windows)
    totals = released_totals(city)
    starts = [FIRST + at * WINDOW_S for at in range(windows)]
    assert [total.window_start for total in totals] == starts
    for total, truth in zip(totals, column_sums(readings, meters, windows), strict=True):
        assert total.count == total.total.enrolled == meters
        assert total.sum("import_wh") == truth["import_wh"]
        assert total.sum("export_wh") == truth["export_wh"]
        assert total.mean("import_wh") == truth["import_wh"] / meters


def test_totals_of_a_made_up_file_are_its_column_sums(tmp_path: Path) -> None:
    chance = random.Random(7)
    rows = [[chance.randrange(-3_000, 90_000) for _ in range(2)] for _ in range(110)]
    text = "meter_id,a,b\n" + "".join(f"m{i},{a},{b}\n" for i, (a, b) in enumerate(rows))
    readings = tmp_path / "readings.csv"
    readings.write_text(text)
    check(readings, 110, 2, tmp_path / "city")


@pytest.mark.skipif(
    "GRIDVEIL_READINGS" not in os.environ,
    reason="GRIDVEIL_READINGS names no file of 537 households in quarter-hours",
)
def test_totals_of_537_real_households_are_the_files_column_sums(tmp_path: Path) -> None:
    check(Path(os.environ["GRIDVEIL_READINGS"]), 537, 8, tmp_path / "city")


def test_the_demo_refuses_a_cohort_that_could_not_hide_a_household() -> None:
    done = run_demo("--meters", "99")
    assert done.returncode == 2
    assert done.stderr.startswith("CONFIG_INVALID: --meters is 100 to")
    assert done.stderr.count("\n") == 1


def test_a_bad_reading_is_named_by_file_line_and_column(tmp_path: Path) -> None:
    readings = tmp_path / "readings.csv"
    readings.write_text("meter_id,a,b\nj,1,2\nk,1,2\nl,1,2\nm,1,many\n")
    done = run_demo("--readings", readings, "--windows", "2")
    assert done.returncode == 2
    assert "readings.csv, line 5, column 3" in done.stderr
    assert "many" not in done.stderr
