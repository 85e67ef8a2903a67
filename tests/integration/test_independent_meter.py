"""A meter written from docs/protocol.md alone makes the same bytes, and is understood."""

from __future__ import annotations

import ast
import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tenseal import sealapi

from gridveil.operator import Operator, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.ciphertext import add, parse_ciphertext
from gridveil.protocol.commitment import Generators, add_points, commitment_hash, parse_commitment
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.merkle import verify_inclusion
from gridveil.protocol.parameter_sets import PARAMETER_SETS
from gridveil.protocol.report import parse_report
from gridveil.protocol.roster import open_enrolment
from gridveil.protocol.sealing import open_sealed, shared_key
from gridveil.protocol.signing import verify
from gridveil.registrar import Registrar
from tests.integration import independent_meter
from tests.integration.independent_meter import (
    Aggregator,
    City,
    Meter,
    Refused,
    Steps,
    Untrusted,
    read_city,
    reason_of,
)
from tests.support.city import TestCity
from tests.vectors import generate
from tests.vectors.material import city as vector_city
from tests.vectors.wire import edited

pytestmark = pytest.mark.long

SOURCE = Path(independent_meter.__file__)
ALLOWED = {"gridveil.protocol.v1", "google.rpc", "grpc", "nacl", "rbcl", "tenseal"}
METERS = 105
both_sets = pytest.mark.parametrize("name", PARAMETER_SETS)


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def accepted_city(name: str) -> City:
    """The parameters of a set's vectors, as the independent meter reads them."""
    vector = generate.load(f"city-{name}")
    encoded = raw(vector["head"]) + vector_city(name).public_key
    identity, city_id = raw(vector["identity_key"]), raw(vector["city_id"])
    return read_city(encoded, raw(vector["signature"]), identity, city_id)


def vector_meter(report: dict[str, Any]) -> Meter:
    return Meter(*(raw(report[key]) for key in ("meter_id", "ed25519_seed", "x25519_secret")))


def test_the_independent_meter_imports_nothing_of_gridveil_but_the_stubs() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "__import__"
    foreign = {
        name
        for name in imported
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == one or name.startswith(f"{one}.") for one in ALLOWED)
    }
    assert foreign == set()
    assert "importlib" not in imported


@both_sets
def test_it_reads_the_city_as_it_is(name: str) -> None:
    vector, city = generate.load(f"city-{name}"), accepted_city(name)
    assert city.digest.hex() == vector["digest"]
    assert [[r.name, r.unit, r.bound] for r in city.registers] == vector["registers"]
    assert (city.first_window, city.end_window) == (vector["first_window"], vector["end_window"])
    assert city.public_key == vector_city(name).public_key


@both_sets
def test_it_makes_the_same_slots_coefficients_and_folding(name: str) -> None:
    city, inputs = accepted_city(name), vector_city(name).inputs
    for report in generate.load(f"reports-{name}")["reports"]:
        slots = raw(report["slot_bytes"])
        made = independent_meter.slot_bytes(city, report["values"], int(report["blinding"]))
        assert made == slots
        assert independent_meter.encode(slots, city.crypto.scale) == report["coefficients"]
    context = independent_meter.seal_context(city.crypto)
    ciphertext = base64.b64decode(inputs["ciphertext_b64"])
    loaded = independent_meter.load(sealapi.Ciphertext, context, ciphertext)
    folded = independent_meter.canonical(
        independent_meter.residues_of(loaded), city.slots, city.crypto
    )
    expected = generate.load(f"folding-{name}")
    assert independent_meter.sha256(folded).hex() == expected["canonical_sha256"]


@both_sets
def test_it_makes_the_reports_of_the_vectors_byte_for_byte(name: str) -> None:
    city, vectors = accepted_city(name), generate.load(f"reports-{name}")
    for vector in vectors["reports"]:
        ciphertext = base64.b64decode(vector["ciphertext_b64"])
        steps = vector_meter(vector).report(
            city,
            vectors["window_start"],
            vector["values"],
            blinding=int(vector["blinding"]),
            encrypted=lambda _city, _slots, made=ciphertext: made,  # type: ignore[misc]
        )
        for field, made in (
            ("commitment", steps.commitment),
            ("commitment_hash", steps.commitment_hash),
            ("seal_key", steps.seal_key),
            ("seal_data", steps.seal_data),
            ("transcript", steps.transcript),
            ("report_digest", steps.digest),
        ):
            assert made.hex() == vector[field], field
        message = steps.report.SerializeToString(deterministic=True)
        assert message == raw(vector["message_head"]) + ciphertext + raw(vector["message_tail"])


