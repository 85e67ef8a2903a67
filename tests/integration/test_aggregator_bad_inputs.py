"""What a hostile or broken caller is told over the wire, and that it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gridveil.protocol.city import BATCH_BYTES
from gridveil.protocol.layout import sha256
from gridveil.protocol.report import parse_report, sign_report
from gridveil.protocol.signing import sign
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.transport import from_status
from gridveil_services.aggregator.store.interface import Phase
from tests.support.aggregators import LENGTH, LocalCity, refusal
from tests.support.reports import WINDOW, MeterKeys, make_members

METERS = 8
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519: S + L signs what S signs, unless the verifier insists on S < L."""
MODULUS = 1125899906826241
STRANGER = make_members(1, seed=99)[0]

Make = Callable[[LocalCity], report_pb2.Report]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCity]:
    """A city whose WINDOW takes reports, and whose meter 7 was withdrawn before it."""
    folder = tmp_path_factory.mktemp("bad")
    with LocalCity.create(folder, meters=METERS, start=WINDOW - LENGTH - 10) as city:
        city.enter_window(WINDOW - LENGTH)
        city.clock.move_to(WINDOW - 5)
        city.keyholder.roster.withdraw([city.meters[7].meter_id])
        city.enter_window(WINDOW)
        yield city


@pytest.fixture
def unchanged(city: LocalCity) -> Iterator[None]:
    """Every row of the store stays as it is."""
    before = city.store_digest()
    yield
    assert city.store_digest() == before


def made(
    city: LocalCity,
    *,
    meter: int = 1,
    signer: MeterKeys | None = None,
    ciphertext: Callable[[bytes], bytes] = lambda data: data,
    **claim: Any,
) -> report_pb2.Report:
    """A report that says what the test wants, and is signed nevertheless."""
    report = parse_report(city.report(meter))
    data = ciphertext(report.ciphertext)
    said = report.claim._replace(ciphertext_digest=sha256(data), **claim)
    key = (signer or city.meters[meter]).signing_key
    return sign_report(said, data, key).to_message()


def field(**values: Any) -> Make:
    """A report with fields changed after it was signed."""

    def make(city: LocalCity) -> report_pb2.Report:
        message = city.report(1)
        for name, value in values.items():
            setattr(message, name, value)
        return message

    return make


def signed(**changes: Any) -> Make:
    return lambda city: made(city, **changes)


def with_residue(at: int | slice, value: int) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        residues = np.frombuffer(data, dtype="<u8").copy()
        residues[at] = value
        return residues.tobytes()

    return spoil


def malleable(city: LocalCity) -> report_pb2.Report:
    message = city.report(1)
    s = int.from_bytes(message.signature[32:], "little") + GROUP_ORDER
    message.signature = message.signature[:32] + s.to_bytes(32, "little")
    return message


def for_another_purpose(city: LocalCity) -> report_pb2.Report:
    message = city.report(1)
    transcript = parse_report(message).claim.transcript()
    other = transcript.replace(b"gridveil/v1/report", b"gridveil/v1/record")
    message.signature = sign(city.meters[1].signing_key, other)
    return message


def flipped(city: LocalCity) -> report_pb2.Report:
    message = city.report(1)
    data = bytearray(message.ciphertext)
    data[777] ^= 1
    message.ciphertext = bytes(data)
    return message


class Row(NamedTuple):
    """What is sent, and the answer to it."""

    make: Make
    code: str
    reason: str


def malformed(make: Make, reason: str) -> Row:
    return Row(make, "INVALID_ARGUMENT", reason)


def not_authentic(make: Make, reason: str = "SIGNATURE_INVALID") -> Row:
    return Row(make, "UNAUTHENTICATED", reason)


