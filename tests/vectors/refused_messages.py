"""Report messages that must be refused: wrong bytes of a right claim, or a wrong claim signed."""

from __future__ import annotations

from collections.abc import Iterator

from nacl.signing import SigningKey

from gridveil.protocol.ciphertext import parse_ciphertext
from gridveil.protocol.errors import Reason, WrongState
from gridveil.protocol.layout import sha256, u64
from gridveil.protocol.report import Claim, parse_report, sign_report
from gridveil.protocol.signing import verify
from gridveil.protocol.v1 import report_pb2
from gridveil_services.rpc.parsing import Parser
from tests.vectors.material import METERS, WINDOW, VectorCity, fixed
from tests.vectors.steps import Json, vector_report
from tests.vectors.wire import Edit, bytes_field, edit, edited, number_field, varint

_parser = Parser(report_pb2.Report)


def message_cases(place: VectorCity) -> list[Json]:
    """Every case: the message is 'head', the edited ciphertext of report 0, 'tail'."""
    return [*_wire_cases(place), *_claim_cases(place), *_ciphertext_cases(place)]


def judge_message(place: VectorCity, case: Json) -> None:
    """The checks of an aggregator that knows the three meters and one epoch, in its order."""
    ciphertext = edited(vector_report(place, 0)[0].ciphertext, case["edits"])
    data = bytes.fromhex(case["head"]) + ciphertext + bytes.fromhex(case["tail"])
    message = _parser.parse(data)
    assert isinstance(message, report_pb2.Report)
    report = parse_report(message)
    policy = place.parameters.policy
    policy.rules.check_aligned(report.claim.window_start)
    if report.claim.parameters_digest != place.parameters.digest:
        raise WrongState(Reason.KEY_EPOCH, "the report is for other parameters")
    parse_ciphertext(report.ciphertext, policy.crypto, policy.layout.slots)
    keys = {meter.meter_id: meter.member.signing_key for meter in METERS}
    verify(keys.get(report.claim.meter_id, bytes(32)), report.claim.transcript(), report.signature)


def _case(name: str, reason: str, head: bytes, tail: bytes, edits: list[Edit]) -> Json:
    made = {"name": name, "reason": reason, "head": head.hex(), "tail": tail.hex()}
    return {**made, "edits": edits}


def _fields(claim: Claim, size: int, signature: bytes) -> dict[int, bytes]:
    """The fields of a report, by number; that of the ciphertext without its bytes."""
    return {
        1: bytes_field(1, claim.parameters_digest),
        2: number_field(2, claim.window_start),
        3: bytes_field(3, claim.meter_id),
        4: number_field(4, claim.flags) if claim.flags else b"",
        5: bytes_field(5, claim.commitment_hash),
        6: bytes_field(6, claim.sealed_commitment),
        7: bytes([7 << 3 | 2]) + varint(size) if size else b"",
        8: bytes_field(8, signature),
    }


