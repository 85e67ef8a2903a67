"""The vectors of what is refused: each case is wrong in one way, and names the reason it must get.

The reasons are written by hand; making the vectors fails if the code gives another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nacl.signing import SigningKey

from gridveil.protocol.ciphertext import parse_ciphertext
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.commitment import parse_commitment
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.layout import sha256, text, u32, u64
from gridveil.protocol.release import open_total
from gridveil.protocol.report import Report
from gridveil.protocol.roster import Member, enrolment_request, open_enrolment, open_roster_version
from gridveil.protocol.sealing import open_sealed, shared_key
from gridveil.protocol.signing import sign, verify
from tests.vectors.material import METERS, WINDOW, VectorCity, city, fixed
from tests.vectors.refused_messages import judge_message, message_cases
from tests.vectors.release_steps import release
from tests.vectors.steps import Json, roster, vector_report
from tests.vectors.wire import edit, edited

ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
LOW_ORDER_X25519 = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)
# RFC 9496, appendix A.2 has more: a non-canonical field element, a negative one, a non-square.
NOT_POINTS = (
    ("identity", "00" * 32),
    (
        "not below the field's prime",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ),
    ("negative", "01" + "00" * 31),
    ("not on the curve", "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371"),
    ("31 bytes", "76" * 31),
    ("33 bytes", "76" * 33),
)


def refusals() -> Json:
    """Every case."""
    place = city("ckks-2048")
    return {
        "about": "Inputs that must be refused, with the reason. Edits: at, delete, insert, repeat.",
        "window_start": WINDOW,
        "ciphertexts": [case for name in ("ckks-2048", "ckks-4096") for case in _ciphertexts(name)],
        "messages": message_cases(place),
        "commitments": [
            {"name": name, "commitment": point, "reason": "FIELD_FORMAT"}
            for name, point in NOT_POINTS
        ],
        "x25519": [{"public_key": key, "reason": "FIELD_FORMAT"} for key in LOW_ORDER_X25519],
        "seals": _seals(place),
        "signatures": _signatures(place),
        "enrolments": list(_enrolments(place)),
        "city_parameters": list(_parameters(place)),
        "roster_versions": list(_roster_versions(place)),
        "totals": list(_totals(place)),
    }


def reason_of(call: Callable[[], object]) -> str:
    """The reason that a call is refused for, or "accepted"."""
    try:
        call()
    except GridveilError as error:
        return str(error.reason)
    return "accepted"


def _ciphertexts(name: str) -> Iterator[Json]:
    place = city(name)
    crypto = place.crypto
    size, c1 = crypto.ciphertext_bytes(64), 8 * 128
    q = u64(crypto.modulus).hex()
    cases: Sequence[tuple[str, Json, str]] = (
        ("first residue is q", edit(0, 8, q), "CIPHERTEXT_NON_CANONICAL"),
        ("last residue is q", edit(size - 8, 8, q), "CIPHERTEXT_NON_CANONICAL"),
        ("largest residue", edit(c1, 8, "ff" * 8), "CIPHERTEXT_NON_CANONICAL"),
        ("c1 is zero", edit(c1, size - c1, "00", size - c1), "CIPHERTEXT_TRANSPARENT"),
        ("empty", edit(0, size, ""), "CIPHERTEXT_MALFORMED"),
        ("one byte short", edit(size - 1, 1, ""), "CIPHERTEXT_MALFORMED"),
        ("one byte more", edit(size, 0, "00"), "CIPHERTEXT_MALFORMED"),
        ("one residue short", edit(size - 8, 8, ""), "CIPHERTEXT_PARAMS"),
        ("one residue more", edit(size, 0, "00" * 8), "CIPHERTEXT_PARAMS"),
        ("c0 not folded", edit(0, c1, "01" + "00" * 7, crypto.degree), "CIPHERTEXT_PARAMS"),
    )
    for title, change, reason in cases:
        yield {"parameter_set": name, "name": title, "edits": [change], "reason": reason}


def _seals(place: VectorCity) -> list[Json]:
    report, _ = vector_report(place, 0)
    claim, epoch = report.claim, place.parameters.epoch
    right: Json = {
        "epoch_secret": place.epoch_secret.hex(),
        "meter_key": METERS[0].member.sealing_key.hex(),
        "city_id": place.parameters.policy.city_id.hex(),
        "epoch_id": epoch.epoch_id.hex(),
        "meter_id": claim.meter_id.hex(),
        "commitment_hash": claim.commitment_hash.hex(),
        "seal_data": claim.seal_data().hex(),
        "sealed": claim.sealed_commitment.hex(),
    }
    flipped = bytes([claim.sealed_commitment[0] ^ 1]) + claim.sealed_commitment[1:]
    other_window = claim._replace(window_start=WINDOW + 900).seal_data()
    wrong = (
        ("another meter's key", "meter_key", METERS[1].member.sealing_key),
        ("another epoch secret", "epoch_secret", fixed("another epoch", 32)),
        ("another meter id", "meter_id", METERS[1].meter_id),
        ("another epoch id", "epoch_id", fixed("another epoch id", 16)),
        ("another city", "city_id", fixed("another city", 16)),
        ("another nonce", "commitment_hash", sha256(b"another")),
        ("associated data of another window", "seal_data", other_window),
        ("one bit flipped", "sealed", flipped),
        ("cut", "sealed", claim.sealed_commitment[:47]),
        ("empty", "sealed", b""),
    )
    return [
        right | {"name": name, field: value.hex(), "reason": "SIGNATURE_INVALID"}
        for name, field, value in wrong
    ]


def _signatures(place: VectorCity) -> list[Json]:
    report, _ = vector_report(place, 0)
    message, signature = report.claim.transcript(), report.signature
    key, other = METERS[0].member.signing_key, METERS[1].member.signing_key
    scalar = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    low_order = bytes([1]) + bytes(31)
    seal_domain = report.claim.seal_data()
    cases = (
        ("none", key, message, b"", "SIGNATURE_MISSING"),
        ("cut", key, message, signature[:63], "SIGNATURE_INVALID"),
        ("one byte more", key, message, signature + b"\0", "SIGNATURE_INVALID"),
        ("one bit of R", key, message, _flipped(signature, 0), "SIGNATURE_INVALID"),
        ("one bit of S", key, message, _flipped(signature, 32), "SIGNATURE_INVALID"),
        ("one bit of the message", key, _flipped(message, 60), signature, "SIGNATURE_INVALID"),
        (
            "S plus the group order",
            key,
            message,
            signature[:32] + scalar.to_bytes(32, "little"),
            "SIGNATURE_INVALID",
        ),
        ("another meter's key", other, message, signature, "SIGNATURE_INVALID"),
        ("key of low order", low_order, message, low_order + bytes(32), "SIGNATURE_INVALID"),
        ("another domain", key, seal_domain, signature, "SIGNATURE_INVALID"),
    )
    return [
        {"name": n, "public_key": k.hex(), "message": m.hex(), "signature": s.hex(), "reason": r}
        for n, k, m, s, r in cases
    ]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _enrolments(place: VectorCity) -> Iterator[Json]:
    city_id, meter = place.parameters.policy.city_id, METERS[0]
    member, key = meter.member, meter.signing_key
    right = enrolment_request(city_id, member, key)
    low = Member(member.meter_id, member.signing_key, bytes(32))
    stolen = Member(member.meter_id, METERS[1].member.signing_key, member.sealing_key)
    body = text("gridveil/v1/report") + right[len(text("gridveil/v1/enrolment")) : -64]
    cases = (
        ("another city", enrolment_request(fixed("x", 16), member, key), "FIELD_FORMAT"),
        ("another domain", body + sign(key, body), "MALFORMED_MESSAGE"),
        ("one byte short", right[:-1], "MALFORMED_MESSAGE"),
        ("one byte more", right + b"\0", "MALFORMED_MESSAGE"),
        ("empty", b"", "MALFORMED_MESSAGE"),
        ("signed by another key", enrolment_request(city_id, stolen, key), "SIGNATURE_INVALID"),
        ("another meter id", _flipped(right, 40), "SIGNATURE_INVALID"),
        ("sealing key of low order", enrolment_request(city_id, low, key), "FIELD_FORMAT"),
    )
    for name, request, reason in cases:
        yield {"name": name, "city_id": city_id.hex(), "request": request.hex(), "reason": reason}


def _parameters(place: VectorCity) -> Iterator[Json]:
    """Edits of the encoding's head, signed again by the identity key unless the case says so."""
    encoded, epoch = place.parameters.encode(), place.parameters.epoch
    tail = len(epoch.ckks_public_key)
    names = 1 + len("gridveil/v1/city-parameters") + 16 + 1 + len("ckks-2048")
    fields = len(encoded) - tail - 4 - 32 - 16 - 16 - 5 - 7 * 4
    malformed, config = "MALFORMED_MESSAGE", "CONFIG_INVALID"
    cases: Sequence[tuple[str, Json, str]] = (
        ("another domain", edit(1, 1, "47"), malformed),
        ("unknown parameter set", edit(names - 1, 1, "39"), config),
        ("no registers", edit(names, fields - names, "00"), config),
        ("register name in capitals", edit(names + 2, 1, "49"), config),
        ("register name not ASCII", edit(names + 2, 1, "e9"), malformed),
        ("register bound of zero", edit(names + 1 + 10 + 3, 4, "00" * 4), config),
        ("the same register twice", _second_register_as_first(encoded, names), config),
        ("window length of zero", edit(fields, 4, "00" * 4), config),
        ("grace of a day", edit(fields + 4, 4, u32(86_400).hex()), config),
        ("leeway of a window", edit(fields + 8, 4, u32(900).hex()), config),
        ("cohort that hides too few", edit(fields + 12, 4, u32(109).hex()), config),
        ("coverage below one half", edit(fields + 20, 4, u32(499_999).hex()), config),
        ("batch beyond 3.5 MiB", edit(fields + 24, 4, u32(10_000).hex()), config),
        ("unknown audience", edit(fields + 28, 1, "03"), malformed),
        ("unknown rule for failing lanes", edit(fields + 29, 1, "02"), malformed),
        ("no failure allowed for", edit(fields + 30, 1, "00"), config),
        ("failure budget of seventeen", edit(fields + 30, 1, "11"), config),
        ("unknown development flag", edit(fields + 31, 1, "02"), malformed),
        ("unknown noise mechanism", edit(fields + 32, 1, "03"), malformed),
        ("noise without a loss", edit(fields + 32, 1, _noise(1, 0, 1)), config),
        ("a window that costs more than a day", edit(fields + 32, 1, _noise(2, 9, 8)), config),
        ("noise beyond the room of a total", edit(fields + 32, 1, _noise(1, 400, 400)), config),
        (
            "epoch that starts inside a window",
            edit(fields + 49, 8, u64(WINDOW - 899).hex()),
            config,
        ),
        ("epoch without a window", edit(fields + 57, 8, u64(WINDOW - 900).hex()), config),
        ("public key longer than said", edit(len(encoded), 0, "00"), malformed),
        ("public key shorter than said", edit(len(encoded) - 1, 1, ""), malformed),
        ("public key beyond its limit", edit(fields + 97, 4, u32(200_001).hex()), malformed),
    )
    for name, change, reason in cases:
        yield _signed_again(place, place.identity, name, [change], reason)
    yield _signed_again(place, METERS[0].signing_key, "another signer", [], "KEY_NOT_PINNED")
    yield {
        "name": "signed without the domain",
        "edits": [],
        "signature": sign(place.identity, place.parameters.digest).hex(),
        "reason": "KEY_NOT_PINNED",
    }