METER_IDS = {
    "of 4 KiB": bytes(4096),
    "of 15 bytes": bytes(15),
    "with braces": b"{window}:meter:1x",
    "with a line feed": b"a\nb",
    "of a path": b"../../etc/passwd",
    "of a NUL": b"\0",
    "that looks alike": "mеter-0000000001".encode(),
}
SHAPES = {
    "ckks-4096": 8 * (128 + 4096),
    "no folding": 8 * 2 * 2048,
    "three polynomials": 8 * (128 + 2 * 2048),
    "more slots": 8 * (256 + 2048),
}
ROWS = {
    "an empty message": malformed(lambda _: report_pb2.Report(), "FIELD_REQUIRED"),
    "no signature": not_authentic(field(signature=b""), "SIGNATURE_MISSING"),
    "a signature of zeros": not_authentic(field(signature=bytes(64))),
    "a short signature": not_authentic(field(signature=bytes(63))),
    "a malleable signature": not_authentic(malleable),
    "another meter's signature": not_authentic(lambda c: made(c, signer=c.meters[2])),
    "a signature for another purpose": not_authentic(for_another_purpose),
    "an unknown meter": not_authentic(signed(signer=STRANGER, meter_id=STRANGER.meter_id)),
    "an unknown meter id in braces": not_authentic(signed(meter_id=b"{0123456789abcd}")),
    "a withdrawn meter": Row(signed(meter=7), "PERMISSION_DENIED", "METER_REVOKED"),
    "a withdrawn meter that did not sign": not_authentic(
        lambda c: made(c, meter=7, signer=STRANGER)
    ),
    "no meter id": malformed(field(meter_id=b""), "FIELD_REQUIRED"),
    **{
        f"a meter id {name}": malformed(field(meter_id=value), "FIELD_FORMAT")
        for name, value in METER_IDS.items()
        if len(value) != 16
    },
    **{
        f"a meter id {name}": not_authentic(field(meter_id=value))
        for name, value in METER_IDS.items()
        if len(value) == 16
    },
    "window 0": malformed(field(window_start=0), "FIELD_REQUIRED"),
    "a negative window": malformed(field(window_start=-900), "WINDOW_MISALIGNED"),
    "a window beyond 2^53": malformed(field(window_start=2**53), "WINDOW_MISALIGNED"),
    "the least window": malformed(field(window_start=-(2**63)), "WINDOW_MISALIGNED"),
    "the greatest window": malformed(field(window_start=2**63 - 1), "WINDOW_MISALIGNED"),
    "a misaligned window": malformed(signed(window_start=WINDOW + 1), "WINDOW_MISALIGNED"),
    "the next window": Row(
        signed(window_start=WINDOW + LENGTH), "OUT_OF_RANGE", "WINDOW_TOO_EARLY"
    ),
    "a far window": Row(
        signed(window_start=WINDOW + 10_000 * LENGTH), "OUT_OF_RANGE", "WINDOW_TOO_EARLY"
    ),
    "an old window": Row(
        signed(window_start=WINDOW - 10_000 * LENGTH), "FAILED_PRECONDITION", "WINDOW_CLOSED"
    ),
    "the window before": Row(
        signed(window_start=WINDOW - LENGTH), "FAILED_PRECONDITION", "WINDOW_CLOSED"
    ),
    "unknown flags": malformed(field(flags=1), "FIELD_RANGE"),
    "the greatest flags": malformed(field(flags=2**32 - 1), "FIELD_RANGE"),
    "a short hash": malformed(field(commitment_hash=bytes(31)), "FIELD_FORMAT"),
    "no sealed commitment": malformed(field(sealed_commitment=b""), "FIELD_REQUIRED"),
    "a long sealed commitment": malformed(field(sealed_commitment=bytes(49)), "FIELD_FORMAT"),
    "a short parameters digest": malformed(field(parameters_digest=bytes(31)), "FIELD_FORMAT"),
    "an unknown epoch": Row(
        signed(parameters_digest=bytes(32)), "FAILED_PRECONDITION", "KEY_EPOCH"
    ),
    "no ciphertext": malformed(field(ciphertext=b""), "CIPHERTEXT_MALFORMED"),
    "a truncated ciphertext": malformed(
        signed(ciphertext=lambda data: data[:-1]), "CIPHERTEXT_MALFORMED"
    ),
    "a trailing byte": malformed(
        signed(ciphertext=lambda data: data + b"\0"), "CIPHERTEXT_MALFORMED"
    ),
    "random bytes": malformed(
        signed(ciphertext=lambda _: random.Random(1).randbytes(12_345)), "CIPHERTEXT_MALFORMED"
    ),
    "random residues": malformed(
        signed(ciphertext=lambda data: random.Random(1).randbytes(len(data))),
        "CIPHERTEXT_NON_CANONICAL",
    ),
    "a flipped bit": not_authentic(flipped),
    **{
        f"a ciphertext of {name}": malformed(
            signed(ciphertext=lambda _, size=size: bytes([1] * size)), "CIPHERTEXT_PARAMS"
        )
        for name, size in SHAPES.items()
    },
    "a residue of q in c0": malformed(
        signed(ciphertext=with_residue(0, MODULUS)), "CIPHERTEXT_NON_CANONICAL"
    ),
    "a residue of 2^64 - 1 in c1": malformed(
        signed(ciphertext=with_residue(-1, 2**64 - 1)), "CIPHERTEXT_NON_CANONICAL"
    ),
    "a transparent ciphertext": malformed(
        signed(ciphertext=with_residue(slice(128, None), 0)), "CIPHERTEXT_TRANSPARENT"
    ),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_report_is_refused_and_changes_nothing(city: LocalCity, name: str) -> None:
    row = ROWS[name]
    with pytest.raises(grpc.RpcError) as refused:
        city.stub("meter").SubmitReport(row.make(city))
    assert refusal(refused.value) == (row.code, row.reason)


@pytest.mark.usefixtures("unchanged")
def test_in_a_batch_and_in_a_stream_the_answers_are_the_same(city: LocalCity) -> None:
    """One call with every bad report at once."""
    messages = [row.make(city) for row in ROWS.values()]
    expected = [row.reason for row in ROWS.values()]
    outcomes = list(city.stub("gateway").StreamReports(iter(messages)))
    assert [outcome.index for outcome in outcomes] == list(range(len(messages)))
    assert [from_status(outcome.error).reason for outcome in outcomes] == expected
    for row, message in zip(ROWS.values(), messages, strict=True):
        reply = city.stub("gateway").SubmitReports(batch_of([message]))
        assert from_status(reply.outcomes[0].error).reason == row.reason
        assert reply.outcomes[0].error.code == getattr(grpc.StatusCode, row.code).value[0]


@pytest.mark.usefixtures("unchanged")
def test_a_refusal_says_what_helps(city: LocalCity) -> None:
    def details(make: Make) -> status_pb2.Status:
        with pytest.raises(grpc.RpcError) as refused:
            city.stub("meter").SubmitReport(make(city))
        status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
        assert status is not None
        return status

    epoch = from_status(details(signed(parameters_digest=bytes(32))))
    assert epoch.metadata == {"epoch": city.parameters().epoch.epoch_id.hex()}
    early = from_status(details(signed(window_start=WINDOW + LENGTH)))
    assert early.metadata == {"opens": str(WINDOW + 2 * LENGTH - 60)}
    shape = from_status(details(signed(ciphertext=lambda data: data[8:])))
    assert shape.metadata == {"expected_bytes": "17408"}
    violations = error_details_pb2.BadRequest()
    status = details(field(commitment_hash=bytes(31)))
    assert any(detail.Unpack(violations) for detail in status.details)
    assert violations.field_violations[0].field == "commitment_hash"


def batch_of(messages: Sequence[report_pb2.Report]) -> aggregator_pb2.SubmitReportsRequest:
    return aggregator_pb2.SubmitReportsRequest(reports=messages)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda city: [], "BATCH_EMPTY"),
        (lambda city: [report_pb2.Report(window_start=1)] * 129, "BATCH_TOO_LARGE"),
        (lambda city: [city.report(1), made(city, window_start=WINDOW - LENGTH)], "BATCH_MIXED"),
        (lambda city: [city.report(1), made(city, parameters_digest=bytes(32))], "BATCH_MIXED"),
    ],
)
def test_a_bad_batch_is_refused_whole(
    city: LocalCity, make: Callable[[LocalCity], list[report_pb2.Report]], reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        city.stub("gateway").SubmitReports(batch_of(make(city)))
    assert refusal(refused.value) == ("INVALID_ARGUMENT", reason)


@pytest.mark.usefixtures("unchanged")
def test_a_message_beyond_the_limit_is_refused_and_one_of_a_full_batch_is_not(
    city: LocalCity,
) -> None:
    full = batch_of([city.report(1) for _ in range(128)])
    assert full.ByteSize() < BATCH_BYTES
    with pytest.raises(grpc.RpcError) as refused:
        city.stub("gateway").SubmitReports(batch_of([field(ciphertext=bytes(BATCH_BYTES))(city)]))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    spoilt = batch_of([field(signature=bytes(64))(city) for _ in range(128)])
    reply = city.stub("gateway").SubmitReports(spoilt)
    assert {from_status(o.error).reason for o in reply.outcomes} == {"SIGNATURE_INVALID"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("role", "method", "request_"),
    [
        ("operator", "SubmitReport", report_pb2.Report()),
        ("aggregator", "SubmitReport", report_pb2.Report()),
        ("auditor", "SubmitReports", aggregator_pb2.SubmitReportsRequest()),
        ("operator", "GetCityParameters", aggregator_pb2.GetCityParametersRequest()),
        ("meter", "GetAggregate", aggregator_pb2.GetAggregateRequest()),
        ("gateway", "GetAggregate", aggregator_pb2.GetAggregateRequest()),
        ("operator", "GetAggregate", aggregator_pb2.GetAggregateRequest()),
    ],
)
def test_a_role_may_do_its_own_only(
    city: LocalCity, role: str, method: str, request_: object
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        getattr(city.stub(role), method)(request_)
    assert refusal(refused.value) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


@pytest.mark.usefixtures("unchanged")
def test_a_meter_may_not_open_a_gateways_stream(city: LocalCity) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(city.stub("meter").StreamReports(iter([])))
    assert refusal(refused.value) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        ({"window_start": WINDOW}, "INVALID_ARGUMENT", "FIELD_REQUIRED"),
        ({"window_start": WINDOW, "kind": 7}, "INVALID_ARGUMENT", "ENUM_UNKNOWN"),
        ({"window_start": WINDOW, "kind": 1}, "FAILED_PRECONDITION", "NOT_SEALED"),
        ({"window_start": WINDOW + LENGTH, "kind": 1}, "NOT_FOUND", "NOT_FOUND"),
        ({"window_start": -(2**63), "kind": 2}, "NOT_FOUND", "NOT_FOUND"),
    ],
)
def test_a_bad_question_for_an_aggregate_is_refused(
    city: LocalCity, request_: dict[str, Any], code: str, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        city.stub("auditor").GetAggregate(aggregator_pb2.GetAggregateRequest(**request_))
    assert refusal(refused.value) == (code, reason)


@pytest.mark.usefixtures("unchanged")
def test_parameters_of_a_window_without_an_epoch_are_refused(city: LocalCity) -> None:
    for window in (900, -900, WINDOW + 10_000 * LENGTH):
        with pytest.raises(grpc.RpcError) as refused:
            city.stub("meter").GetCityParameters(
                aggregator_pb2.GetCityParametersRequest(window_start=window)
            )
        assert refusal(refused.value) == ("FAILED_PRECONDITION", "KEY_EPOCH")


@pytest.mark.usefixtures("unchanged")
def test_bytes_that_are_no_report_end_a_stream_after_the_answers_to_the_others(
    city: LocalCity,
) -> None:
    bad = field(signature=bytes(64))(city)
    garbage = [bad.SerializeToString(), b"\xff" * 40, bad.SerializeToString()]
    call = raw(city, "StreamReports")(iter(garbage))
    answers = []
    with pytest.raises(grpc.RpcError) as refused:
        answers.extend(call)
    assert refusal(refused.value) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert len(answers) == 1


@pytest.mark.usefixtures("unchanged")
def test_a_ciphertext_whose_length_lies_is_malformed(city: LocalCity) -> None:
    data = city.report(1).SerializeToString()
    for lie in (data[:-70], data.replace(b"\x3a\x80\x88\x01", b"\x3a\x80\x88\x7f")):
        with pytest.raises(grpc.RpcError) as refused:
            raw(city, "SubmitReport")(lie)
        assert refusal(refused.value)[1] in {"MALFORMED_MESSAGE", "NON_CANONICAL"}


def raw(city: LocalCity, method: str) -> Any:
    """A method that takes bytes."""
    channel = city.channel("gateway")
    path = f"/gridveil.v1.Aggregator/{method}"
    return channel.stream_stream(path) if method == "StreamReports" else channel.unary_unary(path)


def test_duplicates_change_nothing_and_equivocations_only_their_record(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        stub = city.stub("meter")
        first, other = city.report(0), city.report(0)
        receipt = stub.SubmitReport(first)
        before = city.store_digest()
        again = stub.SubmitReport(first)
        assert (again.report_digest, again.accepted_at_ms) == (
            receipt.report_digest,
            receipt.accepted_at_ms,
        )
        assert again.duplicate
        assert not receipt.duplicate
        assert city.store_digest() == before
        sums = city.store_digest(without="equivocations")
        with pytest.raises(grpc.RpcError) as refused:
            stub.SubmitReport(other)
        assert refusal(refused.value) == ("ALREADY_EXISTS", "EQUIVOCATION")
        assert city.store_digest(without="equivocations") == sums
        assert len(city.aggregator.store.equivocations(WINDOW)) == 1


def test_duplicates_inside_a_batch_are_answered_one_by_one(tmp_path: Path) -> None:
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        first, other, neighbour = city.report(0), city.report(0), city.report(1)
        reply = city.stub("meter").SubmitReports(batch_of([first, first, other, neighbour]))
        assert [outcome.index for outcome in reply.outcomes] == [0, 1, 2, 3]
        assert [o.receipt.duplicate for o in reply.outcomes] == [False, True, False, False]
        assert reply.outcomes[2].error.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
        assert reply.outcomes[3].HasField("receipt")


@pytest.mark.parametrize(
    ("phases", "reason"),
    [
        ([], "WINDOW_CLOSED"),
        ([Phase.RELEASED], "WINDOW_RELEASED"),
        ([Phase.REFUSED], "WINDOW_CLOSED"),
        ([Phase.POISONED], "WINDOW_POISONED"),
    ],
)
def test_a_window_that_is_over_takes_nothing(
    tmp_path: Path, phases: list[Phase], reason: str
) -> None:
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(WINDOW)
        aggregator = city.aggregator
        aggregator.committer.run(lambda: aggregator.store.seal(WINDOW))
        for phase in phases:
            settle = partial(aggregator.store.settle, WINDOW, phase)
            aggregator.committer.run(settle)
        before = city.store_digest()
        with pytest.raises(grpc.RpcError) as refused:
            city.stub("meter").SubmitReport(city.report(0))
        assert refusal(refused.value) == ("FAILED_PRECONDITION", reason)
        assert city.store_digest() == before
