"""What is no call of gRPC at all, or one for somebody else: the service goes on."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from gridveil import transport
from gridveil.profile import Tls
from gridveil.protocol.errors import Reason
from gridveil_services.rpc import Role
from tests.support.boundary import send
from tests.support.corpus import Service, ServingCity, serving_city
from tests.support.http2 import HEADERS, RST_STREAM, SETTINGS, HostileClient, frame
from tests.support.watched import Watched, reason_of, tls_of

PING = 6


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingCity]:
    with serving_city(tmp_path_factory.mktemp("wire")) as city:
        yield city


def test_an_authority_of_another_service_opens_no_other_service(city: ServingCity) -> None:
    """Who is called is settled by the server's certificate, and what by the method's name."""
    service, city_id = city.services["aggregator"], city.local.aggregator_config.city_id
    options = transport.channel_options("aggregator", city_id)
    channel = grpc.secure_channel(
        service.address,
        transport.channel_credentials(tls_of(city, Role.REGISTRAR)),
        [*options, ("grpc.default_authority", transport.server_name("keyholder", city_id))],
    )
    for path in city.services["roster"].paths:
        assert send(channel, path, [b""]).code is grpc.StatusCode.UNIMPLEMENTED
    outcome = send(channel, service.path("SubmitReport"), [b""])
    assert reason_of(outcome) is Reason.ROLE_NOT_ALLOWED
    channel.close()


def flood(service: Service, tls: Tls, frames: bytes, times: int) -> None:
    """Send frames, whether or not the server has had enough of them."""
    enough = suppress(ConnectionError, ssl.SSLError)
    with HostileClient(service.address, tls) as hostile, enough:
        for _ in range(times):
            hostile.send(frames)


def rapid_resets() -> bytes:
    """Streams that are opened and reset at once (CVE-2023-44487)."""
    block = b"\x83\x87\x44\x01\x2f\x41\x01\x61"  # POST, https, /, authority a
    reset = struct.pack(">I", 8)
    return b"".join(
        frame(HEADERS, 4, number, block) + frame(RST_STREAM, 0, number, reset)
        for number in range(1, 4001, 2)
    )


FLOODS = {
    "rapid resets": (rapid_resets(), 1),
    "pings": (frame(PING, 0, 0, bytes(8)) * 1000, 20),
    "settings": (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 1000, 20),
    "empty frames": (frame(0, 0, 1, b"") * 1000, 20),
    "noise": (bytes(range(256)) * 64, 4),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_ends_its_connection_and_no_other(city: ServingCity, name: str) -> None:
    frames, times = FLOODS[name]
    watched = Watched(city, "totals")
    path = watched.service.path("GetTotal")
    base = watched.service.corpus[path][0]
    for _ in range(3):
        flood(watched.service, tls_of(city, Role.METER), frames, times)
        outcome = watched.send(path, base.role, base.messages)
        assert outcome.code is grpc.StatusCode.OK, outcome
    watched.close()


def test_http_1_gets_no_answer_of_a_service(city: ServingCity) -> None:
    service, tls = city.services["totals"], tls_of(city, Role.OPERATOR)
    context = ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    host, port = service.address.rsplit(":", 1)
    path = service.path("GetTotal")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        data = b""
        with suppress(ConnectionError, ssl.SSLError):
            while more := secured.recv(4096):
                data += more
    assert b"200" not in data
    assert path.encode() not in data
