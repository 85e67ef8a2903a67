"""Spans with OpenTelemetry, sent as OTLP over gRPC. Loaded only where traces are configured."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Token

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from gridveil.protocol.errors import GridveilError, Reason
from gridveil.tracing.settings import TracingSettings
from gridveil.tracing.spans import Metadata, ServedSpan, Untraced
from gridveil.tracing.traceparent import KEY, Caller, encode, parse

EXPORT_S = 5.0
"""For sending a batch of spans, tried again meanwhile; then it is dropped."""
CLOSE_S = 2.0
"""For sending what is left at the end."""
_UNTRACED_SERVICES = "/grpc.health."
"""Asked every few seconds, by people and probes."""


class OpenTelemetryTracer:
    """Implements ``tracing.spans.Tracer`` with a provider of its own."""

    def __init__(self, settings: TracingSettings, service: str) -> None:
        """Connects in the background; what cannot be sent is dropped."""
        ratio = TraceIdRatioBased(settings.sample)
        # What a caller wants to have sampled is for the own ratio to decide.
        sampler = ParentBased(
            ratio, remote_parent_sampled=ratio, remote_parent_not_sampled=ALWAYS_OFF
        )
        # Not Resource.create: it adds what the environment and the process say.
        resource = Resource({"service.name": f"gridveil-{service}"})
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(
            endpoint=settings.address, insecure=not settings.secure, timeout=EXPORT_S
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("gridveil")

    def serve(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, current: bool
    ) -> ServedSpan:
        if method.startswith(_UNTRACED_SERVICES):
            return Untraced().serve(method, metadata, current=current)
        # An empty context: what another call has left in this thread is not this one's.
        span = self._begin(
            method.removeprefix("/"), SpanKind.SERVER, _remote(parse(metadata), Context())
        )
        return _Served(span, current=current)

    @contextmanager
    def call(self, method: str) -> Iterator[Metadata | None]:
        with self._around(self._begin(method, SpanKind.CLIENT)) as span:
            made = span.get_span_context()
            caller = Caller(made.trace_id, made.span_id, made.trace_flags.sampled)
            yield ((KEY, encode(caller)),)

    @contextmanager
    def span(self, name: str, reports: int | None = None) -> Iterator[object]:
        span = self._tracer.start_span(name)
        if reports is not None:
            span.set_attribute("gridveil.reports", reports)
        with self._around(span):
            yield None

    @contextmanager
    def step(self, name: str) -> Iterator[object]:
        if not trace.get_current_span().is_recording():
            yield None
            return
        with self._around(self._tracer.start_span(name)):
            yield None

    def close(self) -> None:
        # The provider itself would wait for half a minute.
        cut = threading.Timer(CLOSE_S, self._exporter.shutdown)
        cut.daemon = True
        cut.start()
        with suppress(Exception):  # no trace is worth an orderly end
            self._provider.shutdown()
        cut.cancel()

    def _begin(self, method: str, kind: SpanKind, parent: Context | None = None) -> Span:
        attributes = {"rpc.system": "grpc", "rpc.method": method}
        return self._tracer.start_span(method, parent, kind, attributes)

    @contextmanager
    def _around(self, span: Span) -> Iterator[Span]:
        # Not use_span's own way with exceptions: their texts and stacks are not for spans.
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield span
            except GridveilError as error:
                _fail(span, error.reason)
                raise
            except Exception:
                _fail(span, Reason.INTERNAL)
                raise


class _Served:
    def __init__(self, span: Span, *, current: bool) -> None:
        self._span = span
        self._token: Token[Context] | None = None
        if current:
            self._token = otel_context.attach(trace.set_span_in_context(span, Context()))

    def end(self, reason: Reason | None) -> None:
        token, self._token = self._token, None
        if token is not None:
            otel_context.detach(token)
        if reason is not None:
            _fail(self._span, reason)
        self._span.end()


def _remote(caller: Caller | None, context: Context) -> Context:
    if caller is None:
        return context
    flags = TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT)
    remote = SpanContext(caller.trace_id, caller.span_id, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(remote), context)


def _fail(span: Span, reason: Reason) -> None:
    span.set_attribute("gridveil.reason", reason.value)
    span.set_status(Status(StatusCode.ERROR, reason.value))
