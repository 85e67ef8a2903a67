"""The standard health service (grpc.health.v1), for every identity of the city."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from grpc_health.v1 import health_pb2

from gridveil.protocol.errors import NotFound, Reason
from gridveil_services.rpc.binding import Binding
from gridveil_services.rpc.call import Call
from gridveil_services.rpc.roles import Role

_Response = health_pb2.HealthCheckResponse
_pb2: Any = health_pb2  # its stubs lack HealthList and type descriptors privately


class Health:
    """Whether the services of a server answer. The empty name is the server itself."""

    def __init__(
        self, services: Iterable[str], is_ready: Callable[[], bool] = lambda: True
    ) -> None:
        """``is_ready`` is asked for each answer; watchers learn what the last look found."""
        self._services = frozenset({"", *services})
        self._is_ready = is_ready
        self._serving = True
        self._changed = threading.Condition()

    def look(self) -> None:
        """Find out whether the services are ready now, and tell watchers."""
        serving = self._is_ready()
        with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def check(
        self, request: health_pb2.HealthCheckRequest, _call: Call
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            raise NotFound(Reason.NOT_FOUND, "there is no such service here")
        self.look()
        return self._response(request.service)

    def list(self, _request: Any, _call: Call) -> Any:
        self.look()
        statuses = {name: self._response(name) for name in self._services}
        return _pb2.HealthListResponse(statuses=statuses)

    def watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        call.on_end(self._wake)
        known: int | None = None
        while call.is_active():
            status = self._status(request.service)
            if status != known:
                known = status
                yield _Response(status=status)
            self._wait_for_change(request.service, status, call)

    def _wait_for_change(self, service: str, known: int, call: Call) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._status(service) != known or not call.is_active())

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        return _Response(status=self._status(service))

    def _status(self, service: str) -> int:
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self._serving else _Response.NOT_SERVING


def health_binding(health: Health) -> Binding:
    """The service for a server."""
    descriptor = _pb2.DESCRIPTOR.services_by_name["Health"]
    return Binding(descriptor, health, {name: set(Role) for name in descriptor.methods_by_name})