@both_sets
def test_it_finds_and_opens_its_own_entries(name: str) -> None:
    reports = {report["meter_id"]: report for report in generate.load(f"reports-{name}")["reports"]}
    window, vector = (
        generate.load(f"reports-{name}")["window_start"],
        generate.load(f"release-{name}"),
    )
    for own in vector["own_entries"]:
        report, leaf = reports[own["meter_id"]], raw(own["leaf_hash"])
        tag, entry = independent_meter.open_own(
            raw(report["seal_key"]), window, raw(own["sealed_entry"]), leaf
        )
        assert tag.hex() == own["tag"]
        assert entry.hex() == vector["opened_entries"][456 * own["index"] :][:456]
        assert entry[-32:].hex() == report["commitment"]
        assert independent_meter.sha256(b"\0" + entry) == leaf
        verify_inclusion(
            leaf,
            own["index"],
            len(reports),
            [raw(node) for node in own["proof"]],
            raw(vector["entries_root"]),
        )


def test_it_asks_for_enrolment_in_the_same_bytes() -> None:
    vector = generate.load("roster")
    reports = {r["meter_id"]: r for r in generate.load("reports-ckks-2048")["reports"]}
    for enrolment in vector["enrolments"]:
        meter = vector_meter(reports[enrolment["meter_id"]])
        assert meter.enrolment(raw(vector["city_id"])).hex() == enrolment["request"]


@pytest.mark.parametrize(
    "case", generate.load("refusals")["city_parameters"], ids=lambda case: case["name"]
)
def test_it_trusts_no_parameters_that_the_vectors_refuse(case: dict[str, Any]) -> None:
    place = vector_city("ckks-2048")
    encoded = edited(place.parameters.encode(), case["edits"])
    identity, city_id = bytes(place.identity.verify_key), place.parameters.policy.city_id
    with pytest.raises(Untrusted):
        read_city(encoded, raw(case["signature"]), identity, city_id)


def test_it_trusts_no_parameters_of_another_city() -> None:
    vector = generate.load("city-ckks-2048")
    encoded = raw(vector["head"]) + vector_city("ckks-2048").public_key
    with pytest.raises(Untrusted, match="another city"):
        read_city(encoded, raw(vector["signature"]), raw(vector["identity_key"]), bytes(16))


@both_sets
def test_its_reports_are_understood_and_open_to_its_readings(name: str) -> None:
    place, city = vector_city(name), accepted_city(name)
    parameters, window = place.parameters, generate.load(f"reports-{name}")["window_start"]
    ids = (parameters.policy.city_id, parameters.epoch.epoch_id)
    readings = [
        [at * 1000 % (register.bound + 1) for register in city.registers] for at in range(12)
    ]
    ciphertexts, points = [], []
    for values in readings:
        meter = Meter.create()
        member = open_enrolment(meter.enrolment(city.city_id), city.city_id)
        report = parse_report(meter.report(city, window, values).report)
        claim = report.claim
        verify(member.signing_key, claim.transcript(), report.signature)
        key = shared_key(place.epoch_secret, member.sealing_key, *ids, member.meter_id)
        opened = open_sealed(key, claim.sealed_commitment, claim.commitment_hash, claim.seal_data())
        assert claim.commitment_hash == commitment_hash(*ids, window, member.meter_id, opened)
        points.append(parse_commitment(opened))
        ciphertexts.append(parse_ciphertext(report.ciphertext, place.crypto, city.slots))
    total = add(ciphertexts, place.crypto)
    coefficients = decrypt_folded(total, place.secret, place.crypto, city.slots)
    sums = checked_slot_sums(slot_values(coefficients, place.crypto, city.slots), len(readings))
    totals, blinding = parameters.policy.layout.from_slot_sums(sums)
    assert totals == np.sum(np.array(readings, dtype=np.int64), axis=0).tolist()
    generators = Generators.derive(*ids, window, parameters.policy.register_names)
    assert generators.commit(totals, blinding) == add_points(points)