def _noise(mechanism: int, window_ppm: int, day_ppm: int) -> str:
    return (bytes([mechanism]) + u32(window_ppm) + u32(day_ppm)).hex()


def _second_register_as_first(encoded: bytes, names: int) -> Json:
    first = text("import_wh") + text("Wh")
    second = text("export_wh") + text("Wh")
    assert encoded[names + 1 : names + 1 + len(first)] == first
    return edit(names + 1 + len(first) + 4, len(second), first.hex())


def _signed_again(
    place: VectorCity, signer: SigningKey, name: str, edits: list[Json], reason: str
) -> Json:
    digest = sha256(edited(place.parameters.encode(), edits))
    signature = sign(signer, text("gridveil/v1/city-parameters-signature") + digest)
    return {"name": name, "edits": edits, "signature": signature.hex(), "reason": reason}


def _roster_versions(place: VectorCity) -> Iterator[Json]:
    right = bytes.fromhex(roster()["encoded"])
    identity, meter = place.identity, METERS[0].signing_key
    other_city = right[:28] + fixed("another city", 16) + right[44:]
    other_domain = text("gridveil/v1/total") + right[28:]
    cases = (
        ("one byte more", right + b"\0", identity, "MALFORMED_MESSAGE"),
        ("one byte short", right[:-1], identity, "MALFORMED_MESSAGE"),
        ("another domain", other_domain, identity, "MALFORMED_MESSAGE"),
        ("another city", other_city, identity, "KEY_NOT_PINNED"),
        ("another signer", right, meter, "KEY_NOT_PINNED"),
    )
    for name, encoded, signer, reason in cases:
        signature = sign(signer, encoded).hex()
        yield {"name": name, "encoded": encoded.hex(), "signature": signature, "reason": reason}


