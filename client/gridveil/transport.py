"""Client side of the wire: mTLS channels, and refusals back into typed errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gridveil.profile import Tls
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    GridveilError,
    IntegrityLost,
    InternalFault,
    MalformedInput,
    NotAllowed,
    NotAuthentic,
    NotFound,
    Reason,
    Unavailable,
    WrongState,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DOMAIN = "gridveil"
"""``ErrorInfo.domain`` of every refusal."""

_FAMILIES: dict[grpc.StatusCode, type[GridveilError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: MalformedInput,
    grpc.StatusCode.OUT_OF_RANGE: WrongState,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ABORTED: WrongState,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthentic,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DATA_LOSS: IntegrityLost,
}
_BY_VALUE = {code.value[0]: code for code in grpc.StatusCode}
_WITHOUT_DETAIL = {
    grpc.StatusCode.UNAVAILABLE: Reason.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.UNREACHABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.OVERLOADED,
}
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 8 * 2**20),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt to connect may take: a TLS handshake is three round trips.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


_SEVERAL = "aggregator"
"""Of this role there may be several."""
_IN_TURN = ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}')
"""Of several addresses behind one name, calls go to all in turn, not only to the first."""


def server_name(role: str, city_id: bytes) -> str:
    """The DNS name that a service's certificate must carry: nobody else's role can serve it."""
    return f"{role}.{city_id.hex()}.{DOMAIN}"


def channel_options(role: str, city_id: bytes) -> list[tuple[str, str | int]]:
    """Channel arguments that pin the service's role and keep retries in our own code."""
    in_turn = [_IN_TURN] if role == _SEVERAL else []
    name = "grpc.ssl_target_name_override", server_name(role, city_id)
    return [*_OPTIONS, *in_turn, name]


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """MTLS credentials from PEM files."""
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.key.read_bytes(),
        certificate_chain=tls.certificate.read_bytes(),
    )


def connect(address: str, role: str, city_id: bytes, tls: Tls) -> grpc.Channel:
    """A blocking channel to the service of ``role`` in the city."""
    return grpc.secure_channel(address, channel_credentials(tls), channel_options(role, city_id))


def connect_async(address: str, role: str, city_id: bytes, tls: Tls) -> grpc.aio.Channel:
    """An asyncio channel to the service of ``role`` in the city."""
    return grpc.aio.secure_channel(
        address, channel_credentials(tls), channel_options(role, city_id)
    )


def reach(channel: grpc.Channel, service: str, timeout_s: float) -> None:
    """Connect within ``timeout_s`` seconds, or UNREACHABLE."""
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(timeout=timeout_s)
    except grpc.FutureTimeoutError:
        ready.cancel()
        raise _unreachable(service) from None


async def reach_async(channel: grpc.aio.Channel, service: str, timeout_s: float) -> None:
    """The same for asyncio."""
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout_s)
    except TimeoutError:
        raise _unreachable(service) from None


def connect_timeout(timeout_s: float, patience_s: float | None) -> float:
    """How long to try to connect when one gives up after ``patience_s`` (None: never)."""
    return timeout_s if patience_s is None else min(timeout_s, max(patience_s, 1.0))


def _unreachable(service: str) -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, f"the {service} service cannot be reached")


class ServerStream(Protocol[T_co]):
    """A call that answers with a stream."""

    def __iter__(self) -> Iterator[T_co]: ...

    def cancel(self) -> bool:
        """End the call."""
        ...


def server_stream(call: ServerStream[T]) -> Generator[T]:
    """The messages of a call with typed errors; closing it ends the call."""
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


async def server_stream_async(call: grpc.aio.UnaryStreamCall[Any, T]) -> AsyncGenerator[T]:
    """The same for asyncio."""
    try:
        async for message in call:
            yield message
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


def from_rpc_error(error: grpc.RpcError) -> GridveilError:
    """The typed error behind a failed call (blocking or asyncio)."""
    call = cast(grpc.Call, error)
    code = call.code()
    return from_status(_status_of(call) or status_pb2.Status(), code)


def from_status(status: status_pb2.Status, code: grpc.StatusCode | None = None) -> GridveilError:
    """The typed error in a ``google.rpc.Status``, as a batch carries one a report."""
    code = code or _BY_VALUE.get(status.code, grpc.StatusCode.UNKNOWN)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after: float | None = None
    try:
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        return _without_detail(code)
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return _without_detail(code)
    return _build(code, Reason(info.reason), status.message, retry_after, dict(info.metadata))


def _status_of(call: grpc.Call) -> status_pb2.Status | None:
    """The status in a failed call's trailers; None if there is none that can be read."""
    try:
        return rpc_status.from_call(call) if call.trailing_metadata() else None
    except (DecodeError, ValueError):
        return None


def _without_detail(code: grpc.StatusCode) -> GridveilError:
    reason = _WITHOUT_DETAIL.get(code, Reason.INTERNAL)
    return _build(code, reason, f"the call failed: {code.name}", None, {})


def _build(
    code: grpc.StatusCode,
    reason: Reason,
    message: str,
    retry_after: float | None,
    metadata: dict[str, str],
) -> GridveilError:
    family = _FAMILIES.get(code, InternalFault)
    metadata.pop("retry_after_s", None)
    return family(reason, message, retry_after_s=retry_after, **metadata)
