"""A server's own handlers, called as gRPC calls them, in this thread: bytes in, a status out.

For tests that make more calls than sockets are worth. Everything of ours takes part: identity and
role from a certificate, deadline, strict parsing, handler, errors to status. Left out is gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Never

import grpc

from gridveil_services.rpc import Server
from gridveil_services.rpc.admission import WorkerPool
from gridveil_services.rpc.behaviour import AnswerStream, Patience, Runtime, SingleAnswer
from gridveil_services.rpc.binding import Method
from gridveil_services.rpc.supervision import Supervisor

MOST_ANSWERS = 20
"""Taken of a stream, which may have no end."""
WATCH_S = 0.3
"""Over gRPC a watch is waited for that long: some have nothing to say."""
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass
class Outcome:
    """What a caller sees."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    told: bytes = b""
    """Every byte of the refusal: message and details."""
    answers: list[bytes] = field(default_factory=list)


class Aborted(Exception):
    """What gRPC raises in a handler that aborts."""


class Context(grpc.ServicerContext):
    """A call as gRPC presents it to a handler."""

    def __init__(
        self, certificate: bytes, metadata: Metadata, remaining_s: float, leaves: bool
    ) -> None:
        """``leaves``: the caller is gone as soon as its call is under way."""
        self.outcome = Outcome()
        self._certificate = certificate
        self._metadata = metadata
        self._remaining_s = remaining_s
        self._active = True
        self._leaves = leaves
        self._callbacks: list[Callable[[], None]] = []

    def finish(self) -> None:
        """The call is over on the wire."""
        self._active = False
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:  # type: ignore[override]
        return {"x509_pem_cert": [self._certificate]} if self._certificate else {}

    def abort_with_status(self, status: Any) -> Never:
        told = [status.details.encode(), *(value for _, value in status.trailing_metadata)]
        self.outcome.code, self.outcome.told = status.code, b"\0".join(told)
        raise Aborted

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return True

    def invocation_metadata(self) -> Any:
        return self._metadata

    def is_active(self) -> bool:
        active = self._active
        self._active = active and not self._leaves
        return active

    def time_remaining(self) -> float:
        return self._remaining_s

    def cancel(self) -> bool:
        self.finish()
        return True

    def peer(self) -> str:
        return "test"

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        raise NotImplementedError

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        raise NotImplementedError

    def abort(self, code: Any, details: str) -> Never:
        raise NotImplementedError

    def set_code(self, code: Any) -> None:
        raise NotImplementedError

    def set_details(self, details: str) -> None:
        raise NotImplementedError


class Boundary:
    """The methods of a server that may be started or not."""

    def __init__(self, server: Server) -> None:
        self.methods: dict[str, Method] = {
            method.path: method for binding in server.bindings for method in binding.methods()
        }
        self._runtime = Runtime(server.options.city_id, Patience(), Supervisor())
        self._pool = WorkerPool("boundary", 4, 8)

    def call(
        self,
        path: str,
        messages: Sequence[bytes],
        certificate: bytes,
        *,
        metadata: Metadata = (),
        remaining_s: float = 10.0,
    ) -> Outcome:
        """Make a call; of a stream of answers the first few are taken.

        The caller of a method that watches leaves when it has been taken in: there is no other
        end to it.
        """
        method = self.methods[path]
        leaves = method.name.startswith("Watch")
        context = Context(certificate, metadata, remaining_s, leaves)
        self._pool.enter()
        try:
            if method.server_streaming:
                self._take(AnswerStream(method, self._pool, self._runtime), messages, context)
            else:
                behaviour = SingleAnswer(method, self._pool, self._runtime)
                context.outcome.answers.append(behaviour(iter(messages), context))
        except Aborted:
            pass
        finally:
            context.finish()
        return context.outcome

    def _take(self, behaviour: AnswerStream, messages: Sequence[bytes], context: Context) -> None:
        answers: Iterator[bytes] = behaviour(iter(messages), context)
        context.outcome.answers += islice(answers, MOST_ANSWERS)


def send(
    channel: grpc.Channel,
    path: str,
    messages: Sequence[bytes],
    metadata: Metadata = (),
    *,
    timeout_s: float = 20,
) -> Outcome:
    """Make a call over gRPC: on the wire any call looks like a stream on both sides."""
    stub: Any = channel.stream_stream(path)
    watches = "/Watch" in path
    call = stub(iter(messages), metadata=metadata, timeout=timeout_s)
    outcome = Outcome()
    try:
        for answer in call:
            outcome.answers.append(bytes(answer))
            if watches or len(outcome.answers) == MOST_ANSWERS:
                call.cancel()
                break
    except grpc.RpcError as error:
        failed: Any = error
        details = [value for _, value in failed.trailing_metadata() or ()]
        shown = [value if isinstance(value, bytes) else value.encode() for value in details]
        outcome.code = failed.code()
        outcome.told = b"\0".join([(failed.details() or "").encode(), *shown])
    return outcome