@pytest.mark.parametrize("values", [[-1, 0, 0, 0], [200_001, 0, 0, 0], [0, 0, 50_001, 0]])
def test_it_refuses_a_value_beyond_its_register(values: list[int]) -> None:
    window = generate.load("reports-ckks-2048")["window_start"]
    with pytest.raises(Untrusted, match="a value"):
        Meter.create().report(accepted_city("ckks-2048"), window, values)


@pytest.mark.parametrize("moved", [1, -900 * 2, 86_400])
def test_it_refuses_a_window_that_the_epoch_does_not_serve(moved: int) -> None:
    window = generate.load("reports-ckks-2048")["window_start"]
    with pytest.raises(Untrusted, match="window"):
        Meter.create().report(accepted_city("ckks-2048"), window + moved, [0, 0, 0, 0])


@both_sets
def test_a_city_of_independent_meters_gets_its_exact_total(name: str, tmp_path: Path) -> None:
    """Every meter is one of these: enrolled, heard, counted, and refused as documented."""
    with TestCity.create(
        tmp_path, parameter_set=name, min_cohort=100, rate=12.0, window_length=60, grace=900
    ) as running:
        running.start_all()
        meters = [Meter.create() for _ in range(METERS)]
        profile = running.profile("meter")
        enrolments = [meter.enrolment(profile.city_id) for meter in meters]
        with Registrar.open(running.profile("registrar")) as registrar:
            version = registrar.enrol(iter(enrolments))
        assert version is not None
        window = max(version.effective_window, running.window(ahead=1))
        running.wait_until(window)
        aggregator = _connected(profile)
        with aggregator.channel:
            readings = _report(running, aggregator, profile, meters, window)
        total = _total(running, window)
        assert total.count == METERS
        assert total.sum("import_wh") == sum(imported for imported, _ in readings)
        assert total.sum("export_wh") == sum(exported for _, exported in readings)


def _connected(profile: Profile) -> Aggregator:
    tls = (profile.tls.ca, profile.tls.certificate, profile.tls.key)
    address = profile.endpoints["aggregator"]
    return Aggregator(address, profile.city_id, *(path.read_bytes() for path in tls))


def _report(
    running: TestCity, aggregator: Aggregator, profile: Profile, meters: list[Meter], window: int
) -> list[tuple[int, int]]:
    city = aggregator.parameters(window, profile.identity_key, profile.city_id)
    readings = [(at * at, 7 * at % 3) for at in range(len(meters))]
    reports = [
        meter.report(city, window, reading) for meter, reading in zip(meters, readings, strict=True)
    ]
    ahead = meters[0].report(city, window + city.window_length * 5, (1, 0))
    with pytest.raises(Refused, match="WINDOW_TOO_EARLY"):
        aggregator.submit(ahead)
    running.wait_until(window + city.window_length)
    _submit_one(aggregator, city, meters[0], reports[0])
    with pytest.raises(Refused, match="SIGNATURE_INVALID"):
        aggregator.submit(Meter.create().report(city, window, (1, 0)))
    size = city.batch_limit
    for at in range(0, len(reports), size):
        outcomes = aggregator.submit_all(reports[at : at + size])
        for steps, outcome in zip(reports[at : at + size], outcomes, strict=True):
            assert outcome.HasField("receipt"), reason_of(outcome.error)
            assert outcome.receipt.report_digest == steps.digest
    return readings


def _submit_one(aggregator: Aggregator, city: City, meter: Meter, steps: Steps) -> None:
    """A report, the same bytes again, and another one."""
    first = aggregator.submit(steps)
    again = aggregator.submit(steps)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.accepted_at_ms == first.accepted_at_ms
    with pytest.raises(Refused, match="EQUIVOCATION"):
        aggregator.submit(meter.report(city, steps.report.window_start, (5, 5)))


def _total(running: TestCity, window: int) -> ReleasedTotal:
    with Operator.open(running.profile("operator")) as operator:
        for outcome in operator.watch(window, give_up_after_s=30):
            assert outcome.window_start == window
            assert isinstance(outcome, ReleasedTotal), running.log("keyholder")[-2000:]
            return outcome
    raise AssertionError("the window was never settled")
