"""Who may call, over real connections. A refused call never reaches a handler."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from gridveil import transport
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.v1 import keyholder_pb2, report_pb2
from gridveil_services.bootstrap.certificates import Authority, write_tls_folder
from gridveil_services.rpc import Call, Role, Server
from gridveil_services.rpc.roles import spiffe_id
from tests.support.rpc import (
    BATCH,
    CITY,
    RELEASE,
    STREAM,
    SUBMIT,
    Caller,
    Certificates,
    Handler,
    failure,
    options,
    refusal,
    server,
    tls_in,
    validity,
)

NOISE = b"\xff\xff\xff"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("city"))


class Record:
    """Handlers that note who reached them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.peers: set[str] = set()

    def note(self, call: Call) -> None:
        self.calls.append(call)
        self.peers.add(call.peer)

    def submit(self, _request: Any, call: Call) -> report_pb2.Receipt:
        self.note(call)
        return report_pb2.Receipt(report_digest=call.identity.name.encode())

    def upload(self, messages: Iterator[Any], call: Call) -> keyholder_pb2.ReleaseReceipt:
        self.note(call)
        return keyholder_pb2.ReleaseReceipt(replayed=bool(list(messages)))

    def stream(self, reports: Iterator[Any], call: Call) -> Iterator[report_pb2.ReportOutcome]:
        self.note(call)
        for index, _ in enumerate(reports):
            yield report_pb2.ReportOutcome(index=index)


@pytest.fixture(scope="module")
def record() -> Record:
    return Record()


@pytest.fixture(scope="module")
def running(certificates: Certificates, record: Record) -> Iterator[Server]:
    handlers: dict[str, Handler] = {
        "submit_report": record.submit,
        "stream_reports": record.stream,
        "release": record.upload,
    }
    with server(certificates, handlers, roles={"SubmitReports": {Role.GATEWAY}}) as started:
        started.start()
        yield started


@pytest.fixture(autouse=True)
def forget(record: Record) -> None:
    record.calls.clear()
    record.peers.clear()


def address(running: Server) -> str:
    assert running.address is not None
    return running.address


def test_handler_sees_the_role_and_name_of_the_certificate(
    running: Server, certificates: Certificates, record: Record
) -> None:
    caller = Caller(address(running), certificates, certificates.tls(Role.GATEWAY, "roof-7"))
    assert report_pb2.Receipt.FromString(caller.unary(SUBMIT)).report_digest == b"roof-7"
    assert record.calls[0].identity.role is Role.GATEWAY


def test_plaintext_on_the_tls_port_is_unavailable(running: Server, record: Record) -> None:
    with grpc.insecure_channel(address(running)) as channel:
        call: Any = channel.unary_unary(SUBMIT)
        assert failure(lambda: call(b"")).code() is grpc.StatusCode.UNAVAILABLE
    assert not record.calls


def test_no_client_certificate_is_unavailable(
    running: Server, certificates: Certificates, record: Record
) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.authority.certificate_pem)
    options = transport.channel_options("aggregator", CITY)
    with grpc.secure_channel(address(running), credentials, options) as channel:
        call: Any = channel.unary_unary(SUBMIT)
        assert failure(lambda: call(b"")).code() is grpc.StatusCode.UNAVAILABLE
    assert not record.calls


@pytest.mark.parametrize("days", [(-2, -1), (1, 2)], ids=["expired", "not yet valid"])
def test_certificate_outside_its_validity_is_unavailable(
    running: Server, certificates: Certificates, record: Record, days: tuple[int, int]
) -> None:
    now = datetime.now(UTC)
    valid = now + timedelta(days=days[0]), now + timedelta(days=days[1])
    caller = Caller(
        address(running), certificates, certificates.tls(Role.METER, "old", valid=valid)
    )
    assert failure(lambda: caller.unary(SUBMIT)).code() is grpc.StatusCode.UNAVAILABLE
    assert not record.calls


