"""One table turns refusals into statuses, and the client gets back what the server meant."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from gridveil import transport
from gridveil.protocol.errors import (
    GridveilError,
    MalformedInput,
    NotFound,
    Reason,
    WrongState,
)
from gridveil_services.rpc.errors import CODES, MESSAGE_BYTES, STATUS_BYTES, to_status

CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
}
metadata_keys = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20).filter(
    lambda key: key not in {"reason", "message", "retry_after_s", "self"}
)
metadata = st.dictionaries(metadata_keys, st.text(max_size=40), max_size=6)


def family(reason: Reason) -> type[GridveilError]:
    return type(transport.from_status(to_status(GridveilError(reason, "text"))))


def make(reason: Reason, message: str, retry: float | None, extra: dict[str, str]) -> GridveilError:
    return family(reason)(reason, message, retry_after_s=retry, **extra)


def details(status: status_pb2.Status, kind: type[Any]) -> list[Any]:
    found = []
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            found.append(detail)
    return found


def test_every_reason_has_exactly_one_code() -> None:
    assert CODES.keys() == set(Reason)
    assert grpc.StatusCode.UNKNOWN not in CODES.values()
    assert grpc.StatusCode.OK not in CODES.values()


@given(
    reason=st.sampled_from(Reason),
    message=st.text(max_size=100),
    retry=st.none() | st.floats(0, 1e6),
    extra=metadata,
)
def test_client_gets_back_family_reason_retry_and_metadata(
    reason: Reason, message: str, retry: float | None, extra: dict[str, str]
) -> None:
    error = make(reason, message, retry, extra)
    back = transport.from_status(to_status(error))
    assert type(back) is type(error)
    assert (back.reason, back.message, back.metadata) == (reason, message, extra)
    healed_by_time = retry is not None and CODES[reason] not in CALLERS_FAULT
    expected = pytest.approx(retry, abs=1e-9, rel=1e-12) if healed_by_time else None
    assert back.retry_after_s == expected


@given(
    reason=st.sampled_from(Reason),
    message=st.text(max_size=5000),
    extra=st.dictionaries(metadata_keys, st.text(max_size=3000), max_size=30),
)
def test_status_stays_small_whatever_the_error_holds(
    reason: Reason, message: str, extra: dict[str, str]
) -> None:
    extra = {**extra, "field": "f" * 1000, "window": "w" * 1000, "resource": "r" * 1000}
    status = to_status(make(reason, message, 1.0, extra))
    assert len(status.SerializeToString()) < STATUS_BYTES
    assert len(status.message.encode()) <= MESSAGE_BYTES


@pytest.mark.parametrize("text", ["\ud800", "é" * 3000, "\0\n\r"])
def test_text_that_utf8_cannot_hold_or_cut_evenly_is_still_sent(text: str) -> None:
    error = MalformedInput(Reason.FIELD_FORMAT, text, field=text)
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    assert transport.from_status(status).reason is Reason.FIELD_FORMAT


def test_malformed_field_is_named_as_field_violation() -> None:
    status = to_status(MalformedInput(Reason.FIELD_REQUIRED, "meter_id is empty", field="meter_id"))
    (bad,) = details(status, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("meter_id", "meter_id is empty")
    ]


def test_wrong_state_is_named_as_precondition() -> None:
    status = to_status(WrongState(Reason.WINDOW_CLOSED, "closed", window="900"))
    (failure,) = details(status, error_details_pb2.PreconditionFailure)
    assert [(v.type, v.subject) for v in failure.violations] == [("WINDOW_CLOSED", "900")]


def test_missing_thing_is_named_as_resource() -> None:
    status = to_status(NotFound(Reason.NOT_FOUND, "no", resource_type="window", resource="900"))
    (info,) = details(status, error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("window", "900")


def test_callers_own_faults_never_ask_for_a_retry() -> None:
    for reason, code in CODES.items():
        if code in CALLERS_FAULT:
            assert not details(
                to_status(make(reason, "text", 5.0, {})), error_details_pb2.RetryInfo
            )
