"""The committed vectors hold: by the code, by the formulas, and by SEAL."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
import pytest
from nacl.signing import SigningKey

from gridveil.encryption import seal_residues
from gridveil.protocol.ciphertext import add, fold, parse_ciphertext, to_bytes
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.commitment import Generators, add_points, parse_commitment
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.parameter_sets import PARAMETER_SETS
from gridveil.protocol.release import Entry, Total, open_total, split_entries
from gridveil.protocol.report import parse_report
from gridveil.protocol.roster import open_enrolment, open_roster_version, parse_members
from gridveil.protocol.sealing import open_sealed, shared_key
from gridveil.protocol.signing import verify
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.v1 import report_pb2
from tests.vectors import generate
from tests.vectors.material import city
from tests.vectors.reference import Ring, encode, encrypt
from tests.vectors.refusals import JUDGES

REFUSED = generate.load("refusals")
both_sets = pytest.mark.parametrize("name", PARAMETER_SETS)


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def test_the_committed_vectors_are_what_the_code_makes() -> None:
    assert generate.differences(generate.make()) == []


def test_a_vector_that_drifts_is_named() -> None:
    made = generate.make()
    made["windows"]["lane_of"][2]["lane"] += 1
    made["extra"] = {}
    assert generate.differences(made) == ["windows.lane_of[2].lane", "extra: missing"]


def test_all_vectors_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in generate.FOLDER.glob("*.json")) < 1_500_000


@pytest.mark.parametrize(
    ("group", "case"),
    [(group, case) for group in JUDGES for case in REFUSED[group]],
    ids=lambda value: value if isinstance(value, str) else value.get("name", "low order"),
)
def test_what_the_vectors_refuse_is_refused_for_that_reason(
    group: str, case: dict[str, Any]
) -> None:
    assert JUDGES[group](case) == case["reason"]


def test_every_group_of_refusals_is_judged() -> None:
    assert REFUSED.keys() - JUDGES.keys() == {"about", "window_start"}


@both_sets
def test_the_transform_is_the_evaluation_that_it_is_described_as(name: str) -> None:
    ring, degree = city(name).chain[0], city(name).crypto.degree
    coefficients = [(7 * at * at + 3) % ring.prime for at in range(degree)]
    residues = ring.transform(coefficients)
    bits = degree.bit_length() - 1
    for index in (0, 1, 2, degree - 1):
        point = pow(ring.root, 2 * int(f"{index:0{bits}b}"[::-1], 2) + 1, ring.prime)
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % ring.prime
        assert residues[index] == value
    assert ring.inverse(residues) == coefficients


def test_the_root_is_the_smallest_primitive_one() -> None:
    ring = Ring(8, 97)
    primitive = [root for root in range(2, 97) if pow(root, 8, 97) == 96]
    assert ring.root == min(primitive)


@both_sets
def test_seals_own_encoding_is_the_documented_formula(name: str) -> None:
    from tenseal import sealapi

    from gridveil.encryption import saved, seal_array, seal_payload

    place = city(name)
    crypto = place.crypto
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(crypto.degree)
    made.set_coeff_modulus(sealapi.CoeffModulus.Create(crypto.degree, list(crypto.prime_bits)))
    context = sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128)
    slot_bytes = raw(place.inputs["slots"])
    plain = sealapi.Plaintext()
    repeated = [float(byte) for byte in slot_bytes] * (crypto.degree // 128)
    sealapi.CKKSEncoder(context).encode(repeated, float(crypto.scale), plain)
    residues = [int(r) for r in seal_array(seal_payload(saved(plain))[48:], crypto.degree)]
    coefficients = place.chain[0].centred(residues)
    block = crypto.block(64)
    assert not any(c for at, c in enumerate(coefficients) if at % block)
    expected = encode(slot_bytes, crypto.scale)
    assert max(abs(a - b) for a, b in zip(coefficients[::block], expected, strict=True)) <= 1


@both_sets
def test_what_seal_encrypted_opens_to_its_slots(name: str) -> None:
    place, vector = city(name), generate.load(f"folding-{name}")
    c0, c1 = seal_residues(place.seal_ciphertext, place.crypto)
    folded = fold(c0, place.crypto, 64)
    assert to_bytes(folded).hex() == vector["folded_c0"]
    whole = np.concatenate((folded, c1))
    assert hashlib.sha256(to_bytes(whole)).hexdigest() == vector["canonical_sha256"]
    assert decrypt_folded(whole, place.secret, place.crypto, 64) == vector["coefficients"]
    assert vector["slots"] == place.inputs["slots"]


@both_sets
def test_ciphertexts_by_the_formulas_are_those_of_the_reports(name: str) -> None:
    place = city(name)
    for report in generate.load(f"reports-{name}")["reports"]:
        coefficients = encode(raw(report["slot_bytes"]), place.crypto.scale)
        assert coefficients == report["coefficients"]
        made = encrypt(coefficients, place.public_key_residues, place.chain, report["randomness"])
        c0, c1 = (np.array(half, dtype=np.uint64) for half in made)
        folded = to_bytes(np.concatenate((fold(c0, place.crypto, 64), c1)))
        assert folded == base64.b64decode(report["ciphertext_b64"])


@both_sets
def test_a_report_vector_is_accepted_as_it_would_arrive(name: str) -> None:
    place = city(name)
    parameters, scope = place.parameters, generate.load(f"city-{name}")
    for vector in generate.load(f"reports-{name}")["reports"]:
        ciphertext = base64.b64decode(vector["ciphertext_b64"])
        data = raw(vector["message_head"]) + ciphertext + raw(vector["message_tail"])
        report = parse_report(report_pb2.Report.FromString(data))
        claim = report.claim
        parse_ciphertext(report.ciphertext, place.crypto, 64)
        assert claim.parameters_digest.hex() == scope["digest"]
        assert claim.transcript().hex() == vector["transcript"]
        key = SigningKey(raw(vector["ed25519_seed"])).verify_key
        verify(bytes(key), claim.transcript(), report.signature)
        ids = (parameters.policy.city_id, parameters.epoch.epoch_id, claim.meter_id)
        meter = next(m for m in place.roster if m.meter_id == claim.meter_id)
        sealing = shared_key(place.epoch_secret, meter.member.sealing_key, *ids)
        opened = open_sealed(
            sealing, claim.sealed_commitment, claim.commitment_hash, claim.seal_data()
        )
        assert parse_commitment(opened).hex() == vector["commitment"]


@both_sets
def test_the_release_vector_opens_its_commitments(name: str) -> None:
    place, vector = city(name), generate.load(f"release-{name}")
    layout, epoch = place.parameters.policy.layout, place.parameters.epoch
    reports = generate.load(f"reports-{name}")["reports"]
    parsed = [
        parse_ciphertext(base64.b64decode(r["ciphertext_b64"]), place.crypto, 64) for r in reports
    ]
    total = add(parsed, place.crypto)
    assert to_bytes(total) == base64.b64decode(vector["sum_b64"])
    coefficients = decrypt_folded(total, place.secret, place.crypto, 64)
    sums = checked_slot_sums(slot_values(coefficients, place.crypto, 64), len(reports))
    totals, blinding = layout.from_slot_sums(sums)
    assert totals == [sum(column) for column in zip(*(r["values"] for r in reports), strict=True)]
    generators = Generators.derive(
        place.parameters.policy.city_id,
        epoch.epoch_id,
        generate.load(f"reports-{name}")["window_start"],
        place.parameters.policy.register_names,
    )
    points = [parse_commitment(raw(r["commitment"])) for r in reports]
    assert generators.commit(totals, blinding) == add_points(points)
    assert add_points(points).hex() == vector["commitments_sum"] == vector["opening"]


@both_sets
def test_signed_documents_of_the_vectors_open_under_the_identity_key(name: str) -> None:
    place, vector = city(name), generate.load(f"city-{name}")
    key = raw(vector["identity_key"])
    encoded = raw(vector["head"]) + place.public_key
    city_id = place.parameters.policy.city_id
    opened = open_city_parameters(encoded, raw(vector["signature"]), key, city_id)
    assert opened == place.parameters
    assert CityParameters.decode(encoded).encode() == encoded
    released = generate.load(f"release-{name}")
    total = open_total(raw(released["total"]), raw(released["total_signature"]), key)
    assert [r.sum for r in total.registers] == released["totals"]
    assert Total.decode(total.encode()) == total


@both_sets
def test_the_noise_of_the_vectors_opens_with_the_reports(name: str) -> None:
    place, released = city(name), generate.load(f"release-{name}")
    key, noisy = raw(generate.load(f"city-{name}")["identity_key"]), released["noisy"]
    total = open_total(raw(noisy["total"]), raw(noisy["total_signature"]), key)
    assert Total.decode(total.encode()) == total
    assert total.added is not None
    assert total.added.commitment.hex() == noisy["commitment"]
    sums = [exact + value for exact, value in zip(released["totals"], noisy["values"], strict=True)]
    assert [register.sum for register in total.registers] == noisy["sums"] == sums
    blinding = int(released["blinding_mod_order"]) + int(noisy["blinding"])
    assert int.from_bytes(total.blinding, "little") == blinding % GROUP_ORDER
    scope = place.parameters.policy.city_id, place.parameters.epoch.epoch_id
    names = place.parameters.policy.register_names
    generators = Generators.derive(*scope, total.window_start, names)
    committed = add_points([raw(released["commitments_sum"]), total.added.commitment])
    assert generators.commit(sums, blinding) == committed


@both_sets
def test_the_scales_of_the_vectors_are_those_of_the_formulas(name: str) -> None:
    noisy, registers = generate.load(f"release-{name}")["noisy"], city(name).parameters.policy
    loss, count = noisy["loss_ppm"] / 1_000_000, len(registers.bounds)
    for bound, scale in zip(registers.bounds, noisy["scales"], strict=True):
        laplace = bound * count / loss
        formula = laplace if noisy["mechanism"] == 1 else bound * (count / (2 * loss)) ** 0.5
        assert float.fromhex(scale) == pytest.approx(formula, rel=1e-14)


def test_roster_vectors_open_to_the_meters_of_the_reports() -> None:
    vector = generate.load("roster")
    city_id, key = raw(vector["city_id"]), raw(generate.load("city-ckks-2048")["identity_key"])
    head = open_roster_version(raw(vector["encoded"]), raw(vector["signature"]), key, city_id)
    members = list(parse_members(raw(vector["entries"])))
    asked = [open_enrolment(raw(e["request"]), city_id) for e in vector["enrolments"]]
    assert head.count == len(members)
    assert sorted(asked) == members
    assert {e["meter_id"] for e in vector["enrolments"]} == {
        r["meter_id"] for r in generate.load("reports-ckks-2048")["reports"]
    }


@both_sets
def test_entries_of_the_release_vector_are_the_reports_without_ciphertext(name: str) -> None:
    vector = generate.load(f"release-{name}")
    scope = generate.load(f"reports-{name}")
    window, digest = scope["window_start"], raw(scope["parameters_digest"])
    by_meter = {r["meter_id"]: r for r in scope["reports"]}
    entries = [Entry.decode(e, digest, window) for e in split_entries(raw(vector["entries"]))]
    assert [e.claim.meter_id.hex() for e in entries] == sorted(by_meter)
    for entry in entries:
        report = by_meter[entry.claim.meter_id.hex()]
        assert entry.claim.transcript().hex() == report["transcript"]
        assert entry.signature.hex() == report["signature"]
