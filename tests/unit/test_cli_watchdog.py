"""``gridveil totals watchdog`` on files: what it tells, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.totals_file import Settled
from gridveil.watchdog.observation import Observation
from gridveil.watchdog.series import LANE_REPORTS, LATENCY, REFUSED_REPORTS
from tests.support.exported import settled, write_exported, write_feeder, write_profile
from tests.support.watching import (
    DAY,
    LENGTH,
    START,
    calm,
    disturbed,
    scaled,
    told,
    with_counted,
)

AT = 14 * DAY + 40


def at(number: int) -> int:
    return START + number * LENGTH


def exported(seen: list[Observation]) -> list[Settled]:
    """The windows as totals that a key-holder signed."""
    return [
        settled(
            0,
            one.counted.sums[0],
            count=one.counted.count,
            enrolled=one.counted.enrolled,
            lanes=one.counted.lanes,
            start=one.window_start,
        )
        for one in seen
        if one.counted
    ]


def write_series(path: Path, seen: list[Observation]) -> Path:
    """The windows' metrics as Prometheus answers them."""
    ends = [one.window_start + LENGTH for one in seen]
    rows = {
        (REFUSED_REPORTS, ""): [one.told.refused_reports for one in seen],
        (LATENCY, ""): [one.told.latency_s for one in seen],
    } | {(LANE_REPORTS, lane): [one.told.lane_reports[lane] for one in seen] for lane in "0123"}
    result = [
        {
            "metric": {"__name__": name} | ({"lane": lane} if lane else {}),
            "values": [[end, str(value)] for end, value in zip(ends, values, strict=True)],
        }
        for (name, lane), values in rows.items()
    ]
    path.write_text(
        json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})
    )
    return path


@pytest.fixture(scope="module")
def city() -> list[Observation]:
    return calm(16)


def watch(folder: Path, seen: list[Observation], *more: str) -> Result:
    typed = ["--totals", str(write_exported(folder / "totals.json", exported(seen)))]
    return CliRunner().invoke(app, ["totals", "watchdog", *typed, *more], env={"COLUMNS": "200"})


def told_of(ended: Result) -> Any:
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_what_was_found_is_shown_with_its_window(tmp_path: Path, city: list[Observation]) -> None:
    seen = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=900))
    ended = watch(tmp_path, seen)
    assert ended.exit_code == 0, ended.stderr
    assert "COVERAGE_DROP" in ended.stdout
    assert "2026-05-18T10:00:00Z" in ended.stdout
    assert "1 findings in 1,536 windows" in ended.stdout
    assert "signatures not checked" in ended.stderr


def test_json_says_what_was_looked_at(tmp_path: Path, city: list[Observation]) -> None:
    seen = disturbed(city, AT, AT + 9, lambda one: scaled(one, 1.6))
    feeder = {one.window_start: one.feeder_wh or 0 for one in seen}
    profile = str(write_profile(tmp_path))
    typed = ["--json", "--profile", profile]
    typed += ["--feeder", str(write_feeder(tmp_path / "feeder.csv", feeder))]
    found = told_of(watch(tmp_path, seen, *typed))
    (one,) = [row for row in found["findings"] if row["window_start"] < at(AT + 9)]
    assert (one["kind"], one["unit"]) == ("DEMAND_STEP", "% change")
    assert one["observed"] > 15 > one["expected"]
    assert (found["signatures_checked"], found["windows"]) == (True, 1_536)
    assert (found["with_feeder"], found["with_series"]) == (True, False)


def test_metrics_of_the_services_are_looked_at_if_given(
    tmp_path: Path, city: list[Observation]
) -> None:
    seen = disturbed(city, AT, AT + 3, lambda one: told(one, refused_reports=200.0, latency_s=2.0))
    lanes = {"0": 250.0, "1": 246.0, "2": 31.0, "3": 251.0}
    seen = disturbed(seen, AT + 30, AT + 33, lambda one: told(one, lane_reports=lanes))
    series = ("--series", str(write_series(tmp_path / "series.json", seen)))
    found = told_of(watch(tmp_path, seen, "--json", *series))["findings"]
    assert [(one["kind"], one["lane"]) for one in found] == [
        ("REFUSED_REPORTS", None),
        ("LATENCY_RISE", None),
        ("LANE_DROP", "2"),
    ]
    assert told_of(watch(tmp_path, seen, "--json"))["findings"] == []


def test_only_what_came_since_a_window_is_told_and_the_rest_is_learned_from(
    tmp_path: Path, city: list[Observation]
) -> None:
    seen = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=900))
    seen = disturbed(seen, AT + 50, AT + 54, lambda one: with_counted(one, count=900))
    found = told_of(watch(tmp_path, seen, "--json", "--since", str(at(AT + 10))))
    assert [one["window_start"] for one in found["findings"]] == [at(AT + 50)]


def test_it_ends_with_1_for_findings_only_when_asked_to(
    tmp_path: Path, city: list[Observation]
) -> None:
    away = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=900))
    assert watch(tmp_path, away, "--fail-if-found").exit_code == 1
    assert watch(tmp_path, away).exit_code == 0
    assert watch(tmp_path, city, "--fail-if-found").exit_code == 0


def test_limits_are_the_citys_own(tmp_path: Path, city: list[Observation]) -> None:
    away = disturbed(city, AT, AT + 4, lambda one: with_counted(one, count=900))
    limits = tmp_path / "watchdog.toml"
    limits.write_text("coverage_drop_percent = 20\n")
    assert told_of(watch(tmp_path, away, "--json", "--limits", str(limits)))["findings"] == []
    limits.write_text("coverage_drop = 20\n")
    ended = watch(tmp_path, away, "--limits", str(limits))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: watchdog.toml: ")


def test_no_totals_are_no_findings(tmp_path: Path) -> None:
    found = told_of(watch(tmp_path, [], "--json"))
    assert (found["windows"], found["findings"]) == (0, [])


def test_a_file_that_prometheus_did_not_write_is_refused(
    tmp_path: Path, city: list[Observation]
) -> None:
    (tmp_path / "series.json").write_text("{}")
    ended = watch(tmp_path, city[:4], "--series", str(tmp_path / "series.json"))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("MALFORMED_MESSAGE: ")
