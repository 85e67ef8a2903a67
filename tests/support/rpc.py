"""A city's certificates, and a server whose handlers a test gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from gridveil import transport
from gridveil.profile import Tls
from gridveil.protocol.errors import GridveilError, NotFound, Reason
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, totals_pb2
from gridveil_services.bootstrap.certificates import Authority, Issued, write_tls_folder
from gridveil_services.rpc import Binding, Role, Server, ServerOptions

CITY = bytes(range(16))
SUBMIT = "/gridveil.v1.Aggregator/SubmitReport"
BATCH = "/gridveil.v1.Aggregator/SubmitReports"
STREAM = "/gridveil.v1.Aggregator/StreamReports"
RELEASE = "/gridveil.v1.KeyHolder/Release"
WATCH = "/gridveil.v1.Totals/WatchTotals"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
SERVICES = [
    file.DESCRIPTOR.services_by_name[name]
    for file, name in (
        (aggregator_pb2, "Aggregator"),
        (keyholder_pb2, "KeyHolder"),
        (totals_pb2, "Totals"),
    )
]

Handler = Callable[[Any, Any], Any]


class Certificates:
    """An authority and what it issued, in files."""

    def __init__(self, folder: Path, city_id: bytes = CITY) -> None:
        self.folder = folder
        self.city_id = city_id
        self.authority = Authority.create(city_id, *validity(days=30))

    def issue(
        self,
        role: Role,
        name: str = "one",
        *,
        valid: tuple[datetime, datetime] | None = None,
        uri_sans: Sequence[str] | None = None,
    ) -> Issued:
        start, end = valid or validity(days=1)
        return self.authority.issue(
            role, name, valid_from=start, valid_until=end, uri_sans=uri_sans
        )

    def tls(self, role: Role, name: str = "one", **issue: Any) -> Tls:
        """A fresh identity in a folder."""
        return self.write(f"{role}-{name}", self.issue(role, name, **issue))

    def write(self, folder: str, issued: Issued) -> Tls:
        write_tls_folder(self.folder / folder, self.authority, issued)
        return tls_in(self.folder / folder)


def tls_in(folder: Path) -> Tls:
    return Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def validity(**length: float) -> tuple[datetime, datetime]:
    """From an hour ago."""
    now = datetime.now(UTC)
    return now - timedelta(hours=1), now + timedelta(**length)


class Handlers:
    """Answers what a test has given a handler for, by its snake-case name."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def __getattr__(self, name: str) -> Handler:
        return self._handlers.get(name, _nothing)


def _nothing(_request: Any, _call: Any) -> Any:
    raise NotFound(Reason.NOT_FOUND, "the test gave no handler")


def options(certificates: Certificates, **changes: Any) -> ServerOptions:
    defaults = {
        "listen": "127.0.0.1:0",
        "tls": certificates.tls(Role.AGGREGATOR),
        "city_id": certificates.city_id,
        "role": Role.AGGREGATOR,
        "max_message_bytes": 7 << 19,
    }
    return ServerOptions(**{**defaults, **changes})


def server(
    certificates: Certificates,
    handlers: Mapping[str, Handler],
    *,
    roles: Mapping[str, set[Role]] | None = None,
    **changes: Any,
) -> Server:
    """Meters and gateways may call everything, unless ``roles`` says otherwise."""
    bindings = [
        Binding(
            descriptor,
            Handlers(handlers),
            {
                name: (roles or {}).get(name, {Role.METER, Role.GATEWAY})
                for name in descriptor.methods_by_name
            },
        )
        for descriptor in SERVICES
    ]
    return Server(bindings, options(certificates, **changes))


class Caller:
    """A channel of one identity that sends bytes as they are."""

    def __init__(
        self, address: str, certificates: Certificates, tls: Tls | None = None, *extra: Any
    ) -> None:
        self.channel: Any = grpc.secure_channel(
            address,
            transport.channel_credentials(tls or certificates.tls(Role.METER)),
            [
                *transport.channel_options("aggregator", certificates.city_id),
                ("grpc.use_local_subchannel_pool", 1),
                *extra,
            ],
        )

    def unary(self, path: str, data: bytes = b"", **call: Any) -> bytes:
        return bytes(self.channel.unary_unary(path)(data, **call))

    def start(self, path: str, data: bytes = b"", **call: Any) -> Any:
        """A unary call that is not waited for."""
        return self.channel.unary_unary(path).future(data, **call)

    def watch(self, path: str, data: bytes = b"", **call: Any) -> Any:
        return self.channel.unary_stream(path)(data, **call)

    def upload(self, path: str, messages: Iterator[bytes], **call: Any) -> Any:
        return self.channel.stream_unary(path).future(messages, **call)

    def stream(self, path: str, messages: Iterator[bytes], **call: Any) -> Any:
        return self.channel.stream_stream(path)(messages, **call)

    def close(self) -> None:
        self.channel.close()


@contextmanager
def serving(
    certificates: Certificates, handlers: Mapping[str, Handler], **changes: Any
) -> Iterator[tuple[Server, Caller]]:
    """A running server and a meter that calls it."""
    with server(certificates, handlers, **changes) as running:
        caller = Caller(running.start(), certificates)
        try:
            yield running, caller
        finally:
            caller.close()


def refusal(call: Callable[[], Any]) -> GridveilError:
    """What a call that must fail is refused with."""
    return transport.from_rpc_error(failure(call))


def failure(call: Callable[[], Any]) -> Any:
    """The raw error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value
