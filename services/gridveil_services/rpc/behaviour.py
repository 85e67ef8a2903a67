"""What happens to an admitted call: identity, role, deadline, strict parsing, handler, errors.

Every rpc is read as a stream of bytes, whatever its shape; on the wire this is the same. So
identity, role and deadline are checked before a byte of the body is read, and a caller who does
not send its body can be given up.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Never, cast

import grpc
import structlog
from google.protobuf.message import Message
from grpc_status import rpc_status

from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    InternalFault,
    MalformedInput,
    NotAllowed,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.tracing.spans import ServedSpan, Tracer, Untraced
from gridveil_services.rpc.admission import WorkerPool
from gridveil_services.rpc.binding import Method
from gridveil_services.rpc.call import Call
from gridveil_services.rpc.errors import CODES, to_status
from gridveil_services.rpc.observer import CallObserver, Unobserved
from gridveil_services.rpc.roles import peer_certificate
from gridveil_services.rpc.supervision import Supervisor

_log = structlog.get_logger()
MIN_TIME_S = 0.1
"""A call with less time left is refused before any work."""
_SINGLE_METADATA = frozenset({"authorization", "x-forwarded-client-cert"})
"""Metadata that no caller may send twice; nothing here reads it."""

RawRequests = Iterator[bytes]


@dataclass(frozen=True)
class Patience:
    """How long callers may take, seconds."""

    call_s: float = 60.0
    """For a unary call altogether, whatever deadline its caller set."""
    body_s: float = 30.0
    """To send the message of a unary call."""
    idle_s: float = 60.0
    """Between two messages of a request stream."""
    take_s: float = 30.0
    """To take an answer, or the next of a stream."""


@dataclass
class Runtime:
    """What all calls of a server share."""

    city_id: bytes
    patience: Patience
    supervisor: Supervisor
    observer: CallObserver = field(default_factory=Unobserved)
    tracer: Tracer = field(default_factory=Untraced)
    draining: frozenset[WorkerPool] = field(default=frozenset())
    """Pools that take no new calls."""


class _Behaviour:
    def __init__(self, method: Method, pool: WorkerPool, runtime: Runtime) -> None:
        self.experimental_thread_pool = pool.executor
        self._method = method
        self._pool = pool
        self._runtime = runtime

    def _begin(self, context: grpc.ServicerContext) -> tuple[Call, _Place]:
        cap_s = None if self._method.streaming else self._runtime.patience.call_s
        call = Call(context, self._method, self._pool, cap_s)
        place = _Place(call, self._runtime.supervisor)
        if not context.add_callback(place.over_on_the_wire):
            place.over_on_the_wire()
        if self._pool in self._runtime.draining and self._method.server_streaming:
            call.drain()
        return call, place

    def _trace(self, context: grpc.ServicerContext) -> ServedSpan:
        """Generators change threads and contexts: below their span there is none."""
        current = not self._method.server_streaming
        metadata = context.invocation_metadata()
        try:
            return self._runtime.tracer.serve(self._method.path, metadata, current=current)
        except Exception:  # nor must who traces
            return Untraced().serve(self._method.path, metadata, current=current)

    def _observe(self, call: Call, span: ServedSpan, error: GridveilError | None) -> None:
        code, reason = ("OK", None) if error is None else (CODES[error.reason].name, error.reason)
        seconds = time.monotonic() - call.began
        with suppress(Exception):  # who counts must not change the answer
            self._runtime.observer.call_ended(self._method.path, code, reason, seconds)
        with suppress(Exception):
            span.end(reason)

    def _check(self, call: Call, context: grpc.ServicerContext) -> None:
        certificate = peer_certificate(_auth_context(context), self._runtime.city_id)
        certificate.check_valid(time.time())
        call.certificate = certificate
        if certificate.identity.role not in self._method.roles:
            raise NotAllowed(Reason.ROLE_NOT_ALLOWED, "this role may not call this method")
        _check_metadata(context)
        _check_wanted(call)

    def _receive(self, requests: RawRequests, call: Call) -> bytes | Iterator[Message]:
        if self._method.client_streaming:
            return self._messages(requests, call)
        with call.receiving(self._runtime.patience.body_s):
            data = _next(requests)
            is_one = data is not None and _next(requests) is None
        if call.given_up:
            raise _gone()
        if data is None or not is_one:
            raise MalformedInput(Reason.STREAM_PROTOCOL, "exactly one message is required")
        return data

    def _handle(self, received: bytes | Iterator[Message], call: Call) -> Any:
        if isinstance(received, bytes):
            return self._method.handler(self._method.parser.parse(received), call)
        return self._method.handler(received, call)

    def _messages(self, requests: RawRequests, call: Call) -> Iterator[Message]:
        """What the caller sends, until it has ended its side.

        A caller that is cut off at that moment may look the same: the library tells a little
        later. So a protocol must not take the end of a stream for consent; it needs a last message.
        """
        while not call.drained:
            with call.receiving(self._runtime.patience.idle_s):
                data = _next(requests)
            if data is None:
                break
            call.certificate.check_valid(time.time())
            yield self._method.parser.parse(data)
        if not call.drained and not call.is_active():
            raise _gone()

    def _encode(self, answer: Any) -> bytes:
        if not isinstance(answer, self._method.answer):
            raise InternalFault(Reason.INTERNAL, "a handler answered with another type")
        return answer.SerializeToString()


class SingleAnswer(_Behaviour):
    """For rpcs with one answer."""

    def __call__(self, requests: RawRequests, context: grpc.ServicerContext) -> bytes:
        call, place = self._begin(context)
        span = self._trace(context)
        error: GridveilError | None = None
        try:
            self._check(call, context)
            received = self._receive(requests, call)
            with self._pool.turn(call.time_remaining()):
                _check_wanted(call)
                return self._encode(self._handle(received, call))
        except BaseException as raised:
            error = _refusal(raised, call)
            abort(context, error)
        finally:
            self._observe(call, span, error)
            call.expect_end(self._runtime.patience.take_s)
            place.done()


class AnswerStream(_Behaviour):
    """For rpcs with a stream of answers."""

    def __call__(self, requests: RawRequests, context: grpc.ServicerContext) -> Iterator[bytes]:
        call, place = self._begin(context)
        span = self._trace(context)
        error: GridveilError | None = None
        try:
            self._check(call, context)
            yield from self._answers(requests, call)
            if call.drained:
                raise draining()
        except GeneratorExit:
            error = _gone()
            raise
        except BaseException as raised:
            error = _refusal(raised, call)
            abort(context, error)
        finally:
            self._observe(call, span, error)
            call.expect_end(self._runtime.patience.take_s)
            place.done()

    def _answers(self, requests: RawRequests, call: Call) -> Iterator[bytes]:
        answers = self._handle(self._receive(requests, call), call)
        with closing(_generator(answers)) as encoded:
            for answer in encoded:
                data = self._encode(answer)
                with call.sending(self._runtime.patience.take_s):
                    yield data
                call.certificate.check_valid(time.time())


class _Place:
    """A call's place in its pool: given back when its worker and the wire are done with it."""

    def __init__(self, call: Call, supervisor: Supervisor) -> None:
        self._call = call
        self._supervisor = supervisor
        self._holders = 2
        self._lock = threading.Lock()
        supervisor.add(call)

    def over_on_the_wire(self) -> None:
        self._call.over()
        self.done()

    def done(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._supervisor.remove(self._call)
        self._call.pool.leave()


def abort(context: grpc.ServicerContext, error: GridveilError) -> Never:
    """End a call with the status of a refusal."""
    context.abort_with_status(rpc_status.to_status(to_status(error)))


def draining() -> GridveilError:
    """The answer of a server that is about to stop."""
    return Unavailable(Reason.DRAINING, "the service is about to stop", retry_after_s=1.0)


def _refusal(error: BaseException, call: Call) -> GridveilError:
    if isinstance(error, GridveilError) and not isinstance(error, InternalFault):
        with suppress(Exception):
            _note(error, call)
        return error
    fault_id = uuid.uuid4().hex
    with suppress(Exception):  # a log that cannot be written must not change the answer
        _log.error("call failed", fault_id=fault_id, method=call.method.path, exc_info=error)
    return InternalFault(Reason.INTERNAL, "a defect of the service", fault_id=fault_id)


def _note(error: GridveilError, call: Call) -> None:
    if isinstance(error, IntegrityLost):
        _log.error("integrity lost", method=call.method.path, reason=error.reason)
    elif isinstance(error, NotAuthentic | NotAllowed):
        _log.info("call refused", method=call.method.path, reason=error.reason, peer=call.peer)


def _check_wanted(call: Call) -> None:
    remaining = call.time_remaining()
    if remaining is not None and remaining < MIN_TIME_S:
        raise Unavailable(Reason.DEADLINE_EXCEEDED, "too little time is left for this call")
    if not call.is_active():
        raise _gone()


def _check_metadata(context: grpc.ServicerContext) -> None:
    keys = [key for key, _ in context.invocation_metadata() if key in _SINGLE_METADATA]
    if len(keys) != len(set(keys)):
        raise MalformedInput(Reason.METADATA_DUPLICATE, "a metadata key is sent twice")


def _auth_context(context: grpc.ServicerContext) -> Mapping[str, Iterable[bytes]]:
    # Its stub has bytes; what comes is a list of them.
    return cast(Mapping[str, Iterable[bytes]], context.auth_context())


def _next(requests: RawRequests) -> bytes | None:
    try:
        return next(requests, None)
    except grpc.RpcError:
        raise _gone() from None


def _gone() -> GridveilError:
    return Unavailable(Reason.UNREACHABLE, "the caller is gone")


def _generator(answers: Any) -> Generator[Any]:
    yield from answers