def _totals(place: VectorCity) -> Iterator[Json]:
    made = release("ckks-2048")
    right, noisy = bytes.fromhex(made["total"]), bytes.fromhex(made["noisy"]["total"])
    noise = noisy[-36:]
    enrolled = 1 + len("gridveil/v1/total") + 16 + 16 + 32 + 8 + 4 + 8
    cases = (
        ("one byte more", right + b"\0", "MALFORMED_MESSAGE"),
        ("one byte short", right[:-1], "MALFORMED_MESSAGE"),
        ("more reports than meters", _with(right, enrolled, u64(2)), "MALFORMED_MESSAGE"),
        ("no reports", _with(right, enrolled + 8, u64(0)), "MALFORMED_MESSAGE"),
        ("blinding not reduced", right[:-33] + b"\xff" * 32 + b"\0", "MALFORMED_MESSAGE"),
        ("a negative sum without noise", _with(right, -41, b"\xff" * 8), "MALFORMED_MESSAGE"),
        ("a sum of 2^52", _with(right, -41, u64(2**52)), "MALFORMED_MESSAGE"),
        ("unknown noise mechanism", right[:-1] + b"\3" + noise, "MALFORMED_MESSAGE"),
        ("noise of no mechanism", right + noise, "MALFORMED_MESSAGE"),
        ("noise without a loss", right[:-1] + b"\1" + u32(0) + noise[4:], "MALFORMED_MESSAGE"),
        ("noise without a commitment", right[:-1] + b"\1" + noise[:4], "MALFORMED_MESSAGE"),
        ("noise that is the identity", noisy[:-32] + bytes(32), "MALFORMED_MESSAGE"),
        ("noise that is no point", noisy[:-32] + b"\1" + bytes(31), "MALFORMED_MESSAGE"),
        ("a noisy sum of -2^52", _with(noisy, -77, u64(2**64 - 2**52)), "MALFORMED_MESSAGE"),
        ("another domain", _with(right, 1, b"G"), "MALFORMED_MESSAGE"),
    )
    for name, encoded, reason in cases:
        signature = sign(place.identity, encoded).hex()
        yield {"name": name, "encoded": encoded.hex(), "signature": signature, "reason": reason}
    stranger = sign(METERS[0].signing_key, right).hex()
    yield {
        "name": "another signer",
        "encoded": right.hex(),
        "signature": stranger,
        "reason": "KEY_NOT_PINNED",
    }