def test_certificate_of_another_authority_is_unavailable(
    running: Server, certificates: Certificates, record: Record, tmp_path: Path
) -> None:
    start, end = validity(days=1)
    foreign = Authority.create(CITY, start, end)
    issued = foreign.issue(Role.METER, "one", valid_from=start, valid_until=end)
    write_tls_folder(tmp_path / "foreign", certificates.authority, issued)
    caller = Caller(address(running), certificates, tls_in(tmp_path / "foreign"))
    assert failure(lambda: caller.unary(SUBMIT)).code() is grpc.StatusCode.UNAVAILABLE
    assert not record.calls


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [spiffe_id(CITY, "meter", "one"), spiffe_id(CITY, "gateway", "one")],
        [spiffe_id(bytes(16), "meter", "one")],
        [spiffe_id(CITY, "mayor", "one")],
    ],
    ids=["no name", "two names", "other city", "other role"],
)
@pytest.mark.parametrize("path", [SUBMIT, STREAM])
def test_certificate_without_exactly_one_name_of_the_city_is_a_bad_identity(
    running: Server, certificates: Certificates, record: Record, uris: list[str], path: str
) -> None:
    caller = Caller(
        address(running), certificates, certificates.tls(Role.METER, "bad", uri_sans=uris)
    )
    error = failure(lambda: list(caller.stream(path, iter([b""]))))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert transport.from_rpc_error(error).reason is Reason.BAD_IDENTITY
    assert not record.calls


def test_certificate_that_expires_while_its_connection_lives_is_refused(
    running: Server, certificates: Certificates, record: Record
) -> None:
    """TLS looks at a certificate once; calls and streams on the connection must notice later."""
    end = (datetime.now(UTC) + timedelta(seconds=4)).replace(microsecond=0)
    tls = certificates.tls(Role.METER, "mayfly", valid=(end - timedelta(hours=1), end))
    caller = Caller(address(running), certificates, tls)
    chatty, silent = caller.stream(STREAM, talk()), caller.stream(STREAM, silence())
    upload = caller.upload(RELEASE, talk())
    next(chatty)
    last_unary = unary_until_refused(caller, record)
    assert last_unary.reason is Reason.CERT_EXPIRED
    assert refusal(lambda: list(chatty)).reason is Reason.CERT_EXPIRED
    assert refusal(upload.result).reason is Reason.CERT_EXPIRED
    assert failure(lambda: list(silent)).code() is grpc.StatusCode.CANCELLED
    assert datetime.now(UTC) >= end
    assert len(record.peers) == 1, "it was more than one connection"


def unary_until_refused(caller: Caller, record: Record) -> GridveilError:
    while True:
        handled = len(record.calls)
        try:
            caller.unary(SUBMIT)
        except grpc.RpcError as error:
            assert len(record.calls) == handled
            return transport.from_rpc_error(error)
        time.sleep(0.1)


def talk() -> Iterator[bytes]:
    while True:
        yield b""
        time.sleep(0.05)


def silence() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


@pytest.mark.parametrize("role", sorted(set(Role) - {Role.GATEWAY}))
def test_wrong_role_is_refused_before_the_body_is_parsed(
    running: Server, certificates: Certificates, record: Record, role: Role
) -> None:
    caller = Caller(address(running), certificates, certificates.tls(role, "curious"))
    error = failure(lambda: caller.unary(BATCH, NOISE))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert transport.from_rpc_error(error).reason is Reason.ROLE_NOT_ALLOWED
    assert not record.calls


def test_wrong_role_is_refused_before_the_body_is_sent(
    running: Server, certificates: Certificates
) -> None:
    caller = Caller(address(running), certificates)
    assert refusal(caller.upload(BATCH, silence()).result).reason is Reason.ROLE_NOT_ALLOWED


