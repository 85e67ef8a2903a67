"""``GET /metrics`` over plain HTTP, bounded in everything: a scraper gets text, others nothing."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.metrics.config import Address

PATH = "/metrics"
MOST_CONNECTIONS = 4
"""More are closed unread."""
LONGEST_S = 5.0
"""Real seconds for a whole request and its answer; then the connection is cut."""


def rendered(registry: CollectorRegistry) -> bytes:
    """The text format 0.0.4, without the times at which counters were made."""
    return generate_latest(_WithoutCreated(registry))


class MetricsServer:
    """Serves one registry from threads of its own. Use as a context manager."""

    def __init__(
        self, address: Address, registry: CollectorRegistry, *, longest_s: float = LONGEST_S
    ) -> None:
        """Listen; CONFIG_INVALID if that is not possible. Port 0 takes a free one."""
        try:
            self._http = _Bounded(address, registry, longest_s)
        except OSError:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                "metrics.listen: cannot listen there",
                field="metrics.listen",
            ) from None
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._http.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}{PATH}"

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass
class _WithoutCreated(Collector):
    registry: CollectorRegistry

    def collect(self) -> Iterable[Metric]:
        for metric in self.registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class _Handler(BaseHTTPRequestHandler):
    server: _Bounded
    server_version = "gridveil"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path != PATH:
            self.send_error(404)
            return
        body = rendered(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Who scrapes is no news, and what was sent is untrusted."""


class _Bounded(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: Address, registry: CollectorRegistry, longest_s: float) -> None:
        self.registry = registry
        self._longest_s = longest_s
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The parent class would look the host's name up.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        cut = threading.Timer(self._longest_s, _cut_off, (request,))
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that leaves is no fault of the service."""


def _cut_off(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