def _with(data: bytes, at: int, part: bytes) -> bytes:
    at %= len(data)
    return data[:at] + part + data[at + len(part) :]


def _base_ciphertext(name: str) -> bytes:
    report: Report = vector_report(city(name), 0)[0]
    return report.ciphertext


def judge_ciphertext(case: Json) -> str:
    """What the code says to a case of "ciphertexts"."""
    name = case["parameter_set"]
    data = edited(_base_ciphertext(name), case["edits"])
    return reason_of(lambda: parse_ciphertext(data, city(name).crypto, 64))


def judge_seal(case: Json) -> str:
    """What the key-holder says to a case of "seals"."""
    raw = {key: bytes.fromhex(v) for key, v in case.items() if key not in {"name", "reason"}}
    scope = (raw["city_id"], raw["epoch_id"], raw["meter_id"])
    key = shared_key(raw["epoch_secret"], raw["meter_key"], *scope)
    return reason_of(
        lambda: open_sealed(key, raw["sealed"], raw["commitment_hash"], raw["seal_data"])
    )


def judge_x25519(case: Json) -> str:
    """What the code says to a case of "x25519"."""
    public, one = bytes.fromhex(case["public_key"]), bytes(16)
    return reason_of(lambda: shared_key(bytes(range(32)), public, one, one, one))


