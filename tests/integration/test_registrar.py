"""Enrolling and withdrawing meters with the command line and the SDK, against a real key-holder."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.meter_identity import MeterKeys, read_fleet
from gridveil.protocol.errors import Conflict, NotAuthentic, NotFound, Reason
from gridveil.registrar import Registrar, Roster
from gridveil_services.keyholder.suspicion import Suspicions
from tests.support.city import TestCity

LATER = 10 * 900


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCity]:
    with TestCity.create(tmp_path_factory.mktemp("registrar")) as made:
        made.start("keyholder")
        yield made


def meters(city: TestCity, *typed: str) -> Result:
    profile = str(city.paths.role("registrar"))
    return CliRunner().invoke(app, ["meters", *typed, "--profile", profile])


def enrolled(city: TestCity, *typed: str) -> dict[str, int]:
    ended = meters(city, "enrol", *typed, "--json")
    assert ended.exit_code == 0, ended.output
    found: dict[str, int] = json.loads(ended.stdout)
    return found


def roster(city: TestCity, known: Roster | None = None) -> Roster:
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        return registrar.roster(city.window() + LATER, known)


def requests(city: TestCity, count: int) -> list[bytes]:
    city_id = city.profile("registrar").city_id
    return [MeterKeys.create().enrolment_request(city_id) for _ in range(count)]


def test_a_new_fleet_is_on_disk_and_in_the_roster(city: TestCity, tmp_path: Path) -> None:
    fleet = tmp_path / "new" / "fleet.jsonl"

    first = enrolled(city, "--fleet", str(fleet), "--count", "7")
    second = enrolled(city, "--fleet", str(fleet), "--count", "5")

    kept = list(read_fleet(fleet))
    assert (first["enrolled"], second["enrolled"], len(kept)) == (7, 5, 12)
    assert second["roster_version"] == first["roster_version"] + 1
    assert second["meters"] == first["meters"] + 5
    assert second["effective_window"] == city.window(1)
    assert {meter.member for meter in kept} <= set(roster(city).members)


def test_enrolling_a_fleet_again_changes_nothing(city: TestCity, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.jsonl"
    first = enrolled(city, "--fleet", str(fleet), "--count", "3")
    again = enrolled(city, "--fleet", str(fleet))
    assert again == first
    assert len(list(read_fleet(fleet))) == 3


def test_a_fleet_takes_its_names_from_the_readings(city: TestCity, tmp_path: Path) -> None:
    fleet, readings = tmp_path / "fleet.jsonl", tmp_path / "readings.csv"
    readings.write_text("meter_id,a\nnorth,1\nsouth,2\neast,3\n")
    labelled = ["--fleet", str(fleet), "--label-from", str(readings)]

    enrolled(city, *labelled, "--count", "1")
    enrolled(city, *labelled)
    ended = meters(city, "enrol", *labelled)

    assert [meter.label for meter in read_fleet(fleet)] == ["north", "south", "east"]
    assert ended.exit_code == 2
    assert "names 0 meters that are not in the fleet yet" in ended.stderr


def test_requests_of_real_meters_are_hex_or_base64(city: TestCity, tmp_path: Path) -> None:
    one, other = requests(city, 2)
    file = tmp_path / "requests.txt"
    file.write_text(f"{one.hex()}\n\n  {base64.b64encode(other).decode()}\n")
    before = len(roster(city).members)
    assert enrolled(city, "--requests", str(file))["enrolled"] == 2
    assert len(roster(city).members) == before + 2


def test_more_than_one_call_of_meters_is_enrolled(city: TestCity, tmp_path: Path) -> None:
    before = len(roster(city).members)
    fleet = tmp_path / "fleet.jsonl"
    found = enrolled(city, "--fleet", str(fleet), "--count", "4100")
    assert (found["enrolled"], found["meters"]) == (4_100, before + 4_100)
    assert len(roster(city).members) == before + 4_100


@pytest.mark.parametrize("line", ["zz", "00", "=", "ü", "00" * 181, "00" * 182])
def test_a_bad_request_is_named_by_its_line(city: TestCity, tmp_path: Path, line: str) -> None:
    file = tmp_path / "requests.txt"
    file.write_text(f"{requests(city, 1)[0].hex()}\n{line}\n", encoding="utf-8")
    before = roster(city).head
    ended = meters(city, "enrol", "--requests", str(file))
    assert ended.exit_code == 2
    assert "requests.txt" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert roster(city).head == before


def test_a_forged_request_is_refused(city: TestCity, tmp_path: Path) -> None:
    request = bytearray(requests(city, 1)[0])
    request[40] ^= 1
    file = tmp_path / "requests.txt"
    file.write_text(request.hex())
    ended = meters(city, "enrol", "--requests", str(file))
    assert ended.exit_code == 4
    assert ended.stderr.startswith("SIGNATURE_INVALID: requests.txt, line 1: ")


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--count", "3"],
        ["--fleet", "a", "--requests", "b"],
        ["--requests", "b", "--count", "3"],
        ["--fleet", "missing.jsonl"],
        ["--requests", "missing.txt"],
    ],
)
def test_enrol_says_what_it_wants(city: TestCity, typed: list[str]) -> None:
    ended = meters(city, "enrol", *typed)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("CONFIG_INVALID: ")


def test_a_withdrawn_meter_leaves_for_ever(city: TestCity, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.jsonl"
    enrolled(city, "--fleet", str(fleet), "--count", "3")
    leaving, *staying = read_fleet(fleet)

    ended = meters(city, "withdraw", leaving.meter_id.hex())

    assert ended.exit_code == 0, ended.output
    assert "1 meters withdrawn" in ended.stdout
    members = set(roster(city).members)
    assert leaving.member not in members
    assert {meter.member for meter in staying} <= members
    again = meters(city, "enrol", "--fleet", str(fleet))
    assert again.exit_code == 4
    assert again.stderr.startswith("METER_EXISTS: ")


@pytest.mark.parametrize(
    ("typed", "code", "reason"),
    [("00" * 16, 1, "NOT_FOUND"), ("00", 2, "FIELD_FORMAT"), ("meter", 2, "FIELD_FORMAT")],
)
def test_only_known_meters_are_withdrawn(
    city: TestCity, typed: str, code: int, reason: str
) -> None:
    ended = meters(city, "withdraw", typed)
    assert ended.exit_code == code
    assert ended.stderr.startswith(f"{reason}: ")


def test_only_registrars_may_enrol(city: TestCity, tmp_path: Path) -> None:
    """The certificate decides, not the profile's text."""
    profile = tmp_path / "profile.toml"
    text = city.paths.profile("registrar").read_text()
    profile.write_text(text.replace('"tls/', f'"{city.paths.tls("operator")}/'))
    file = tmp_path / "requests.txt"
    file.write_text(requests(city, 1)[0].hex())
    typed = ["meters", "enrol", "--requests", str(file), "--profile", str(profile)]
    ended = CliRunner().invoke(app, typed)
    assert ended.exit_code == 4
    assert ended.stderr.startswith("ROLE_NOT_ALLOWED: ")


