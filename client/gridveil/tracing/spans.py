"""What there is to trace, for whoever does; without a configuration, nobody does."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.tracing.settings import TracingSettings

Metadata = tuple[tuple[str, str], ...]
"""Of a gRPC call."""


class ServedSpan(Protocol):
    """The span of a call that is served."""

    def end(self, reason: Reason | None) -> None:
        """The call is handled, or refused with a reason. Neither blocks nor raises."""


class Tracer(Protocol):
    """Makes spans. Thread-safe; never blocks, and raises nothing of its own.

    A span is told its name, a count of reports, and the reason of a GridveilError that leaves
    it; nothing else, so that no reading, meter, window or message can get into one.
    """

    def serve(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, current: bool
    ) -> ServedSpan:
        """Begin the span of a call that has come in.

        Args:
            method: the path of a method that the server has.
            metadata: the caller's, untrusted.
            current: whether spans that this thread makes until its end belong below it.
        """
        ...

    def call(self, method: str) -> AbstractContextManager[Metadata | None]:
        """Around a call to another service, with the metadata to send.

        Args:
            method: ``package.Service/Method``.
        """
        ...

    def span(self, name: str, reports: int | None = None) -> AbstractContextManager[object]:
        """Around some work: below this thread's current span, else the first of a trace."""
        ...

    def step(self, name: str) -> AbstractContextManager[object]:
        """Around a part of the current span's work; nothing if there is no such span."""
        ...

    def close(self) -> None:
        """Send what was not sent yet, for a few seconds at the most."""


class Untraced:
    """Traces nothing."""

    def serve(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, current: bool
    ) -> ServedSpan:
        return _UNTRACED_SPAN

    def call(self, method: str) -> AbstractContextManager[Metadata | None]:
        return _NO_METADATA

    def span(self, name: str, reports: int | None = None) -> AbstractContextManager[object]:
        return _NO_METADATA

    def step(self, name: str) -> AbstractContextManager[object]:
        return _NO_METADATA

    def close(self) -> None:
        pass


class _UntracedSpan:
    def end(self, reason: Reason | None) -> None:
        pass


_UNTRACED_SPAN = _UntracedSpan()
_NO_METADATA: AbstractContextManager[None] = nullcontext()


def make_tracer(settings: TracingSettings | None, service: str) -> Tracer:
    """A tracer of a service; OpenTelemetry is loaded only if there are settings.

    Raises:
        MalformedInput: CONFIG_INVALID if OpenTelemetry is not installed.
    """
    if settings is None:
        return Untraced()
    try:
        from gridveil.tracing.otel import OpenTelemetryTracer
    except ImportError:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "tracing needs the extra otel", field="tracing"
        ) from None
    return OpenTelemetryTracer(settings, service)
