"""Refusals on the wire, back into typed errors, whatever a server makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from gridveil.pacing import FLOOR_S, LEARN_S, next_attempt
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    GridveilError,
    InternalFault,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.transport import from_rpc_error, from_status

DETAILS = "grpc-status-details-bin"
TYPES = tuple(
    f"type.googleapis.com/google.rpc.{name}" for name in ("ErrorInfo", "RetryInfo", "Help")
)


def status(
    code: grpc.StatusCode, reason: str, /, *, seconds: int | None = None, **metadata: str
) -> status_pb2.Status:
    made = status_pb2.Status(code=code.value[0], message="words")
    info = error_details_pb2.ErrorInfo(reason=reason, domain="gridveil", metadata=metadata)
    details = [info]
    if seconds is not None:
        details.append(
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))
        )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        made.details.append(packed)
    return made


@pytest.mark.parametrize(
    ("code", "reason", "family"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Reason.FIELD_FORMAT, MalformedInput),
        (grpc.StatusCode.UNAUTHENTICATED, Reason.SIGNATURE_INVALID, NotAuthentic),
        (grpc.StatusCode.OUT_OF_RANGE, Reason.WINDOW_TOO_EARLY, WrongState),
        (grpc.StatusCode.ALREADY_EXISTS, Reason.EQUIVOCATION, Conflict),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.LANE_FULL, Exhausted),
        (grpc.StatusCode.UNAVAILABLE, Reason.STORE_FULL, Unavailable),
    ],
)
def test_a_refusal_comes_back_as_its_family_and_reason(
    code: grpc.StatusCode, reason: Reason, family: type[GridveilError]
) -> None:
    error = from_status(status(code, reason.value, field="flags"))
    assert type(error) is family
    assert (error.reason, error.message) == (reason, "words")
    assert error.metadata == {"field": "flags"}


@pytest.mark.parametrize("name", ["self", "reason", "message", "retry_after_s", "family"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
def test_no_name_of_metadata_gets_in_the_way(name: str, code: grpc.StatusCode) -> None:
    error = from_status(status(code, "OVERLOADED", seconds=2, **{name: "x"}))
    assert error.reason is Reason.OVERLOADED
    assert error.message == "words"
    assert getattr(error, "retry_after_s", 2.0) == 2.0


@pytest.mark.parametrize(("seconds", "waited"), [(-(2**62), FLOOR_S), (7, 7.0), (2**62, LEARN_S)])
def test_a_server_can_ask_for_a_pause_and_not_for_ever(seconds: int, waited: float) -> None:
    error = from_status(status(grpc.StatusCode.UNAVAILABLE, "DRAINING", seconds=seconds))
    assert isinstance(error, Unavailable)
    assert next_attempt(1, 0.0, 300.0, error.retry_after_s, lambda: 0.0) == waited


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=20),
    st.lists(
        st.builds(any_pb2.Any, type_url=st.sampled_from(TYPES), value=st.binary(max_size=60)),
        max_size=3,
    ),
)
def test_any_status_is_some_typed_error(
    code: int, message: str, details: list[any_pb2.Any]
) -> None:
    error = from_status(status_pb2.Status(code=code, message=message, details=details))
    assert isinstance(error, GridveilError)


def test_a_reason_that_nobody_defined_is_not_passed_on() -> None:
    error = from_status(status(grpc.StatusCode.INVALID_ARGUMENT, "MADE_UP"))
    assert (type(error), error.reason) == (MalformedInput, Reason.INTERNAL)


@contextmanager
def answering(trailer: bytes) -> Iterator[grpc.Channel]:
    """A server that refuses every call as unavailable, with this for details."""

    def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(((DETAILS, trailer),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "words")

    handler = grpc.method_handlers_generic_handler(
        "any.Service", {"Call": grpc.unary_unary_rpc_method_handler(refuse)}
    )
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("trailer", "reason"),
    [
        (b"", Reason.UNREACHABLE),
        (b"\xff\xff", Reason.UNREACHABLE),
        (status_pb2.Status(code=3, message="another").SerializeToString(), Reason.UNREACHABLE),
        (status(grpc.StatusCode.UNAVAILABLE, "DRAINING").SerializeToString(), Reason.DRAINING),
    ],
    ids=["empty", "garbage", "of another code", "right"],
)
def test_details_that_cannot_be_read_leave_the_code(trailer: bytes, reason: Reason) -> None:
    with answering(trailer) as channel:
        call: Any = channel.unary_unary("/any.Service/Call")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"", timeout=5)
    error = from_rpc_error(failed.value)
    assert isinstance(error, Unavailable)
    assert error.reason is reason


def test_a_code_without_family_is_a_fault() -> None:
    assert type(from_status(status_pb2.Status(code=0))) is InternalFault
    assert type(from_status(status_pb2.Status(code=999))) is InternalFault
