"""A collector of traces: takes what services send as OTLP over gRPC, and keeps it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gridveil.tracing.settings import TracingSettings

_EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True)
class Seen:
    """A span and who sent it."""

    service: str
    span: Span

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def attributes(self) -> dict[str, str | int]:
        return _plain(self.span.attributes)


@dataclass
class Collector:
    """What came in so far."""

    settings: TracingSettings
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(
        self, request: ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        with self._lock:
            self.requests.append(request)
        return ExportTraceServiceResponse()

    def spans(self) -> list[Seen]:
        with self._lock:
            return [
                Seen(str(_plain(resource.resource.attributes)["service.name"]), span)
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def named(self, service: str, name: str) -> list[Seen]:
        return [seen for seen in self.spans() if (seen.service, seen.name) == (service, name)]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    collector = Collector(TracingSettings(f"127.0.0.1:{port}", secure=False, sample=1.0))
    method = grpc.unary_unary_rpc_method_handler(
        collector.take,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_EXPORT, {"Export": method}),)
    )
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _plain(attributes: Iterable[KeyValue]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        assert kind in {"string_value", "int_value"}, pair.key
        found[pair.key] = getattr(pair.value, kind)
    return found
