"""What crosses the wire: malformed messages in, refusals and nothing else out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from gridveil import transport
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    InternalFault,
    MalformedInput,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, report_pb2
from gridveil_services.rpc import Call, Role, Server
from gridveil_services.rpc.errors import CODES, to_status
from tests.support.rpc import (
    BATCH,
    HEALTH_CHECK,
    RELEASE,
    STREAM,
    SUBMIT,
    WATCH,
    Caller,
    Certificates,
    Handler,
    failure,
    refusal,
    server,
    serving,
)

GET_AGGREGATE = "/gridveil.v1.Aggregator/GetAggregate"
CANARY = "meter 4711 used 1234 Wh; /srv/keys/secret.pem; SELECT secret FROM keys"
REPORT = report_pb2.Report(meter_id=b"m" * 16, window_start=900, signature=b"g" * 64)
KNOWN = REPORT.SerializeToString()
LIMIT = 7 << 19


class Board:
    """What the next call is answered with, and which requests were handled."""

    def __init__(self) -> None:
        self.handled: list[Any] = []
        self.act: Callable[[], Any] = report_pb2.Receipt

    def unary(self, request: Any, _call: Call) -> Any:
        self.handled.append(request)
        return self.act()

    def required(self, request: report_pb2.Report, _call: Call) -> Any:
        self.handled.append(request)
        if not request.meter_id:
            raise MalformedInput(Reason.FIELD_REQUIRED, "meter_id is empty", field="meter_id")
        return self.act()

    def upload(self, messages: Iterator[Any], _call: Call) -> Any:
        self.handled.extend(messages)
        return self.act()

    def stream(self, reports: Iterator[Any], _call: Call) -> Iterator[report_pb2.ReportOutcome]:
        for index, report in enumerate(reports):
            self.handled.append(report)
            if report.flags:
                self.act()
            yield report_pb2.ReportOutcome(index=index)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def board() -> Board:
    return Board()


@pytest.fixture(scope="module")
def running(certificates: Certificates, board: Board) -> Iterator[tuple[Server, Caller]]:
    handlers: dict[str, Handler] = {
        "submit_report": board.required,
        "submit_reports": board.unary,
        "get_aggregate": board.unary,
        "stream_reports": board.stream,
        "release": board.upload,
    }
    with serving(certificates, handlers) as started:
        yield started


@pytest.fixture
def caller(running: tuple[Server, Caller]) -> Caller:
    return running[1]


@pytest.fixture(autouse=True)
def clean(board: Board) -> None:
    board.handled.clear()
    board.act = report_pb2.Receipt


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        (SUBMIT, b"\xff\xff\xff", Reason.MALFORMED_MESSAGE),
        (SUBMIT, KNOWN[:-1], Reason.MALFORMED_MESSAGE),
        (HEALTH_CHECK, b"\x0a\x01\xff", Reason.MALFORMED_MESSAGE),
        (SUBMIT, b"", Reason.FIELD_REQUIRED),
        (SUBMIT, b"\x18\x01", Reason.NON_CANONICAL),
        (SUBMIT, KNOWN + b"\x78\x01", Reason.NON_CANONICAL),
        (SUBMIT, KNOWN + KNOWN, Reason.NON_CANONICAL),
        (SUBMIT, b"\x10\x84\x87\x00", Reason.NON_CANONICAL),
        (BATCH, b"\x0a\x00" * (LIMIT // 2), Reason.BATCH_TOO_LARGE),
        (GET_AGGREGATE, b"\x10\x63", Reason.ENUM_UNKNOWN),
    ],
    ids=[
        "garbage",
        "truncated",
        "invalid UTF-8",
        "empty",
        "other wire type",
        "unknown field",
        "fields twice",
        "long varint",
        "a million elements",
        "unknown enum value",
    ],
)
def test_malformed_message_is_an_invalid_argument_with_its_reason(
    caller: Caller, board: Board, path: str, data: bytes, reason: Reason
) -> None:
    error = failure(lambda: caller.unary(path, data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert transport.from_rpc_error(error).reason is reason
    assert len(board.handled) == (reason is Reason.FIELD_REQUIRED)


def test_missing_field_is_named_in_a_field_violation(caller: Caller) -> None:
    status = rpc_status.from_call(failure(lambda: caller.unary(SUBMIT)))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [violation.field for violation in bad.field_violations] == ["meter_id"]


def test_call_without_a_message_is_refused(caller: Caller, board: Board) -> None:
    error = refusal(caller.upload(SUBMIT, iter([])).result)
    assert error.reason is Reason.STREAM_PROTOCOL
    assert not board.handled


@pytest.mark.parametrize("second", [KNOWN, b"", b"\xff\xff\xff"])
def test_second_message_of_a_unary_call_is_refused(
    caller: Caller, board: Board, second: bytes
) -> None:
    """Even an empty one: who sends two means something else than what the first says."""
    messages = [KNOWN, second]
    for call in (
        caller.upload(SUBMIT, iter(messages)).result,
        lambda: list(caller.stream(WATCH, iter(messages))),
    ):
        assert refusal(call).reason is Reason.STREAM_PROTOCOL
    assert not board.handled


def test_message_above_the_limit_is_resource_exhausted(caller: Caller, board: Board) -> None:
    """The library's own answer, before the message is in memory."""
    error = failure(lambda: caller.unary(BATCH, bytes(LIMIT + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not board.handled


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("data", [KNOWN, bytes(20 * LIMIT)], ids=["small", "bomb"])
def test_compressed_message_is_unimplemented_and_never_unpacked(
    caller: Caller, board: Board, data: bytes, algorithm: grpc.Compression
) -> None:
    error = failure(lambda: caller.unary(BATCH, data, compression=algorithm))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not board.handled


def test_metadata_above_the_limit_is_resource_exhausted(caller: Caller, board: Board) -> None:
    error = failure(lambda: caller.unary(SUBMIT, KNOWN, metadata=[("x-long", "v" * 100_000)]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not board.handled


def test_bad_message_in_a_stream_ends_it_after_the_good_ones(caller: Caller, board: Board) -> None:
    stream = caller.stream(STREAM, iter([KNOWN, KNOWN, KNOWN + b"\x78\x01", KNOWN]))
    assert report_pb2.ReportOutcome.FromString(next(stream)).index == 0
    assert report_pb2.ReportOutcome.FromString(next(stream)).index == 1
    assert refusal(lambda: next(stream)).reason is Reason.NON_CANONICAL
    assert len(board.handled) == 2


def test_bad_message_in_an_upload_refuses_it(caller: Caller, board: Board) -> None:
    board.act = keyholder_pb2.ReleaseReceipt
    close = keyholder_pb2.ReleaseMessage(close={}).SerializeToString()
    assert caller.upload(RELEASE, iter([close, close])).result() == b""
    assert len(board.handled) == 2
    board.handled.clear()
    error = refusal(caller.upload(RELEASE, iter([close, b"\xff"])).result)
    assert error.reason is Reason.MALFORMED_MESSAGE


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError(CANARY)


class Remote(grpc.RpcError):
    """As a handler's own client call raises it."""

    def __str__(self) -> str:
        return CANARY


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


FAULTS = [
    ValueError(CANARY),
    OSError(13, CANARY, "/srv/keys/secret.pem"),
    Unprintable(),
    Remote(),
    SystemExit(CANARY),
    StopIteration(CANARY),
    AssertionError(CANARY),
    InternalFault(Reason.INTERNAL, CANARY, detail=CANARY),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("path", [BATCH, STREAM, RELEASE])
def test_defect_is_internal_with_an_opaque_id_and_nothing_else(
    caller: Caller,
    board: Board,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    path: str,
) -> None:
    board.act = raising(error)
    message = report_pb2.Report(flags=1).SerializeToString() if path == STREAM else b""
    raw = failure(lambda: list(caller.stream(path, iter([message]))))
    answer = transport.from_rpc_error(raw)
    assert raw.code() is grpc.StatusCode.INTERNAL
    assert answer.reason is Reason.INTERNAL
    assert answer.metadata.keys() == {"fault_id"}
    told = repr((raw.details(), raw.trailing_metadata(), raw.debug_error_string()))
    told = told.replace(answer.metadata["fault_id"], "")  # whose digits may be any
    assert not any(word in told for word in ("4711", "secret", "SELECT", "Traceback", ".py"))
    logged = capfd.readouterr().err
    assert answer.metadata["fault_id"] in logged


@pytest.mark.parametrize("answer", [None, 7, b"", keyholder_pb2.ReleaseReceipt()])
def test_answer_of_another_type_is_internal(caller: Caller, board: Board, answer: Any) -> None:
    board.act = lambda: answer
    assert refusal(lambda: caller.unary(BATCH)).reason is Reason.INTERNAL


def test_log_of_a_defect_names_the_place_but_no_local_variable(
    caller: Caller, board: Board, capfd: pytest.CaptureFixture[str]
) -> None:
    def act() -> Any:
        reading = "4711 Wh"
        raise ValueError(f"{len(reading)} characters" + "." * 5000)

    board.act = act
    refusal(lambda: caller.unary(BATCH, b"\x0a\x04\x1a\x02ab"))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "call failed" in line)
    entry = json.loads(line)
    assert entry["exception"][0]["frames"][-1]["name"] == "act"
    assert entry["method"] == BATCH
    assert "4711" not in line
    assert len(line) < 5000


def test_lost_integrity_is_told_and_logged(
    caller: Caller, board: Board, capfd: pytest.CaptureFixture[str]
) -> None:
    board.act = raising(IntegrityLost(Reason.PARTIAL_CORRUPT, "a stored sum was changed"))
    error = failure(lambda: caller.unary(BATCH))
    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert "PARTIAL_CORRUPT" in capfd.readouterr().err


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.INTERNAL}))
def test_client_raises_what_the_handler_raised(
    caller: Caller, board: Board, reason: Reason
) -> None:
    sent = transport.from_status(to_status(GridveilError(reason, "text", window="900")))
    board.act = raising(sent)
    raw = failure(lambda: caller.unary(BATCH))
    got = transport.from_rpc_error(raw)
    assert raw.code() is CODES[reason]
    assert (type(got), got.reason, got.message) == (type(sent), reason, "text")
    assert got.metadata == {"window": "900"}


def test_retry_delay_reaches_the_client(caller: Caller, board: Board) -> None:
    board.act = raising(Unavailable(Reason.STORE_FULL, "full", retry_after_s=2.25))
    got = refusal(lambda: caller.unary(BATCH))
    assert isinstance(got, Unavailable)
    assert got.retry_after_s == 2.25


def test_longest_refusal_keeps_its_code_and_reason(caller: Caller, board: Board) -> None:
    """A client drops trailers that are too long, and the code with them."""
    board.act = raising(
        WrongState(Reason.KEY_EPOCH, "é\n" * 9999, field="f" * 9999, window="w" * 900, other="o")
    )
    raw = failure(lambda: caller.unary(BATCH))
    assert raw.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert transport.from_rpc_error(raw).reason is Reason.KEY_EPOCH


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_bytes_are_ever_a_defect_of_the_service(
    running: tuple[Server, Caller], board: Board, data: st.DataObject
) -> None:
    board.act = report_pb2.Receipt
    raw = bytearray(KNOWN)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    board.handled.clear()
    try:
        running[1].unary(SUBMIT, bytes(raw))
    except grpc.RpcError as error:
        code = error.code()
        if code is not grpc.StatusCode.INVALID_ARGUMENT:
            pytest.fail(f"{code} for {bytes(raw)!r}")
    else:
        assert board.handled[0].SerializeToString() == bytes(raw)


def test_health_is_for_every_identity_of_the_city(certificates: Certificates) -> None:
    with server(certificates, {}) as started:
        address = started.start()
        for role in Role:
            caller = Caller(address, certificates, certificates.tls(role))
            assert caller.unary(HEALTH_CHECK) == b"\x08\x01"
            caller.close()


def test_big_batch_is_handled_as_sent(caller: Caller, board: Board) -> None:
    report = report_pb2.Report(ciphertext=bytes(17_408), meter_id=b"m" * 16)
    batch = aggregator_pb2.SubmitReportsRequest(reports=[report] * 128)
    board.act = aggregator_pb2.SubmitReportsResponse
    assert caller.unary(BATCH, batch.SerializeToString()) == b""
    assert board.handled == [batch]
