"""The one place where a refusal becomes a gRPC status (google.rpc.Status, AIP-193)."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from gridveil.protocol.errors import GridveilError, Reason
from gridveil.transport import DOMAIN

MESSAGE_BYTES = 512
"""Longest text of a refusal; longer ones are cut."""
METADATA_BYTES = 1024
"""All metadata of a refusal together; entries that do not fit are left out."""
STATUS_BYTES = 4096
"""Bound on an encoded status. A client drops trailers above 8 KiB, and the code with them."""

_MALFORMED = (
    Reason.MALFORMED_MESSAGE,
    Reason.NON_CANONICAL,
    Reason.FIELD_REQUIRED,
    Reason.FIELD_FORMAT,
    Reason.FIELD_RANGE,
    Reason.ENUM_UNKNOWN,
    Reason.WINDOW_MISALIGNED,
    Reason.RANGE_INVALID,
    Reason.PAGE_TOKEN_INVALID,
    Reason.BATCH_EMPTY,
    Reason.BATCH_TOO_LARGE,
    Reason.BATCH_MIXED,
    Reason.STREAM_PROTOCOL,
    Reason.METADATA_DUPLICATE,
    Reason.CIPHERTEXT_MALFORMED,
    Reason.CIPHERTEXT_PARAMS,
    Reason.CIPHERTEXT_NON_CANONICAL,
    Reason.CIPHERTEXT_TRANSPARENT,
    Reason.DIGEST_MISMATCH,
    Reason.COHORT_INVALID,
    Reason.CONFIG_INVALID,
    Reason.READING_INVALID,
    Reason.OPENING_FAILED,
)
_WRONG_STATE = (
    Reason.WINDOW_CLOSED,
    Reason.WINDOW_RELEASED,
    Reason.WINDOW_OPEN,
    Reason.WINDOW_EXPIRED,
    Reason.WINDOW_POISONED,
    Reason.KEY_EPOCH,
    Reason.ROSTER_VERSION,
    Reason.COHORT_TOO_SMALL,
    Reason.REFUSED,
    Reason.NOT_RELEASED,
    Reason.NOT_SEALED,
    Reason.NO_SIGNAL,
)
CODES: dict[Reason, StatusCode] = {
    **dict.fromkeys(_MALFORMED, StatusCode.INVALID_ARGUMENT),
    Reason.SIGNATURE_MISSING: StatusCode.UNAUTHENTICATED,
    Reason.SIGNATURE_INVALID: StatusCode.UNAUTHENTICATED,
    Reason.BAD_IDENTITY: StatusCode.UNAUTHENTICATED,
    Reason.CERT_EXPIRED: StatusCode.UNAUTHENTICATED,
    Reason.KEY_NOT_PINNED: StatusCode.UNAUTHENTICATED,
    Reason.PROOF_INVALID: StatusCode.UNAUTHENTICATED,
    Reason.ROLE_NOT_ALLOWED: StatusCode.PERMISSION_DENIED,
    Reason.METER_REVOKED: StatusCode.PERMISSION_DENIED,
    Reason.WINDOW_TOO_EARLY: StatusCode.OUT_OF_RANGE,
    **dict.fromkeys(_WRONG_STATE, StatusCode.FAILED_PRECONDITION),
    Reason.EQUIVOCATION: StatusCode.ALREADY_EXISTS,
    Reason.WINDOW_PINNED: StatusCode.ALREADY_EXISTS,
    Reason.METER_EXISTS: StatusCode.ALREADY_EXISTS,
    Reason.NOT_FOUND: StatusCode.NOT_FOUND,
    Reason.OVERLOADED: StatusCode.RESOURCE_EXHAUSTED,
    Reason.LANE_FULL: StatusCode.RESOURCE_EXHAUSTED,
    Reason.BUDGET_EXHAUSTED: StatusCode.RESOURCE_EXHAUSTED,
    Reason.MESSAGE_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
    Reason.STORE_UNAVAILABLE: StatusCode.UNAVAILABLE,
    Reason.STORE_FULL: StatusCode.UNAVAILABLE,
    Reason.KEYHOLDER_UNAVAILABLE: StatusCode.UNAVAILABLE,
    Reason.KEYHOLDER_LOCKED: StatusCode.UNAVAILABLE,
    Reason.NOT_WITNESSED: StatusCode.UNAVAILABLE,
    Reason.UNREACHABLE: StatusCode.UNAVAILABLE,
    Reason.DRAINING: StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: StatusCode.DEADLINE_EXCEEDED,
    Reason.PARTIAL_CORRUPT: StatusCode.DATA_LOSS,
    Reason.LOG_CORRUPT: StatusCode.DATA_LOSS,
    Reason.LOG_FORKED: StatusCode.DATA_LOSS,
    Reason.LOG_ROLLED_BACK: StatusCode.DATA_LOSS,
    Reason.INTERNAL: StatusCode.INTERNAL,
}
"""The status code of every reason."""

_RESOURCES = {
    Reason.EQUIVOCATION: "report",
    Reason.WINDOW_PINNED: "release",
    Reason.METER_EXISTS: "meter",
}


_HOPELESS = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.UNAUTHENTICATED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
    }
)
"""Codes of refusals that no time heals: they never ask for another try."""


def to_status(error: GridveilError) -> status_pb2.Status:
    """The ``google.rpc.Status`` of a refusal, below STATUS_BYTES whatever the error holds."""
    code = CODES[error.reason]
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, MESSAGE_BYTES))
    metadata = _bounded(error.metadata)
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)
    details = [info, *_specific(code, error.reason, status.message, metadata)]
    if error.retry_after_s is not None and code not in _HOPELESS:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _specific(
    code: StatusCode, reason: Reason, message: str, metadata: dict[str, str]
) -> list[Message]:
    """What AIP-193 wants beside ErrorInfo for a code."""
    if code is StatusCode.INVALID_ARGUMENT and "field" in metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata["field"], description=message
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if code is StatusCode.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=reason.value, subject=metadata.get("window", ""), description=message
        )
        return [error_details_pb2.PreconditionFailure(violations=[failure])]
    if code in {StatusCode.ALREADY_EXISTS, StatusCode.NOT_FOUND}:
        return [
            error_details_pb2.ResourceInfo(
                resource_type=_RESOURCES.get(reason, metadata.get("resource_type", "")),
                resource_name=metadata.get("resource", ""),
                description=message,
            )
        ]
    return []


def _duration(seconds: float) -> duration_pb2.Duration:
    nanos = round(max(0.0, min(seconds, 1e9)) * 1e9)
    return duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def _bounded(metadata: dict[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    left = METADATA_BYTES
    for key, value in metadata.items():
        text = _cut(str(value), METADATA_BYTES)
        left -= len(key.encode()) + len(text.encode())
        if left < 0:
            break
        kept[key] = text
    return kept


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
