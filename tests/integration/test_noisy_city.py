"""A city with noise as everybody sees it: its aggregator, its operators, a household."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import VerifyKey
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.household import Household, Standing
from gridveil.meter_identity import MeterKeys
from gridveil.operator import NotReleased, NotReleasedReason, Operator, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW

METERS = 110
NOISE = Noise(Mechanism.LAPLACE, 500_000)
DEVIATION = 1_131_370.85
"""Of a register with the bound of 200,000, one of two, at epsilon 0.5."""
SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "verify_total.py"


@dataclass(frozen=True)
class Noisy:
    """One window was released, and the day cannot afford the next."""

    city: LocalCity
    phases: list[Phase]

    def run(self, role: str, *typed: str) -> Result:
        profile = str(self.city.paths.profile(role))
        return CliRunner().invoke(app, [*typed, "--profile", profile], env={"COLUMNS": "200"})

    def json(self, role: str, *typed: str) -> Any:
        ended = self.run(role, *typed, "--json")
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    def operator(self, role: str = "auditor") -> Operator:
        return Operator.open(self.city.paths.profile(role))

    def total(self) -> ReleasedTotal:
        with self.operator() as operator:
            found = operator.get(WINDOW)
        assert isinstance(found, ReleasedTotal)
        return found


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noisy]:
    policy = NoisePolicy(NOISE, 999_999)
    folder = tmp_path_factory.mktemp("noisy")
    with LocalCity.create(folder, meters=METERS, noise=policy) as city:
        phases = []
        for window in (WINDOW, WINDOW + LENGTH):
            city.enter_window(window)
            city.stub("gateway").SubmitReports(city.batch(window))
            city.aggregator.sealer.step()
            city.aggregator.releaser.step()
            phases.append(city.stored_window(window).phase)
        totals = TotalsProcess(TotalsConfig.load(city.paths.config("totals")))
        totals.start()
        yield Noisy(city, phases)
        totals.stop()


def test_the_aggregator_settles_a_window_that_the_day_cannot_afford(noisy: Noisy) -> None:
    assert noisy.phases == [Phase.RELEASED, Phase.REFUSED]
    assert noisy.city.keyholder.ring.decryptions(WINDOW + LENGTH) == 0


def test_an_operator_sees_the_noise_of_a_total_and_how_large_it_is(noisy: Noisy) -> None:
    with noisy.operator("operator") as operator:
        released, refused = operator.list()
        assert isinstance(released, ReleasedTotal)
        assert released.noise == NOISE
        deviations = operator.deviations(released)
    assert deviations == pytest.approx({"import_wh": DEVIATION, "export_wh": DEVIATION})
    # Of all that could be, 110 meters at 250 Wh are not what is shown: a chance of 1e-12.
    assert [r.sum for r in released.total.registers] != [METERS * 250, 0]
    assert refused == NotReleased(WINDOW + LENGTH, NotReleasedReason.BUDGET_EXHAUSTED)


def test_a_table_has_the_noise_beside_each_sum(noisy: Noisy, tmp_path: Path) -> None:
    output = tmp_path / "totals.csv"
    ended = noisy.run("operator", "totals", "export", "--output", str(output))
    assert ended.exit_code == 0, ended.output
    with output.open(newline="") as file:
        released, refused = csv.DictReader(file)
    assert released["import_wh"] == str(noisy.total().sum("import_wh"))
    assert float(released["import_wh_deviation"]) == pytest.approx(DEVIATION)
    assert (refused["reason"], refused["import_wh_deviation"]) == ("BUDGET_EXHAUSTED", "")


def test_deviations_are_those_of_the_totals_own_parameters(noisy: Noisy) -> None:
    with pytest.raises(MalformedInput) as refused:
        noisy.total().deviations(noisy.city.parameters(WINDOW + 86_400))
    assert refused.value.reason is Reason.DIGEST_MISMATCH


def test_the_command_shows_noise_and_its_deviation(noisy: Noisy) -> None:
    listed = noisy.run("operator", "totals", "list")
    assert listed.exit_code == 0
    assert "± 1,131,371 Wh" in listed.stdout
    assert "one standard deviation" in listed.stdout
    assert "not released: BUDGET_EXHAUSTED" in listed.stdout
    watched = noisy.run("operator", "totals", "watch", "--from", str(WINDOW), "--count", "2")
    assert "± 1,131,371 Wh" in watched.stdout.splitlines()[0]
    assert "with noise" in watched.stdout.splitlines()[0]
    assert "BUDGET_EXHAUSTED" in watched.stdout.splitlines()[1]


def test_programs_read_mechanism_loss_and_deviation(noisy: Noisy) -> None:
    released, refused = noisy.json("operator", "totals", "list")
    assert released["noise"] == {"mechanism": "laplace", "epsilon": 0.5}
    found = [register["standard_deviation"] for register in released["registers"]]
    assert found == pytest.approx([DEVIATION, DEVIATION])
    assert (refused["status"], refused["reason"]) == ("not_released", "BUDGET_EXHAUSTED")


def test_a_noisy_total_is_verified_and_said_to_be_one(noisy: Noisy, tmp_path: Path) -> None:
    file = tmp_path / "window.export"
    verify = "totals", "verify", str(WINDOW), "--export", str(file)
    shown = noisy.run("auditor", *verify)
    assert shown.exit_code == 0, shown.output
    assert "with noise that the key-holder committed to" in shown.stdout
    spec = importlib.util.spec_from_file_location("verify_total", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    key = VerifyKey(Profile.load(noisy.city.paths.profile("auditor")).identity_key)
    window, sums, count, _, how = script.verify(file.read_bytes(), key, False)
    assert (window, count, how) == (WINDOW, METERS, "with Laplace noise")
    assert sums == [(r.name, r.sum) for r in noisy.total().total.registers]


def test_the_log_of_a_noisy_city_is_lawful_and_says_what_was_spent(noisy: Noisy) -> None:
    verified = noisy.run("auditor", "log", "verify")
    assert verified.exit_code == 0, verified.output
    count = noisy.json("auditor", "log", "verify")["size"]
    monitor = "log", "monitor", "--from", "0", "--count", str(count), "--interval", "0.05"
    lines = noisy.run("auditor", *monitor, "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    first, second = (record for record in records if record["kind"] == "intent")
    assert (first["noise"], first["epsilon"]) == ("laplace", 0.5)
    assert "noise" not in second
    (released,) = (record for record in records if record["kind"] == "released")
    assert (released["noise"], released["epsilon"]) == ("laplace", 0.5)
    (refused,) = (record for record in records if record["kind"] == "refused")
    assert refused["over_budget"] is True


def test_a_household_is_counted_in_a_noisy_total(noisy: Noisy) -> None:
    made = noisy.city.meters[3]
    keys = MeterKeys(made.meter_id, bytes(made.signing_key), made.sealing_secret)
    with Household.open(noisy.city.paths.profile("meter")) as household:
        assert household.check(WINDOW, keys).standing is Standing.COUNTED
        assert household.check(WINDOW + LENGTH, keys).standing is Standing.NOT_RELEASED
