"""Which calls are let in, and to which workers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

import grpc

from gridveil.protocol.errors import Exhausted, GridveilError, Reason
from gridveil_services.rpc.admission import Inline, WorkerPool
from gridveil_services.rpc.behaviour import (
    AnswerStream,
    RawRequests,
    Runtime,
    SingleAnswer,
    abort,
    draining,
)
from gridveil_services.rpc.binding import Method
from gridveil_services.rpc.errors import CODES

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[bytes, bytes]

_INLINE = Inline()


class Dispatcher(grpc.GenericRpcHandler):
    """Routes calls. An unknown path is UNIMPLEMENTED, which is the library's answer."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._routes: dict[str, tuple[WorkerPool, Handler]] = {}

    def add(self, method: Method, pool: WorkerPool) -> None:
        """Answer an rpc in the threads of a pool."""
        if method.path in self._routes:
            raise ValueError(f"{method.path} is bound twice")
        if method.server_streaming:
            handler: Handler = grpc.stream_stream_rpc_method_handler(
                AnswerStream(method, pool, self._runtime)
            )
        else:
            handler = grpc.stream_unary_rpc_method_handler(
                SingleAnswer(method, pool, self._runtime)
            )
        self._routes[method.path] = pool, handler

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Admit a call. Runs in the one thread that accepts calls, and never waits."""
        route = self._routes.get(details.method)
        if route is None:
            return None
        pool, handler = route
        if pool in self._runtime.draining:
            self._refused(details.method, Reason.DRAINING)
            return _DRAINING
        if pool.enter():
            return handler
        self._refused(details.method, Reason.OVERLOADED)
        return _OVERLOADED

    def _refused(self, method: str, reason: Reason) -> None:
        self._runtime.observer.call_refused(method, CODES[reason].name, reason)


class _Refusal:
    """Says no before anything else, without a worker."""

    experimental_thread_pool = _INLINE

    def __init__(self, overloaded: bool) -> None:
        self._overloaded = overloaded

    def __call__(self, _requests: RawRequests, context: grpc.ServicerContext) -> bytes:
        return abort(context, _overloaded() if self._overloaded else draining())


def _overloaded() -> GridveilError:
    return Exhausted(
        Reason.OVERLOADED,
        "too many calls are in progress",
        retry_after_s=round(random.uniform(0.1, 0.5), 3),  # noqa: S311 - spreads retries
    )


_OVERLOADED: Handler = grpc.stream_unary_rpc_method_handler(_Refusal(overloaded=True))
_DRAINING: Handler = grpc.stream_unary_rpc_method_handler(_Refusal(overloaded=False))