def test_a_known_roster_is_brought_up_to_date(city: TestCity) -> None:
    added = requests(city, 5)
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        registrar.enrol(added)
        window = city.window() + LATER
        known = registrar.roster(window)
        registrar.withdraw([known.members[0].meter_id])
        registrar.enrol(requests(city, 3))

        changed = registrar.roster(window, known)

        assert changed == registrar.roster(window)
        assert changed.head.version == known.head.version + 2
        assert len(changed.members) == len(known.members) + 2
        assert list(changed.members) == sorted(changed.members)


def test_members_that_are_not_those_of_the_signed_head_are_refused(city: TestCity) -> None:
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        registrar.enrol(requests(city, 2))
        known = registrar.roster(city.window() + LATER)
        wrong = replace(known, members=known.members[1:])
        with pytest.raises(NotAuthentic) as raised:
            registrar.roster(city.window() + LATER, wrong)
    assert raised.value.reason is Reason.KEY_NOT_PINNED


def test_another_key_holder_is_not_believed(city: TestCity) -> None:
    profile = replace(city.profile("registrar"), identity_key=bytes(32))
    with Registrar.open(profile) as registrar:
        with pytest.raises(NotAuthentic):
            registrar.parameters()
        with pytest.raises(NotAuthentic):
            registrar.enrol(requests(city, 1))


def test_the_parameters_are_those_of_the_city(city: TestCity) -> None:
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        found = registrar.parameters()
    assert found.policy.city_id == city.profile("registrar").city_id
    assert found.epoch.serves(city.window())


def test_the_sdk_raises_what_the_key_holder_refuses(city: TestCity) -> None:
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        with pytest.raises(NotFound):
            registrar.withdraw([bytes(16)])
        registrar.enrol(request := requests(city, 1))
        meter_id = roster(city).members[0].meter_id
        registrar.withdraw([meter_id])
        assert registrar.enrol(request) is not None
        assert registrar.enrol([]) is None


def test_an_id_is_never_given_twice(city: TestCity) -> None:
    city_id = city.profile("registrar").city_id
    first, second = MeterKeys.create(), MeterKeys.create()
    twin = replace(second, meter_id=first.meter_id)
    with Registrar.open(city.paths.profile("registrar")) as registrar:
        registrar.enrol([first.enrolment_request(city_id)])
        with pytest.raises(Conflict) as raised:
            registrar.enrol([twin.enrolment_request(city_id)])
    assert raised.value.reason is Reason.METER_EXISTS


def test_suspects_are_shown_as_a_hint(tmp_path: Path) -> None:
    with TestCity.create(tmp_path, meters=120) as city:
        city.start("keyholder")
        city.enrol()
        assert "No meter is under suspicion." in meters(city, "suspects").stdout
        city.stop("keyholder")
        ids = [meter.meter_id for meter in city.meters]
        held = Suspicions(city.paths.role("keyholder") / "state" / "suspicions.db")
        held.record(city.window(), [ids[:30]], [ids[40]], [ids[50:]])
        held.record(city.window(1), [ids[:1]], [], [ids[1:]])
        held.close()
        city.start("keyholder")

        shown = meters(city, "suspects", "--limit", "2")
        told = json.loads(meters(city, "suspects", "--limit", "2", "--json").stdout)

        assert shown.exit_code == 0, shown.output
        assert "a hint and never a verdict" in shown.stdout
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert [line[0] for line in lines[1:3]] == [ids[40].hex(), ids[0].hex()]
        assert "a hint and never a verdict" in told["hint"]
        proven, likely = told["suspects"]
        assert (proven["meter_id"], proven["proven"]) == (ids[40].hex(), 1)
        assert (likely["meter_id"], likely["windows"], likely["failed"]) == (ids[0].hex(), 2, 2)
        assert likely["score"] > 1


def test_only_a_registrar_is_told_suspects(city: TestCity, tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    text = city.paths.profile("registrar").read_text()
    profile.write_text(text.replace('"tls/', f'"{city.paths.tls("operator")}/'))
    ended = CliRunner().invoke(app, ["meters", "suspects", "--profile", str(profile)])
    assert ended.exit_code == 4
    assert ended.stderr.startswith("ROLE_NOT_ALLOWED: ")
