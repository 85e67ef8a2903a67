"""One window of a whole city, played with the command line only, and read by everybody who may."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.operator import Operator, ReleasedTotal
from tests.support.city import TestCity

pytestmark = pytest.mark.long

METERS = 120


@dataclass(frozen=True)
class Played:
    """A city with one released window, and the readings that only the test knows."""

    city: TestCity
    window: int
    readings: list[int]

    def run(self, role: str, *typed: str) -> Result:
        profile = str(self.city.paths.profile(role))
        return CliRunner().invoke(app, [*typed, "--profile", profile])

    def json(self, role: str, *typed: str) -> Any:
        ended = self.run(role, *typed, "--json")
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    @property
    def sums(self) -> dict[str, int]:
        taken = sum(value for value in self.readings if value > 0)
        given = -sum(value for value in self.readings if value < 0)
        return {"import_wh": taken, "export_wh": given}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("played")
    source = random.Random(7)
    readings = [source.randrange(-2_000, 4_000) for _ in range(METERS)]
    file = folder / "readings.csv"
    rows = (f"house {at},{value}" for at, value in enumerate(readings))
    file.write_text("\n".join(["meter_id,first", *rows]))
    # The window is sealed once all have reported: a long grace only gives a slow machine time.
    with TestCity.create(folder, rate=150, grace=900) as city:
        city.start_all()
        found = Played(city, 0, readings)
        fleet = ["--fleet", str(city.paths.fleet)]
        enrolled = found.json("registrar", "meters", "enrol", *fleet, "--label-from", str(file))
        window = enrolled["effective_window"]
        simulated = found.json(
            "gateway",
            *["meters", "simulate", *fleet, "--readings", str(file), "--windows", "1"],
            *["--start", str(window), "--workers", "0", *city.clock_arguments()],
        )
        assert simulated["accepted"] == METERS
        yield Played(city, window, readings)


def test_an_operator_watches_the_exact_total(played: Played) -> None:
    watched = played.json(
        "operator", "totals", "watch", "--from", str(played.window), "--count", "1"
    )
    assert watched["window_start"] == played.window
    assert watched["status"] == "released"
    assert watched["count"] == watched["enrolled"] == METERS
    assert watched["coverage"] == 1.0
    found = {register["name"]: register for register in watched["registers"]}
    assert {name: register["sum"] for name, register in found.items()} == played.sums
    assert found["import_wh"]["mean"] == played.sums["import_wh"] / METERS
    assert found["import_wh"]["unit"] == "Wh"


def test_json_answers_keep_their_schema(played: Played) -> None:
    wait_for_total(played)
    one = played.json("operator", "totals", "get", str(played.window))
    assert set(one) == {
        *("window_start", "window", "status", "registers", "count", "enrolled", "coverage"),
        *("window_length", "roster_version", "epoch_id", "release_digest"),
        *("signed_total", "signature", "noise"),
    }
    assert one["noise"] is None
    assert played.json("operator", "totals", "list") == [one]
    assert played.json("operator", "totals", "list", "--from", str(played.window + 900)) == []
    assert played.json("operator", "totals", "list", "--until", str(played.window)) == []


def test_people_read_a_table(played: Played) -> None:
    wait_for_total(played)
    for command in (["get", str(played.window)], ["list"]):
        shown = played.run("operator", "totals", *command).stdout
        assert f"{played.sums['import_wh']:,} Wh" in shown
        assert "100.0%" in shown


def test_a_window_that_is_not_settled_ends_with_1(played: Played) -> None:
    ended = played.run("operator", "totals", "get", str(played.window + 900 * 1000))
    assert ended.exit_code == 1
    assert ended.stderr.startswith("NOT_RELEASED: ")


def test_a_misaligned_window_ends_with_2(played: Played) -> None:
    assert played.run("operator", "totals", "get", str(played.window + 1)).exit_code == 2


def test_an_auditor_verifies_the_total(played: Played) -> None:
    wait_for_total(played)
    registrar = ["--registrar", str(played.city.paths.profile("registrar"))]

    found = played.json("auditor", "totals", "verify", str(played.window), *registrar)
    plain = played.run("auditor", "totals", "verify", str(played.window))

    assert found["verification"]["meters"] == METERS
    assert found["verification"]["meter_signatures_checked"]
    assert plain.exit_code == 0
    assert plain.stdout.count("  ok  ") == 5
    assert "commitments add up to the total" in plain.stdout


def test_a_changed_entry_does_not_verify(played: Played) -> None:
    wait_for_total(played)
    file = played.city.paths.published / "entries" / str(played.window)
    entries = file.read_bytes()
    file.write_bytes(entries[:-1] + bytes([entries[-1] ^ 1]))
    try:
        plain = played.run("auditor", "totals", "verify", str(played.window))
        parsed = played.run("auditor", "totals", "verify", str(played.window), "--json")
    finally:
        file.write_bytes(entries)
    assert plain.exit_code == parsed.exit_code == 1
    assert plain.stderr.count("\n") == 1
    assert json.loads(parsed.stdout)["verification"] is None
    assert json.loads(parsed.stdout)["failure"]["reason"] == plain.stderr.partition(":")[0]


def test_other_roles_are_told_that_they_may_not(played: Played, tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    text = played.city.paths.profile("operator").read_text()
    profile.write_text(text.replace('"tls/', f'"{played.city.paths.tls("meter")}/'))
    ended = CliRunner().invoke(app, ["totals", "list", "--profile", str(profile)])
    assert ended.exit_code == 4
    assert ended.stderr.startswith("ROLE_NOT_ALLOWED: ")


def test_a_service_that_is_away_ends_with_3(tmp_path: Path) -> None:
    profile = str(TestCity.create(tmp_path).paths.profile("operator"))
    for command in (["list"], ["watch", "--give-up-after", "0"]):
        ended = CliRunner().invoke(app, ["totals", *command, "--profile", profile])
        assert ended.exit_code == 3
        assert ended.stderr.startswith("UNREACHABLE: ")


def test_every_service_ends_with_0_when_it_is_told_to(tmp_path: Path) -> None:
    with TestCity.create(tmp_path) as city:
        city.start("totals")
        city.start("keyholder")
        for role in ("totals", "keyholder"):
            assert city.stop(role) == 0, city.log(role)
            assert all(json.loads(line) for line in city.log(role).splitlines())


def serve_totals(city: TestCity, *more: str) -> subprocess.CompletedProcess[str]:
    config = str(city.paths.config("totals"))
    command = [sys.executable, "-m", "gridveil.cli", "totals", "serve", "--config", config, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("window_length = 900", "window_lengths = 900", "window_lengths"),
        ("tls/key.pem", "tls/nothing.pem", "tls"),
    ],
)
def test_totals_refuses_a_wrong_configuration_by_name(
    tmp_path: Path, before: str, after: str, named: str
) -> None:
    city = TestCity.create(tmp_path)
    config = city.paths.config("totals")
    config.write_text(config.read_text().replace(before, after))
    ended = serve_totals(city)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("CONFIG_INVALID: ")
    assert ended.stderr.count("\n") == 1
    assert named in ended.stderr


def test_totals_refuses_a_scaled_clock_outside_development(tmp_path: Path) -> None:
    city = TestCity.create(tmp_path, development=False)
    ended = serve_totals(city, "--clock-rate", "60", "--clock-origin", "1@1")
    assert ended.returncode == 2
    assert "development cities only" in ended.stderr


def test_totals_refuses_a_log_that_is_damaged(tmp_path: Path) -> None:
    city = TestCity.create(tmp_path)
    log = city.paths.published / "log"
    log.mkdir(parents=True)
    (log / "head").write_bytes(b"nonsense")
    ended = serve_totals(city)
    assert ended.returncode == 2
    assert ended.stderr.startswith("LOG_CORRUPT: ")


def wait_for_total(played: Played) -> None:
    with Operator.open(played.city.paths.profile("operator")) as operator:
        outcome = next(operator.watch(played.window, give_up_after_s=60))
    assert isinstance(outcome, ReleasedTotal)
