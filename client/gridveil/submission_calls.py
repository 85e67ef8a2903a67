"""Driving the steps of :mod:`gridveil.submission` over gRPC, blocking or asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.v1 import aggregator_pb2, aggregator_pb2_grpc
from gridveil.submission import Call, Steps
from gridveil.tracing.spans import Tracer, Untraced
from gridveil.transport import from_rpc_error

T = TypeVar("T")
Caller = Callable[[Call], Any]
"""Makes a call and returns its reply, or raises a GridveilError."""
AsyncCaller = Callable[[Call], Awaitable[Any]]

_SERVICE = f"{aggregator_pb2.DESCRIPTOR.services_by_name['Aggregator'].full_name}/"


def blocking_caller(channel: grpc.Channel, tracer: Tracer | None = None) -> Caller:
    """Calls to the aggregator at the other end of the channel, each of them traced."""
    traced = tracer or Untraced()
    stub = aggregator_pb2_grpc.AggregatorStub(channel)

    def make(call: Call) -> Any:
        with traced.call(_SERVICE + call.method) as metadata:
            try:
                return getattr(stub, call.method)(
                    call.request, timeout=call.timeout_s, metadata=metadata
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            except ValueError:
                raise _closed() from None

    return make


def async_caller(channel: grpc.aio.Channel, tracer: Tracer | None = None) -> AsyncCaller:
    """Calls to the aggregator at the other end of the channel, each of them traced."""
    traced = tracer or Untraced()
    stub = aggregator_pb2_grpc.AggregatorStub(channel)

    async def make(call: Call) -> Any:
        with traced.call(_SERVICE + call.method) as metadata:
            try:
                return await getattr(stub, call.method)(
                    call.request, timeout=call.timeout_s, metadata=metadata
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            except grpc.aio.UsageError:
                raise _closed() from None

    return make


def run_steps(steps: Steps[T], call: Caller) -> T:
    """What the steps return, every call they yield made in turn."""
    done, value = _advance(steps, None)
    while not done:
        reply: Any
        try:
            reply = call(value)
        except GridveilError as error:
            reply = error
        done, value = _advance(steps, reply)
    result: T = value
    return result


async def run_steps_async(steps: Steps[T], call: AsyncCaller) -> T:
    """The same on an event loop: the steps themselves run in a thread, for they compute."""
    done, value = await asyncio.to_thread(_advance, steps, None)
    while not done:
        reply: Any
        try:
            reply = await call(value)
        except GridveilError as error:
            reply = error
        done, value = await asyncio.to_thread(_advance, steps, reply)
    result: T = value
    return result


def _advance(steps: Steps[Any], reply: Any) -> tuple[bool, Any]:
    """Whether the steps are done, and their result or their next call."""
    try:
        if isinstance(reply, GridveilError):
            return False, steps.throw(reply)
        return False, steps.send(reply)
    except StopIteration as stop:
        return True, stop.value


def _closed() -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, "the channel is closed")
