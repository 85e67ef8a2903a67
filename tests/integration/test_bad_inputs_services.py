"""Every malformed call to every method of every service: what it is told, and that nothing changes.

Over gRPC and mTLS, against a whole city. docs/bad-inputs.md says what callers may rely on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gridveil.protocol.errors import Reason
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1 import report_pb2
from gridveil_services.rpc import Role
from gridveil_services.rpc.errors import CODES
from tests.support.boundary import Metadata
from tests.support.corpus import (
    NAMES,
    OPEN,
    Base,
    Service,
    ServingCity,
    request_type,
    serving_city,
)
from tests.support.mutations import CANARY, Field, decode, encode, varint
from tests.support.watched import Watched, reason_of

MILLION = 10**6
LIMITS = {"aggregator": 3_670_016, "keyholder": 1_114_112, "totals": 4_096, "controller": 4_096}
"""Longest request of each server, in bytes."""


@dataclass(frozen=True)
class Case:
    """What is sent instead of a valid call, and what it may be answered."""

    spoil: Callable[[Service, str, Base], Sequence[bytes] | None]
    """The messages, made of a valid call's; None if the method has no such case."""
    reasons: frozenset[Reason]
    """Empty: the answer is the library's own, without a reason."""
    code: grpc.StatusCode
    metadata: Metadata = ()
    timeout_s: float = 20.0


def first_replaced(
    change: Callable[[bytes], bytes | None],
) -> Callable[[Service, str, Base], Sequence[bytes] | None]:
    """The valid call with its first message changed."""

    def spoil(_service: Service, _path: str, base: Base) -> Sequence[bytes] | None:
        changed = change(base.messages[0])
        return None if changed is None else [changed, *base.messages[1:]]

    return spoil


def unchanged(_service: Service, _path: str, base: Base) -> Sequence[bytes]:
    return base.messages


def truncated(data: bytes) -> bytes | None:
    return data[:-1] if data else None


def twice(_service: Service, path: str, base: Base) -> Sequence[bytes] | None:
    """The first field, unless it may stand twice."""
    fields = decode(base.messages[0])
    if not fields or request_type(path).DESCRIPTOR.fields_by_number[fields[0].number].is_repeated:
        return None
    return [encode([fields[0], *fields]), *base.messages[1:]]


def with_field(change: Callable[[Field], Field]) -> Callable[[bytes], bytes | None]:
    """The first field changed."""

    def spoil(data: bytes) -> bytes | None:
        fields = decode(data)
        return encode([change(fields[0]), *fields[1:]]) if fields else None

    return spoil


def retyped(field: Field) -> Field:
    """The other wire type: a number as bytes, bytes as a number."""
    if isinstance(field.value, int):
        return field._replace(kind=2, value=varint(field.value))
    return field._replace(kind=0, value=7)


def nested(data: bytes) -> bytes:
    """A group in a group in a group."""
    return data + varint(99 << 3 | 3) * 150 + varint(99 << 3 | 4) * 150


def invalid_text(_service: Service, path: str, _base: Base) -> Sequence[bytes] | None:
    """For methods that take text."""
    for field in request_type(path).DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            return [encode([Field(field.number, 2, b"\xff\xfe" + CANARY)])]
    return None


def beyond_the_limit(service: Service, _path: str, _base: Base) -> Sequence[bytes]:
    return [bytes(LIMITS[service.server] + 1)]