@pytest.mark.parametrize(
    "path",
    [
        "/gridveil.v1.Aggregator/Unknown",
        "/gridveil.v1.Unknown/SubmitReport",
        "/gridveil.v1.aggregator/SubmitReport",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/",
    ],
)
def test_what_is_not_bound_is_unimplemented(
    running: Server, certificates: Certificates, path: str
) -> None:
    caller = Caller(address(running), certificates)
    assert failure(lambda: caller.unary(path)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_security_metadata_sent_twice_is_refused(
    running: Server, certificates: Certificates, record: Record
) -> None:
    caller = Caller(address(running), certificates)
    twice = [("x-forwarded-client-cert", "a"), ("x-forwarded-client-cert", "b")]
    assert refusal(lambda: caller.unary(SUBMIT, metadata=twice)).reason is Reason.METADATA_DUPLICATE
    assert not record.calls
    caller.unary(SUBMIT, metadata=twice[:1])


@pytest.mark.parametrize("role", [Role.KEYHOLDER, Role.TOTALS])
def test_client_refuses_a_server_of_another_role(
    certificates: Certificates, tmp_path: Path, role: Role
) -> None:
    served = certificates.tls(role, "impostor")
    with server(certificates, {}, role=role, tls=served) as impostor:
        caller = Caller(impostor.start(), certificates)
        assert failure(lambda: caller.unary(SUBMIT)).code() is grpc.StatusCode.UNAVAILABLE


class TestServersOwnIdentity:
    """A server with a wrong identity does not start; a renewed one is used at once."""

    def reason_not_to_start(self, certificates: Certificates, **changes: Any) -> str:
        with pytest.raises(MalformedInput) as caught:
            Server([], options(certificates, **changes)).start()
        assert caught.value.reason is Reason.CONFIG_INVALID
        return caught.value.message

    def test_certificate_of_another_role(self, certificates: Certificates) -> None:
        tls = certificates.tls(Role.METER)
        assert "tls.certificate" in self.reason_not_to_start(certificates, tls=tls)

    def test_expired_certificate(self, certificates: Certificates) -> None:
        now = datetime.now(UTC)
        tls = certificates.tls(
            Role.AGGREGATOR, "old", valid=(now - timedelta(days=2), now - timedelta(days=1))
        )
        assert "tls.certificate" in self.reason_not_to_start(certificates, tls=tls)

    def test_key_of_another_certificate(self, certificates: Certificates) -> None:
        tls = certificates.tls(Role.AGGREGATOR, "mixed")
        tls.key.write_bytes(certificates.issue(Role.AGGREGATOR).key_pem)
        assert "tls.key" in self.reason_not_to_start(certificates, tls=tls)

    @pytest.mark.parametrize("part", ["ca", "certificate", "key"])
    @pytest.mark.parametrize("spoil", ["missing", "noise"])
    def test_file_that_cannot_be_used(
        self, certificates: Certificates, part: str, spoil: str
    ) -> None:
        tls = certificates.tls(Role.AGGREGATOR, f"{part}-{spoil}")
        path: Path = getattr(tls, part)
        path.unlink() if spoil == "missing" else path.write_bytes(b"noise")
        message = self.reason_not_to_start(certificates, tls=tls)
        assert f"tls.{part}" in message
        assert str(path.parent) not in message

    def test_address_in_use(self, certificates: Certificates, running: Server) -> None:
        assert "listen" in self.reason_not_to_start(certificates, listen=address(running))

    def test_renewed_certificate_is_served_without_a_restart(
        self, certificates: Certificates
    ) -> None:
        tls = certificates.tls(Role.AGGREGATOR, "renewed")
        with server(certificates, {}, tls=tls) as running:
            target = running.start()
            first = served_serial(target, certificates)
            certificates.tls(Role.AGGREGATOR, "renewed")
            second = served_serial(target, certificates)
            tls.certificate.write_bytes(b"noise")
            assert second != first
            assert served_serial(target, certificates) == second


def served_serial(target: str, certificates: Certificates) -> int:
    """The serial number of the certificate that a new connection is shown."""
    tls = certificates.tls(Role.METER)
    context = ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    host, port = target.split(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
