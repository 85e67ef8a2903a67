"""Only the one canonical encoding of a message is accepted."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, report_pb2, totals_pb2
from gridveil_services.rpc.parsing import MAX_FIELDS, Parser

REPORT = report_pb2.Report(
    parameters_digest=b"p" * 32,
    window_start=900,
    meter_id=b"m" * 16,
    flags=7,
    commitment_hash=b"h" * 32,
    sealed_commitment=b"s" * 48,
    ciphertext=b"c" * 300,
    signature=b"g" * 64,
)
REPORTS = aggregator_pb2.SubmitReportsRequest(reports=[REPORT, report_pb2.Report(flags=1), REPORT])
MESSAGES: list[Message] = [
    REPORT,
    REPORTS,
    aggregator_pb2.SubmitReportsRequest(),
    aggregator_pb2.GetAggregateRequest(window_start=900, kind="AGGREGATE_KIND_MEAN"),
    aggregator_pb2.GetCityParametersRequest(window_start=-1),
    keyholder_pb2.EnrolMetersRequest(enrolments=[b"", b"abc"]),
    keyholder_pb2.ReleaseMessage(header=keyholder_pb2.ReleaseHeader()),
    keyholder_pb2.ReleaseMessage(entries=keyholder_pb2.EntryChunk(offset=2**63, entries=b"e")),
    totals_pb2.ListTotalsRequest(from_window=900, page_size=2**32 - 1),
    health_pb2.HealthCheckRequest(service="gridveil"),
]


def reason(kind: type[Message], data: bytes) -> Reason:
    with pytest.raises(MalformedInput) as caught:
        Parser(kind).parse(data)
    return caught.value.reason


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_a_library_writes_is_accepted(message: Message) -> None:
    parsed = Parser(type(message)).parse(message.SerializeToString())
    assert type(parsed) is type(message)
    assert parsed == message


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (report_pb2.Report, b"\xff\xff\xff"),
        (report_pb2.Report, b"\x0a\x05abc"),
        (report_pb2.Report, b"\x0a"),
        (report_pb2.Report, b"\x10" + b"\xff" * 10 + b"\x01"),
        (report_pb2.Report, b"\x07"),
        (report_pb2.Report, b"\x02\x00"),
        (aggregator_pb2.SubmitReportsRequest, b"\x0a\x03\x0a\x05a"),
        (health_pb2.HealthCheckRequest, b"\x0a\x01\xff"),
    ],
    ids=["noise", "truncated", "half", "long", "wiretype", "field-0", "nested", "utf-8"],
)
def test_bytes_that_are_no_message_are_malformed(kind: type[Message], data: bytes) -> None:
    assert reason(kind, data) is Reason.MALFORMED_MESSAGE


def test_every_truncation_is_refused_or_another_canonical_message() -> None:
    data = REPORTS.SerializeToString()
    for size in range(len(data)):
        try:
            parsed = Parser(type(REPORTS)).parse(data[:size])
        except MalformedInput:
            continue
        assert parsed.SerializeToString() == data[:size]


@pytest.mark.parametrize(
    "data",
    [
        REPORT.SerializeToString() + b"\x48\x01",
        REPORT.SerializeToString() + b"\x10\x84\x07",
        b"\x10\x84\x07" + b"\x10\x84\x07",
        b"\x10\x84\x87\x00",
        b"\x90\x00\x84\x07",
        b"\x1a\x81\x00m",
        b"\x20\x01\x10\x84\x07",
        b"\x20\x00",
        b"\x0a\x00",
        b"\x12\x01m",
        b"\x23\x24",
        b"\x20\x81\x80\x80\x80\x10",
    ],
    ids=[
        "unknown field",
        "field again",
        "field twice",
        "long varint",
        "long tag",
        "long length",
        "wrong order",
        "explicit default",
        "explicit empty",
        "other wire type",
        "group",
        "beyond 32 bits",
    ],
)
def test_any_other_encoding_of_a_report_is_not_canonical(data: bytes) -> None:
    assert report_pb2.Report.FromString(data) is not None
    assert reason(report_pb2.Report, data) is Reason.NON_CANONICAL
    nested = b"\x0a" + bytes([len(data) & 127 | 128, len(data) >> 7]) + data
    if len(data) < 128:
        nested = b"\x0a" + bytes([len(data)]) + data
    assert reason(aggregator_pb2.SubmitReportsRequest, nested) is Reason.NON_CANONICAL
    assert reason(aggregator_pb2.SubmitReportsRequest, b"\x0a\x00" + nested) is Reason.NON_CANONICAL


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x00\x10\x00",
        b"\x10\x00\x0a\x00",
        b"\x0a\x80\x00",
        b"\x8a\x00\x00",
    ],
    ids=["unknown after", "unknown before", "long length", "long tag"],
)
def test_any_other_encoding_of_a_list_is_not_canonical(data: bytes) -> None:
    assert reason(aggregator_pb2.SubmitReportsRequest, data) is Reason.NON_CANONICAL


def test_a_second_part_of_a_oneof_is_not_canonical() -> None:
    assert reason(keyholder_pb2.ReleaseMessage, b"\x0a\x00\x12\x00") is Reason.NON_CANONICAL


@given(st.data())
def test_accepted_bytes_are_what_a_library_would_write(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 2))
        raw[at : at + cut] = data.draw(st.binary(max_size=3))
    try:
        parsed = Parser(type(message)).parse(bytes(raw))
    except MalformedInput:
        return
    parsed.DiscardUnknownFields()
    assert parsed.SerializeToString(deterministic=True) == bytes(raw)


@pytest.mark.parametrize("value", [3, 99, 2**31 - 1, -1])
def test_a_number_that_an_enum_does_not_name_is_unknown(value: int) -> None:
    message = aggregator_pb2.GetAggregateRequest(window_start=900)
    message.kind = value  # type: ignore[assignment]
    with pytest.raises(MalformedInput) as caught:
        Parser(type(message)).parse(message.SerializeToString())
    assert caught.value.reason is Reason.ENUM_UNKNOWN
    assert caught.value.metadata == {"field": "kind"}


def nested_enums() -> type[Message]:
    """A recursive message type with enums at every place where a field may be."""
    file = descriptor_pb2.FileDescriptorProto(name="enums.proto", package="enums", syntax="proto3")
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="NONE", number=0)
    kind.value.add(name="ONE", number=1)
    node = file.message_type.add(name="Node")
    field = descriptor_pb2.FieldDescriptorProto
    for number, (name, label, type_name) in enumerate(
        [
            ("kind", field.LABEL_OPTIONAL, ".enums.Kind"),
            ("kinds", field.LABEL_REPEATED, ".enums.Kind"),
            ("child", field.LABEL_OPTIONAL, ".enums.Node"),
            ("children", field.LABEL_REPEATED, ".enums.Node"),
        ],
        start=1,
    ):
        kind_of = field.TYPE_ENUM if type_name == ".enums.Kind" else field.TYPE_MESSAGE
        node.field.add(name=name, number=number, label=label, type=kind_of, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("enums.Node"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": 2},
        {"kinds": [1, 2]},
        {"child": {"kind": 2}},
        {"children": [{"kind": 1}, {"kinds": [0, 5]}]},
        {"child": {"children": [{"child": {"kind": 7}}]}},
    ],
)
def test_an_unknown_number_is_found_wherever_it_is(wrong: dict[str, object]) -> None:
    node = nested_enums()
    parser = Parser(node)
    parser.parse(node(kind=1, kinds=[0, 1], child={"children": [{}]}).SerializeToString())
    with pytest.raises(MalformedInput) as caught:
        parser.parse(node(**wrong).SerializeToString())
    assert caught.value.reason is Reason.ENUM_UNKNOWN


def test_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(200):
        data = _wrap(data)
    assert reason(struct_pb2.Value, data) is Reason.MALFORMED_MESSAGE


def _wrap(data: bytes) -> bytes:
    """A protobuf ListValue in a Value in a list, once more."""
    for tag in (b"\x0a", b"\x32"):
        size, value = b"", len(data)
        while value > 127:
            size, value = size + bytes([value & 127 | 128]), value >> 7
        data = tag + size + bytes([value]) + data
    return data


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (aggregator_pb2.SubmitReportsRequest, b"\x0a\x00"),
        (keyholder_pb2.EnrolMetersRequest, b"\x0a\x00"),
        (keyholder_pb2.ReleaseMessage, b"\x0a\x00\x12\x00"),
        (report_pb2.Report, b"\x0a\x00"),
        (report_pb2.Report, b"\x78\x00"),
    ],
)
def test_millions_of_elements_are_refused(kind: type[Message], part: bytes) -> None:
    assert reason(kind, part * ((7 << 19) // len(part))) is Reason.BATCH_TOO_LARGE


GROWTH = """
import resource
from gridveil.protocol.errors import MalformedInput
from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.rpc.parsing import Parser
data = bytes.fromhex("0a00") * (7 << 18)
parser = Parser(aggregator_pb2.SubmitReportsRequest)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    parser.parse(data)
except MalformedInput:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_refusing_millions_of_elements_costs_no_memory() -> None:
    """Parsed, they take 250 MB; of a process of its own, because a peak only ever rises."""
    result = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 16 * 1024


def test_as_many_elements_as_allowed_are_accepted_at_any_size() -> None:
    message = keyholder_pb2.EnrolMetersRequest(enrolments=[b"e" * 200] * MAX_FIELDS)
    assert Parser(type(message)).parse(message.SerializeToString()) == message
    message.enrolments.append(b"e")
    assert reason(type(message), message.SerializeToString()) is Reason.BATCH_TOO_LARGE


@pytest.mark.parametrize("file", [aggregator_pb2, keyholder_pb2, totals_pb2])
def test_no_request_nests_lists_which_only_the_outer_count_would_not_bound(file: object) -> None:
    for service in file.DESCRIPTOR.services_by_name.values():  # type: ignore[attr-defined]
        for rpc in service.methods:
            for field in rpc.input_type.fields:
                inner = field.message_type
                assert inner is None or not any(part.is_repeated for part in inner.fields)