def million_elements(service: Service, path: str, _base: Base) -> Sequence[bytes] | None:
    """Of a list, as many as fit: a million where that is allowed."""
    for field in request_type(path).DESCRIPTOR.fields:
        if field.is_repeated:
            element = encode([Field(field.number, 2, b"")])
            return [element * min(MILLION, LIMITS[service.server] // len(element))]
    return None


def no_message(service: Service, path: str, _base: Base) -> Sequence[bytes] | None:
    """But for a stream of reports, which may be empty."""
    return None if path.endswith("/StreamReports") else []


def second_message(_service: Service, path: str, base: Base) -> Sequence[bytes] | None:
    """Where one is all there may be."""
    streams = path.endswith(("/StreamReports", "/Release"))
    return None if streams else [*base.messages, *base.messages]


def malformed(*reasons: Reason) -> dict[str, Any]:
    return {"reasons": frozenset(reasons), "code": grpc.StatusCode.INVALID_ARGUMENT}


TWICE = [("x-forwarded-client-cert", "By=" + CANARY.decode()), ("x-forwarded-client-cert", "two")]
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNKNOWN_FIELD = encode([Field(99, 2, CANARY)])
CASES = {
    "garbage": Case(
        first_replaced(lambda _: b"\xff\xff\xff"), **malformed(Reason.MALFORMED_MESSAGE)
    ),
    "a truncated message": Case(first_replaced(truncated), **malformed(Reason.MALFORMED_MESSAGE)),
    "text that is no UTF-8": Case(invalid_text, **malformed(Reason.MALFORMED_MESSAGE)),
    "an unknown field": Case(
        first_replaced(lambda data: data + UNKNOWN_FIELD), **malformed(Reason.NON_CANONICAL)
    ),
    "a field twice": Case(twice, **malformed(Reason.NON_CANONICAL)),
    "a long varint": Case(
        first_replaced(with_field(lambda field: field._replace(padding=2))),
        **malformed(Reason.NON_CANONICAL),
    ),
    "another wire type": Case(
        first_replaced(with_field(retyped)), **malformed(Reason.NON_CANONICAL)
    ),
    "deep nesting": Case(
        first_replaced(nested),
        **malformed(Reason.MALFORMED_MESSAGE),
    ),
    "a million elements": Case(
        million_elements,
        **malformed(Reason.BATCH_TOO_LARGE, Reason.MALFORMED_MESSAGE, Reason.FIELD_REQUIRED),
    ),
    "no message at all": Case(no_message, **malformed(Reason.STREAM_PROTOCOL)),
    "a second message": Case(second_message, **malformed(Reason.STREAM_PROTOCOL)),
    "a message beyond the limit": Case(beyond_the_limit, frozenset(), EXHAUSTED),
    "too much metadata": Case(
        unchanged, frozenset(), EXHAUSTED, metadata=[("x-long", "v" * 100_000)]
    ),
    "security metadata twice": Case(
        unchanged, metadata=TWICE, **malformed(Reason.METADATA_DUPLICATE)
    ),
    "too little time": Case(
        unchanged, frozenset(), grpc.StatusCode.DEADLINE_EXCEEDED, timeout_s=0.05
    ),
}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingCity]:
    with serving_city(tmp_path_factory.mktemp("services")) as city:
        yield city


@pytest.fixture(params=list(NAMES))
def watched(city: ServingCity, request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(city, request.param)
    yield watched
    watched.close()


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_call_of_any_method_is_refused_by_its_reason(
    watched: Watched, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    case, service = CASES[name], watched.service
    tried = 0
    for path in service.paths:
        base = service.corpus[path][0]
        messages = case.spoil(service, path, base)
        if messages is None:
            continue
        tried += 1
        outcome = watched.send(path, base.role, messages, case.metadata, case.timeout_s)
        assert outcome.code is case.code, (path, outcome)
        if case.reasons:
            assert reason_of(outcome) in case.reasons, (path, outcome)
    rare = {"text that is no UTF-8", "a million elements", "a field twice"}
    assert tried or name in rare
    assert CANARY.decode() not in "".join(capfd.readouterr())


def test_every_method_has_a_valid_call_to_spoil(watched: Watched) -> None:
    """And it is answered, but for what a valid call may be refused with."""
    for path in watched.service.paths:
        base = watched.service.corpus[path][0]
        name = path.rsplit("/")[-1]
        if name == "Release":
            continue
        outcome = watched.send(path, base.role, base.messages)
        watching = name.startswith("Watch")
        fine = {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED} if watching else set()
        assert outcome.code in fine | {grpc.StatusCode.OK}, (path, outcome)


EMPTY: dict[str, Reason | None] = {
    "SubmitReport": Reason.FIELD_REQUIRED,
    "SubmitReports": Reason.BATCH_EMPTY,
    "GetAggregate": Reason.FIELD_REQUIRED,
    "PrecheckEntries": Reason.FIELD_REQUIRED,
    "GetReleaseProgress": Reason.FIELD_REQUIRED,
    "Release": Reason.STREAM_PROTOCOL,
    "EnrolMeters": Reason.BATCH_EMPTY,
    "WithdrawMeters": Reason.BATCH_EMPTY,
    "GetRoster": Reason.WINDOW_MISALIGNED,
    "ListSuspects": Reason.FIELD_REQUIRED,
    "GetTotal": Reason.WINDOW_MISALIGNED,
    "GetEntries": Reason.WINDOW_MISALIGNED,
    "GetParameters": Reason.WINDOW_MISALIGNED,
    "GetOwnEntry": Reason.FIELD_REQUIRED,
    "GetInclusionProof": Reason.WINDOW_MISALIGNED,
    "GetForecast": Reason.FIELD_FORMAT,
    # Where leaving everything out has a meaning.
    "StreamReports": None,
    "GetCityParameters": None,
    "ListTotals": None,
    "WatchTotals": None,
    "GetCheckpoint": None,
    "GetConsistencyProof": None,
    "GetRecords": None,
    "GetSignal": None,
    "WatchSignals": None,
    "GetRules": None,
    "Check": None,
    "List": None,
    "Watch": None,
}


def test_an_empty_message_is_refused_unless_it_means_something(watched: Watched) -> None:
    for path in watched.service.paths:
        role = watched.service.corpus[path][0].role
        outcome = watched.send(path, role, [b""])
        expected = EMPTY[path.rsplit("/")[-1]]
        if expected is None:
            assert outcome.code in {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}, path
        else:
            assert reason_of(outcome) is expected, (path, outcome)
            assert outcome.code is CODES[expected]


def test_every_other_role_is_turned_away_before_its_message_is_read(watched: Watched) -> None:
    for path in watched.service.paths:
        for role in set(Role) - watched.service.boundary.methods[path].roles:
            outcome = watched.send(path, role, [b"\xff\xff\xff"])
            assert outcome.code is grpc.StatusCode.PERMISSION_DENIED, (path, role, outcome)
            assert reason_of(outcome) is Reason.ROLE_NOT_ALLOWED


def test_methods_of_other_services_are_not_there(watched: Watched) -> None:
    """Nor those that tell of a server's inside."""
    elsewhere = {p for s in watched.city.services.values() for p in s.paths}
    strange = {
        "/gridveil.v1.Aggregator/Unknown",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
    }
    for path in (elsewhere | strange) - watched.service.boundary.methods.keys():
        outcome = watched.send(path, Role.GATEWAY, [b""])
        assert outcome.code is grpc.StatusCode.UNIMPLEMENTED, (path, outcome)


def numbers(kind: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Every field of a message and of what it holds."""
    if kind.full_name not in seen:
        seen.add(kind.full_name)
        for field in kind.fields:
            yield field
            if field.message_type is not None:
                yield from numbers(field.message_type, seen)


def test_no_request_has_a_field_for_what_is_no_number(watched: Watched) -> None:
    """There is no NaN, no infinity and no negative zero, where there are only integers."""
    floating = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
    for path in watched.service.paths:
        kind = cast(Descriptor, request_type(path).DESCRIPTOR)
        assert not [f for f in numbers(kind, set()) if f.cpp_type in floating]


EXTREMES = (0, 1, 2**31 - 1, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}


@pytest.mark.parametrize("value", EXTREMES)
def test_extreme_integers_are_refused_or_mean_what_they_say(watched: Watched, value: int) -> None:
    for path in watched.service.paths:
        base = watched.service.corpus[path][0]
        for at, field in enumerate(decode(base.messages[0]) or []):
            if not isinstance(field.value, int):
                continue
            fields = decode(base.messages[0]) or []
            fields[at] = field._replace(value=value)
            if not value:
                del fields[at]
            messages = [encode(fields), *base.messages[1:]]
            outcome = watched.send(path, base.role, messages)
            fine = {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
            assert outcome.code in REFUSED | fine, (path, value, outcome)
            assert reason_of(outcome) is not Reason.INTERNAL


# What only some services have.


def test_a_signature_of_another_algorithm_is_no_signature(city: ServingCity) -> None:
    """No message names an algorithm: there is one, and everything else does not verify."""
    watched = Watched(city, "aggregator")
    report = report_pb2.Report()
    report.CopyFrom(city.open_reports[0])
    transcript = parse_report(report).claim.transcript()
    key = ec.generate_private_key(ec.SECP256R1())
    r, s = decode_dss_signature(key.sign(transcript, ec.ECDSA(hashes.SHA256())))
    report.signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    path = watched.service.path("SubmitReport")
    outcome = watched.send(path, Role.METER, [report.SerializeToString()])
    assert outcome.code is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(outcome) is Reason.SIGNATURE_INVALID
    watched.close()


def test_a_report_whose_call_was_cancelled_counts_once_when_it_is_sent_again(
    city: ServingCity,
) -> None:
    service, store = city.services["aggregator"], city.local.aggregator.store
    channel = city.channel(service, Role.METER)
    stub: Any = channel.unary_unary(service.path("SubmitReport"))
    counted = store.count(OPEN)
    for at, wait_s in enumerate((0.0, 0.001, 0.003, 0.01, 0.05)):
        report = city.local.report(20 + at, OPEN).SerializeToString()
        call = stub.future(report)
        time.sleep(wait_s)
        call.cancel()
        receipts = [report_pb2.Receipt.FromString(stub(report)) for _ in range(2)]
        assert receipts[1].duplicate
        assert receipts[0].report_digest == receipts[1].report_digest
        assert store.count(OPEN) == counted + at + 1
    channel.close()