def judge_signature(case: Json) -> str:
    """What the code says to a case of "signatures"."""
    parts = (bytes.fromhex(case[key]) for key in ("public_key", "message", "signature"))
    return reason_of(lambda: verify(*parts))


def judge_commitment(case: Json) -> str:
    """What the code says to a case of "commitments"."""
    return reason_of(lambda: parse_commitment(bytes.fromhex(case["commitment"])))


def judge_enrolment(case: Json) -> str:
    """What the key-holder says to a case of "enrolments"."""
    request, city_id = bytes.fromhex(case["request"]), bytes.fromhex(case["city_id"])
    return reason_of(lambda: open_enrolment(request, city_id))


def judge_parameters(case: Json) -> str:
    """What a meter says to a case of "city_parameters"."""
    place = city("ckks-2048")
    data = edited(place.parameters.encode(), case["edits"])
    signature = bytes.fromhex(case["signature"])
    return reason_of(
        lambda: open_city_parameters(
            data,
            signature,
            bytes(place.identity.verify_key),
            place.parameters.policy.city_id,
        )
    )


def judge_roster_version(case: Json) -> str:
    """What an aggregator says to a case of "roster_versions"."""
    place = city("ckks-2048")
    data, signature = bytes.fromhex(case["encoded"]), bytes.fromhex(case["signature"])
    key, city_id = bytes(place.identity.verify_key), place.parameters.policy.city_id
    return reason_of(lambda: open_roster_version(data, signature, key, city_id))


def judge_total(case: Json) -> str:
    """What an operator says to a case of "totals"."""
    key = bytes(city("ckks-2048").identity.verify_key)
    data, signature = bytes.fromhex(case["encoded"]), bytes.fromhex(case["signature"])
    return reason_of(lambda: open_total(data, signature, key))


JUDGES: dict[str, Callable[[Json], str]] = {
    "ciphertexts": judge_ciphertext,
    "messages": lambda case: reason_of(lambda: judge_message(city("ckks-2048"), case)),
    "commitments": judge_commitment,
    "x25519": judge_x25519,
    "seals": judge_seal,
    "signatures": judge_signature,
    "enrolments": judge_enrolment,
    "city_parameters": judge_parameters,
    "roster_versions": judge_roster_version,
    "totals": judge_total,
}


def misjudged(made: dict[str, Any]) -> list[str]:
    """The cases whose reason the code does not give."""
    wrong = []
    for group, judge in JUDGES.items():
        for case in made[group]:
            found = judge(case)
            if found != case["reason"]:
                name = case.get("name", case.get("public_key"))
                wrong.append(f"{group}: {name}: {found}, not {case['reason']}")
    return wrong