def _wire_cases(place: VectorCity) -> Iterator[Json]:
    report, _ = vector_report(place, 0)
    claim, size = report.claim, len(report.ciphertext)
    right = _fields(claim, size, report.signature)

    def case(name: str, reason: str, changes: dict[int, bytes], *, more: bytes = b"") -> Json:
        fields = right | changes
        head = b"".join(fields[number] for number in range(1, 8))
        return _case(name, reason, head, fields[8] + more, [])

    everything = [edit(0, size, "")]
    yield _case("empty message", "FIELD_REQUIRED", b"", b"", everything)
    yield _case("no protobuf", "MALFORMED_MESSAGE", b"\xff" * 8, b"", everything)
    yield case("cut", "MALFORMED_MESSAGE", {8: right[8][:-1]})
    yield case("an unknown field", "NON_CANONICAL", {}, more=number_field(9, 1))
    yield case("the window twice", "NON_CANONICAL", {}, more=right[2])
    yield case("a default value written", "NON_CANONICAL", {4: number_field(4, 0)})
    yield case("fields out of order", "NON_CANONICAL", {1: right[2], 2: right[1]})
    long_size = right[3][:1] + b"\x90\x00" + right[3][2:]
    yield case("a length in two bytes", "NON_CANONICAL", {3: long_size})
    wrong_type = bytes([2 << 3 | 1]) + u64(claim.window_start)
    yield case("the window as fixed64", "NON_CANONICAL", {2: wrong_type})
    for number, name, value in (
        (1, "parameters_digest", claim.parameters_digest),
        (3, "meter_id", claim.meter_id),
        (5, "commitment_hash", claim.commitment_hash),
        (6, "sealed_commitment", claim.sealed_commitment),
    ):
        yield case(f"no {name}", "FIELD_REQUIRED", {number: b""})
        yield case(f"{name} cut", "FIELD_FORMAT", {number: bytes_field(number, value[:-1])})
        longer = bytes_field(number, value + b"\0")
        yield case(f"{name} with a byte more", "FIELD_FORMAT", {number: longer})
    yield case("no window", "FIELD_REQUIRED", {2: b""})
    yield case("a negative window", "WINDOW_MISALIGNED", {2: number_field(2, -900)})
    yield case("a window beyond 2^53", "WINDOW_MISALIGNED", {2: number_field(2, 2**62)})
    yield case("no signature", "SIGNATURE_MISSING", {8: b""})
    short = bytes_field(8, report.signature[:-1])
    yield case("a signature of 63 bytes", "SIGNATURE_INVALID", {8: short})


def _signed_case(
    place: VectorCity, name: str, reason: str, claim: Claim, key: SigningKey, edits: list[Edit]
) -> Json:
    ciphertext = edited(vector_report(place, 0)[0].ciphertext, edits)
    report = sign_report(claim._replace(ciphertext_digest=sha256(ciphertext)), ciphertext, key)
    fields = _fields(report.claim, len(ciphertext), report.signature)
    head = b"".join(fields[number] for number in range(1, 8))
    return _case(name, reason, head, fields[8], edits)


def _claim_cases(place: VectorCity) -> Iterator[Json]:
    """Claims that are wrong in one field, with a signature that is right for them."""
    claim, key = vector_report(place, 0)[0].claim, METERS[0].signing_key
    invalid = "SIGNATURE_INVALID"
    for name, reason, wrong, signer in (
        ("unknown flags", "FIELD_RANGE", claim._replace(flags=1), key),
        ("window inside", "WINDOW_MISALIGNED", claim._replace(window_start=WINDOW + 1), key),
        ("other parameters", "KEY_EPOCH", claim._replace(parameters_digest=bytes(32)), key),
        ("an unknown meter", invalid, claim._replace(meter_id=fixed("stranger", 16)), key),
        ("another meter's id", invalid, claim._replace(meter_id=METERS[1].meter_id), key),
        ("another meter's signature", invalid, claim, METERS[1].signing_key),
    ):
        yield _signed_case(place, name, reason, wrong, signer, [])


def _ciphertext_cases(place: VectorCity) -> Iterator[Json]:
    report, _ = vector_report(place, 0)
    claim, key, size = report.claim, METERS[0].signing_key, len(report.ciphertext)
    zero_c1 = edit(1024, size - 1024, "00", size - 1024)
    for name, reason, change in (
        ("empty ciphertext", "CIPHERTEXT_MALFORMED", edit(0, size, "")),
        ("ciphertext of another shape", "CIPHERTEXT_PARAMS", edit(size - 8, 8, "")),
        ("residue not below q", "CIPHERTEXT_NON_CANONICAL", edit(0, 8, "ff" * 8)),
        ("transparent ciphertext", "CIPHERTEXT_TRANSPARENT", zero_c1),
    ):
        yield _signed_case(place, name, reason, claim, key, [change])
    fields = _fields(claim, size, report.signature)
    head = b"".join(fields[number] for number in range(1, 8))
    zeroed = [edit(0, 8, "00", 8)]
    yield _case("another ciphertext", "SIGNATURE_INVALID", head, fields[8], zeroed)
