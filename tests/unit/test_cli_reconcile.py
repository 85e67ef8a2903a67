"""``gridveil totals reconcile`` on files: what it shows, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.protocol.noise import Mechanism, Noise
from gridveil.settlements import NotReleasedReason
from gridveil.totals_file import Settled
from tests.support.exported import (
    STRANGER,
    gap,
    settled,
    write_exported,
    write_feeder,
    write_profile,
)
from tests.support.reports import WINDOW

NOISE = Noise(Mechanism.LAPLACE, 500_000)


def at(number: int) -> int:
    return WINDOW + number * 900


def reconcile(
    folder: Path, rows: list[Settled], feeder: dict[int, int], *more: str, columns: int = 200
) -> Result:
    typed = ["--totals", str(write_exported(folder / "totals.json", rows))]
    typed += ["--feeder", str(write_feeder(folder / "feeder.csv", feeder))]
    return CliRunner().invoke(
        app, ["totals", "reconcile", *typed, *more], env={"COLUMNS": str(columns)}
    )


def printed(ended: Result) -> Any:
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_it_shows_days_what_is_beyond_and_what_could_not_be_compared(tmp_path: Path) -> None:
    rows = [settled(0, 9_800), settled(1, 7_000), gap(2), settled(3, 9, count=70, enrolled=100)]
    feeder = dict.fromkeys(map(at, range(6)), 10_000)
    ended = reconcile(tmp_path, rows, feeder, "--losses-percent", "5")
    assert ended.exit_code == 0, ended.stderr
    assert "2 of 96" in ended.stdout
    assert "16.00" in ended.stdout
    assert ended.stdout.count("ABOVE") == 2  # the day, and one of its windows
    assert "2 windows: NOT_SETTLED" in ended.stdout
    assert "1 window: REFUSED" in ended.stdout
    assert "1 window: COVERAGE" in ended.stdout
    assert "signatures not checked" in ended.stderr


def test_windows_are_shown_when_asked_for_with_what_they_rest_on(tmp_path: Path) -> None:
    rows = [settled(0, 9_800), settled(1, 9_310, count=95, enrolled=100)]
    feeder = dict.fromkeys(map(at, range(2)), 10_000)
    shown = reconcile(tmp_path, rows, feeder, "--windows").stdout
    assert "100.0% of meters" in shown
    assert "95.0% of meters" in shown
    assert shown.count("MEASURED") == 1
    assert "ESTIMATED, 1 of them" in shown
    assert "ESTIMATED: scaled" in shown
    assert "of meters" not in reconcile(tmp_path, rows, feeder).stdout


@pytest.mark.parametrize(("metered", "code"), [(9_600, 0), (9_400, 1), (10_100, 1)])
def test_it_ends_with_1_for_losses_beyond_only_when_asked_to(
    tmp_path: Path, metered: int, code: int
) -> None:
    rows, feeder = [settled(0, metered)], {at(0): 10_000}
    losses = ("--losses-percent", "5")
    assert reconcile(tmp_path, rows, feeder, *losses).exit_code == 0
    assert reconcile(tmp_path, rows, feeder, *losses, "--fail-if-beyond").exit_code == code


def test_asked_to_fail_it_does_if_nothing_could_be_compared(tmp_path: Path) -> None:
    typed = ("--losses-percent", "5", "--fail-if-beyond")
    assert reconcile(tmp_path, [gap(0)], {at(0): 1}, *typed).exit_code == 1


def test_what_is_beyond_needs_to_be_said(tmp_path: Path) -> None:
    ended = reconcile(tmp_path, [settled(0, 1)], {at(0): 1}, "--fail-if-beyond")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: ")


def test_json_has_every_window_and_day_and_no_zero_for_a_gap(tmp_path: Path) -> None:
    rows = [settled(0, 9_500, 100), gap(1, NotReleasedReason.EXPIRED)]
    profile = str(write_profile(tmp_path))
    feeder = dict.fromkeys(map(at, range(2)), 10_000)
    found = printed(reconcile(tmp_path, rows, feeder, "--json", "--profile", profile))
    assert found["signatures_checked"] is True
    first, second = found["windows"]
    assert (first["difference_wh"], first["percent"], first["basis"]) == (600, 6.0, "MEASURED")
    assert second == {
        "window_start": at(1),
        "window": second["window"],
        "coverage": None,
        "missing": "EXPIRED",
    }
    (day,) = found["days"]
    assert (day["compared"], day["windows"], day["difference_wh"]) == (1, 96, 600)


def test_noise_in_a_file_is_taken_into_account(tmp_path: Path) -> None:
    noisy = {"import_wh": 400.0, "export_wh": 300.0}
    rows = [settled(0, 9_200, noise=NOISE, deviations=noisy)]
    ended = reconcile(tmp_path, rows, {at(0): 10_000}, "--json", "--losses-percent", "2")
    (window,) = printed(ended)["windows"]
    assert (window["noise_standard_deviation_wh"], window["within_noise"]) == (500.0, True)
    assert window["verdict"] == "WITHIN"
    strict = reconcile(
        tmp_path, rows, {at(0): 10_000}, "--json", "--losses-percent", "2", "--deviations", "1"
    )
    assert printed(strict)["windows"][0]["verdict"] == "ABOVE"


def test_only_windows_from_one_to_before_another_are_compared(tmp_path: Path) -> None:
    rows = [settled(n, 100) for n in range(5)]
    feeder = dict.fromkeys(map(at, range(-3, 9)), 100)
    bounds = ("--from", str(at(1)), "--until", str(at(3)))
    found = printed(reconcile(tmp_path, rows, feeder, "--json", *bounds))
    assert [window["window_start"] for window in found["windows"]] == [at(1), at(2)]
    rows = [settled(n, 100) for n in range(-5, 20)]
    whole = printed(reconcile(tmp_path, rows, feeder, "--json"))
    assert [window["window_start"] for window in whole["windows"]] == sorted(feeder)


def test_days_are_those_of_the_zone(tmp_path: Path) -> None:
    late = [settled(0, 100, start=1_777_849_200)]  # 2026-05-03T23:00Z
    zurich = printed(
        reconcile(tmp_path, late, {1_777_849_200: 100}, "--json", "--zone", "Europe/Zurich")
    )
    assert zurich["days"][0]["day"] == "2026-05-04"
    utc = printed(reconcile(tmp_path, late, {1_777_849_200: 100}, "--json"))
    assert utc["days"][0]["day"] == "2026-05-03"


@pytest.mark.parametrize("zone", ["Nowhere/Town", "../etc/passwd", "\x00", ""])
def test_a_zone_that_there_is_not_is_refused(tmp_path: Path, zone: str) -> None:
    ended = reconcile(tmp_path, [settled(0, 1)], {at(0): 1}, "--zone", zone)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == "CONFIG_INVALID: there is no time zone of this name\n"


def test_a_feeder_of_hours_is_not_compared_with_quarter_hours(tmp_path: Path) -> None:
    rows, hours = [settled(n, 100) for n in range(8)], {at(0): 400, at(4): 400}
    ended = reconcile(tmp_path, rows, hours)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: the feeder's rows are 3600 s apart")


def test_a_feeder_off_the_citys_grid_is_refused(tmp_path: Path) -> None:
    ended = reconcile(tmp_path, [settled(0, 100)], {at(0) + 60: 100})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("WINDOW_MISALIGNED: ")


def test_a_total_of_another_key_holder_is_refused(tmp_path: Path) -> None:
    profile = str(write_profile(tmp_path))
    ended = reconcile(tmp_path, [settled(0, 1, signer=STRANGER)], {at(0): 1}, "--profile", profile)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("KEY_NOT_PINNED: ")


def test_without_totals_and_profile_it_says_what_it_needs(tmp_path: Path) -> None:
    feeder = write_feeder(tmp_path / "feeder.csv", {at(0): 1})
    ended = CliRunner().invoke(app, ["totals", "reconcile", "--feeder", str(feeder)], env={})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: name an operator's profile")
