"""The vectors of what is right: each function makes one file, by the steps of docs/protocol.md."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

import numpy as np

from gridveil.encryption import seal_residues
from gridveil.protocol.ciphertext import fold, to_bytes
from gridveil.protocol.commitment import Generators, add_points, commitment_hash
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.layout import sha256, text, u64
from gridveil.protocol.parameter_sets import PARAMETER_SETS, parameter_set
from gridveil.protocol.report import Claim, Report, sign_report
from gridveil.protocol.roster import RosterVersion, enrolment_request, roster_digest
from gridveil.protocol.sealing import seal, shared_key
from gridveil.protocol.slots import GROUP_ORDER, SlotLayout
from gridveil.protocol.windows import WindowRules, lane_count, lane_of
from tests.vectors.material import (
    METERS,
    READINGS,
    WINDOW,
    VectorCity,
    VectorMeter,
    city,
    fixed,
)
from tests.vectors.reference import encode, encrypt

Json = dict[str, Any]
ROSTER_VERSION = 7
FAR_WINDOW = 4_102_444_800


def parameter_sets() -> Json:
    """Every bound of both sets, for each number of slots."""
    return {
        "about": "Parameter sets and their computed bounds; 'ntt_of_x': residues 0 to 7 of X.",
        "sets": [_parameter_set(name) for name in PARAMETER_SETS],
    }


def _parameter_set(name: str) -> Json:
    crypto = parameter_set(name)
    ring = city(name).chain[0]
    sizes = [p for p in (64, 128, 256, 512, 1024, 2048) if p <= crypto.degree // 2]
    return {
        "id": name,
        "degree": crypto.degree,
        "modulus": str(crypto.modulus),
        "prime_bits": list(crypto.prime_bits),
        "primes": [str(one.prime) for one in city(name).chain],
        "log2_scale": crypto.log2_scale,
        "modulus_bits": crypto.modulus_bits,
        "limits_classical_quantum": list(crypto.security_limits),
        "smallest_root": str(crypto.root),
        "unreduced_terms": crypto.unreduced_terms,
        "ntt_of_x": [str(r) for r in ring.transform([0, 1] + [0] * (crypto.degree - 2))[:8]],
        "by_slots": [
            {
                "slots": slots,
                "block": crypto.block(slots),
                "ciphertext_bytes": crypto.ciphertext_bytes(slots),
                "meters_by_wrap": crypto.meters_by_wrap,
                "meters_by_noise": crypto.meters_by_noise(slots),
                "meters_per_lane": crypto.meters_per_lane(slots),
            }
            for slots in sizes
        ],
    }


def slots() -> Json:
    """Registers and blinding in slots, and back from sums."""
    cases = []
    for registers, values, name in (
        (1, [0], "zero"),
        (2, [1234, 0], "two"),
        (4, [1, 256, 65_536, 4_294_967_295], "four"),
        (8, list(range(8)), "eight"),
        (9, list(range(9)), "nine"),
    ):
        layout = SlotLayout.for_registers(registers)
        blinding = int.from_bytes(fixed(f"slots {name}", layout.blinding_bytes), "little")
        made = layout.to_slots(values, blinding)
        twice = layout.from_slot_sums([2 * byte for byte in made])
        cases.append(
            {
                "registers": registers,
                "slots": layout.slots,
                "blinding_bytes": layout.blinding_bytes,
                "values": values,
                "blinding": str(blinding),
                "slot_bytes": made.hex(),
                "twice": {"totals": twice[0], "blinding_mod_order": str(twice[1])},
            }
        )
    return {
        "about": "Slot bytes of one report, and the totals of two such reports.",
        "cases": cases,
    }


def windows() -> Json:
    """Window times and lanes."""
    rules = WindowRules(900, 300, 60)
    epoch = city("ckks-2048").parameters.epoch.epoch_id
    crypto = parameter_set("ckks-2048")
    counts = (0, 1, 100, 101, 1600, 1601, 15_360, 245_760, 245_761, 10**6, 10**7)
    return {
        "about": "Window 900 s, grace 300 s, leeway 60 s. Lanes for 64 slots.",
        "times": {
            "window_start": WINDOW,
            "opens": rules.opens(WINDOW),
            "end": rules.end(WINDOW),
            "closes": rules.closes(WINDOW),
            "expires": rules.expires(WINDOW),
            "spread_s": rules.spread_s(),
        },
        "lane_of": [
            {
                "epoch_id": epoch.hex(),
                "window_start": window,
                "meter_id": meter.meter_id.hex(),
                "lanes": lanes,
                "lane": lane_of(epoch, window, meter.meter_id, lanes),
            }
            for meter in METERS
            for window, lanes in ((WINDOW, 16), (FAR_WINDOW, 66))
        ],
        "lane_count": [
            {"parameter_set": name, "enrolled": n, "lanes": lane_count(n, parameter_set(name), 64)}
            for name in PARAMETER_SETS
            for n in counts
        ],
        "lane_count_more_slots": [
            {"slots": p, "enrolled": 100_000, "lanes": lane_count(100_000, crypto, p)}
            for p in (128, 256, 512, 1024)
        ],
    }


def generators() -> Json:
    """Labels and points."""
    scopes = (("ckks-2048", WINDOW), ("ckks-2048", WINDOW + 900), ("ckks-4096", WINDOW))
    return {
        "about": "Generators: SHA-512 of the label, mapped to ristretto255.",
        "cases": [_generators(city(name), window) for name, window in scopes],
    }


def _generators(place: VectorCity, window: int) -> Json:
    policy, epoch = place.parameters.policy, place.parameters.epoch
    scope = policy.city_id + epoch.epoch_id + u64(window)
    made = Generators.derive(policy.city_id, epoch.epoch_id, window, policy.register_names)
    return {
        "city_id": policy.city_id.hex(),
        "epoch_id": epoch.epoch_id.hex(),
        "window_start": window,
        "groups": [
            {
                "names": list(names),
                "label": (text("gridveil/v1/generator") + scope + b"".join(map(text, names))).hex(),
                "point": point.hex(),
            }
            for names, point in zip(_groups(policy.register_names), made.registers, strict=True)
        ],
        "blinding": {
            "label": (text("gridveil/v1/blinding-generator") + scope).hex(),
            "point": made.blinding.hex(),
        },
    }


def _groups(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [names[at : at + 4] for at in range(0, len(names), 4)]


def commitments() -> Json:
    """Commitments at the edges of their ranges, with the first generators."""
    place = city("ckks-2048")
    made = window_generators(place)
    edge = [
        ([0, 0, 0, 0], 1),
        ([0, 0, 0, 0], GROUP_ORDER - 1),
        ([1, 0, 0, 0], 0),
        ([1, 0, 0, 0], GROUP_ORDER),
        ([1, 2, 3, 4_294_967_295], 2**384 - 1),
    ]
    points = [made.commit(values, blinding) for values, blinding in edge]
    return {
        "about": "Commitments under the generators of ckks-2048; their sum is the last line.",
        "cases": [
            {"values": values, "blinding": str(blinding), "commitment": point.hex()}
            for (values, blinding), point in zip(edge, points, strict=True)
        ],
        "sum": add_points(points).hex(),
    }


def city_parameters(name: str) -> Json:
    """The signed parameters of a city."""
    place = city(name)
    parameters = place.parameters
    encoded, epoch = parameters.encode(), parameters.epoch
    assert encoded.endswith(epoch.ckks_public_key)
    return {
        "about": "City parameters. The encoding is 'head' and then the public key of the inputs.",
        "city_id": parameters.policy.city_id.hex(),
        "registers": [[r.name, r.unit, r.bound] for r in parameters.policy.registers],
        "epoch_id": epoch.epoch_id.hex(),
        "first_window": epoch.first_window,
        "end_window": epoch.end_window,
        "sealing_secret": place.epoch_secret.hex(),
        "sealing_key": epoch.sealing_key.hex(),
        "head": encoded[: -len(epoch.ckks_public_key)].hex(),
        "public_key_bytes": len(epoch.ckks_public_key),
        "bytes": len(encoded),
        "digest": parameters.digest.hex(),
        "identity_seed": place.identity_seed.hex(),
        "identity_key": bytes(place.identity.verify_key).hex(),
        "signature": parameters.sign(place.identity).hex(),
    }


def folding(name: str) -> Json:
    """What SEAL encrypted, folded and decrypted."""
    place = city(name)
    crypto = place.crypto
    c0, c1 = seal_residues(place.seal_ciphertext, crypto)
    folded = fold(c0, crypto, 64)
    whole = np.concatenate((folded, c1))
    coefficients = decrypt_folded(whole, place.secret, crypto, 64)
    return {
        "about": "The inputs' ciphertext: residues, folded c0, decryption with the inputs' key.",
        "c0_first": [str(r) for r in c0[:4]],
        "c1_first": [str(r) for r in c1[:4]],
        "folded_c0": to_bytes(folded).hex(),
        "canonical_bytes": len(to_bytes(whole)),
        "canonical_sha256": sha256(to_bytes(whole)).hex(),
        "coefficients": coefficients,
        "slots": bytes(checked_slot_sums(slot_values(coefficients, crypto, 64), 1)).hex(),
    }


def reports(name: str) -> Json:
    """Every step of one report of each meter."""
    place = city(name)
    return {
        "about": "Each step of a report. 'randomness' is the label of u, e0 and e1.",
        "window_start": WINDOW,
        "parameters_digest": place.parameters.digest.hex(),
        "reports": [_report_steps(place, index) for index in range(len(METERS))],
    }


@lru_cache
def window_generators(place: VectorCity) -> Generators:
    policy, epoch = place.parameters.policy, place.parameters.epoch
    return Generators.derive(policy.city_id, epoch.epoch_id, WINDOW, policy.register_names)


def _reading(place: VectorCity, index: int) -> tuple[tuple[int, ...], int]:
    size = place.parameters.policy.layout.blinding_bytes
    drawn = fixed(f"{place.set_name} blinding {index}", size)
    return READINGS[place.set_name][index], int.from_bytes(drawn, "little")


@lru_cache
def vector_report(place: VectorCity, index: int) -> tuple[Report, bytes]:
    """The report of one meter, and its commitment."""
    parameters, meter = place.parameters, METERS[index]
    city_id, epoch = parameters.policy.city_id, parameters.epoch
    values, blinding = _reading(place, index)
    coefficients = encode(parameters.policy.layout.to_slots(values, blinding), place.crypto.scale)
    c0, c1 = encrypt(coefficients, place.public_key_residues, place.chain, randomness(place, index))
    folded = fold(np.array(c0, dtype=np.uint64), place.crypto, parameters.policy.layout.slots)
    ciphertext = to_bytes(np.concatenate((folded, np.array(c1, dtype=np.uint64))))
    commitment = window_generators(place).commit(values, blinding)
    h = commitment_hash(city_id, epoch.epoch_id, WINDOW, meter.meter_id, commitment)
    draft = Claim(parameters.digest, WINDOW, meter.meter_id, 0, h, b"", sha256(ciphertext))
    sealed = seal(seal_key(place, meter), commitment, h, draft.seal_data())
    claim = Claim(parameters.digest, WINDOW, meter.meter_id, 0, h, sealed, sha256(ciphertext))
    return sign_report(claim, ciphertext, meter.signing_key), commitment


def randomness(place: VectorCity, index: int) -> str:
    """Label of what encryption draws."""
    return f"gridveil test vectors: {place.set_name} encryption {index}"


def seal_key(place: VectorCity, meter: VectorMeter) -> bytes:
    parameters = place.parameters
    return shared_key(
        meter.sealing_secret,
        parameters.epoch.sealing_key,
        parameters.policy.city_id,
        parameters.epoch.epoch_id,
        meter.meter_id,
    )


def _report_steps(place: VectorCity, index: int) -> Json:
    meter, layout = METERS[index], place.parameters.policy.layout
    report, commitment = vector_report(place, index)
    values, blinding = _reading(place, index)
    slot_bytes = layout.to_slots(values, blinding)
    claim, message = report.claim, report.to_message().SerializeToString(deterministic=True)
    head, tail = message.split(report.ciphertext)
    return {
        "meter_id": meter.meter_id.hex(),
        "ed25519_seed": meter.signing_seed.hex(),
        "x25519_secret": meter.sealing_secret.hex(),
        "values": list(values),
        "blinding": str(blinding),
        "slot_bytes": slot_bytes.hex(),
        "coefficients": encode(slot_bytes, place.crypto.scale),
        "randomness": randomness(place, index),
        "ciphertext_b64": base64.b64encode(report.ciphertext).decode(),
        "ciphertext_digest": claim.ciphertext_digest.hex(),
        "commitment": commitment.hex(),
        "commitment_hash": claim.commitment_hash.hex(),
        "seal_key": seal_key(place, meter).hex(),
        "seal_data": claim.seal_data().hex(),
        "sealed_commitment": claim.sealed_commitment.hex(),
        "transcript": claim.transcript().hex(),
        "report_digest": claim.digest().hex(),
        "signature": report.signature.hex(),
        "message_head": head.hex(),
        "message_tail": tail.hex(),
        "message_bytes": len(message),
    }


def roster() -> Json:
    """Enrolment requests and the roster they lead to."""
    place = city("ckks-2048")
    city_id = place.parameters.policy.city_id
    members = [meter.member for meter in place.roster]
    version = RosterVersion(city_id, ROSTER_VERSION, WINDOW, len(members), roster_digest(members))
    return {
        "about": "Enrolments of the three meters, and the signed roster version they make.",
        "city_id": city_id.hex(),
        "enrolments": [
            {
                "meter_id": meter.meter_id.hex(),
                "signing_key": meter.member.signing_key.hex(),
                "sealing_key": meter.member.sealing_key.hex(),
                "request": enrolment_request(city_id, meter.member, meter.signing_key).hex(),
            }
            for meter in METERS
        ],
        "entries": b"".join(member.encode() for member in members).hex(),
        "digest": version.digest.hex(),
        "version": ROSTER_VERSION,
        "effective_window": WINDOW,
        "encoded": version.encode().hex(),
        "signature": version.sign(place.identity).hex(),
    }
