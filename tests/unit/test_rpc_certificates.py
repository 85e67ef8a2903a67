"""What certificates say, and what is believed of them."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.verification import PolicyBuilder, Store

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.transport import server_name
from gridveil_services.bootstrap.certificates import Authority, Issued
from gridveil_services.rpc import Identity, Role
from gridveil_services.rpc.roles import SERVERS, parse_certificate, peer_certificate, spiffe_id
from tests.support.rpc import CITY, Certificates, validity


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def load(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem)


def reason(pem: bytes, city_id: bytes = CITY) -> Reason:
    with pytest.raises(NotAuthentic) as caught:
        parse_certificate(pem, city_id)
    return caught.value.reason


@pytest.mark.parametrize("role", Role)
def test_issued_certificate_gives_back_role_name_and_validity(
    certificates: Certificates, role: Role
) -> None:
    valid = validity(days=1)
    peer = parse_certificate(
        certificates.issue(role, "berlin-1", valid=valid).certificate_pem, CITY
    )
    assert peer.identity == Identity(role, "berlin-1")
    assert (peer.not_before, peer.not_after) == tuple(int(time.timestamp()) for time in valid)


@pytest.mark.parametrize("role", Role)
def test_independent_verifier_accepts_each_certificate_for_its_purpose(
    certificates: Certificates, role: Role
) -> None:
    """The verifier of another library, which follows the profile of RFC 5280."""
    certificate = load(certificates.issue(role))
    root = x509.load_pem_x509_certificate(certificates.authority.certificate_pem)
    policy = PolicyBuilder().store(Store([root])).time(datetime.now(UTC))
    client = policy.build_client_verifier().verify(certificate, [])
    uris = [name.value for name in client.subjects or [] if not isinstance(name, x509.DNSName)]
    assert spiffe_id(CITY, role, "one") in uris
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (Usage.SERVER_AUTH in purposes) == (role in SERVERS)
    if role in SERVERS:
        policy.build_server_verifier(x509.DNSName(server_name(role, CITY))).verify(certificate, [])


def test_no_client_certificate_has_a_dns_name(certificates: Certificates) -> None:
    certificate = load(certificates.issue(Role.METER))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [spiffe_id(CITY, "meter", "a"), spiffe_id(CITY, "registrar", "a")],
        [spiffe_id(CITY, "meter", "a")] * 2,
        [spiffe_id(b"x" * 16, "meter", "a")],
        [spiffe_id(CITY, "mayor", "a")],
        [spiffe_id(CITY, "METER", "a")],
        [spiffe_id(CITY, "meter", "")],
        [spiffe_id(CITY, "meter", "..")],
        [spiffe_id(CITY, "meter", "a/b")],
        [spiffe_id(CITY, "meter", "a") + "?role=registrar"],
        [spiffe_id(CITY, "meter", "a") + "#"],
        [spiffe_id(CITY, "meter", "a%00")],
        [spiffe_id(CITY, "meter", "a" * 65)],
        [spiffe_id(CITY, "meter", "a").replace("spiffe:", "https:")],
        [spiffe_id(CITY, "meter", "a").replace("://", "://user@")],
        [spiffe_id(CITY, "meter", "a").replace(".gridveil", ".gridveil:443")],
        [spiffe_id(CITY, "meter", "a").replace(".gridveil", ".gridveil.example")],
    ],
)
def test_anything_but_one_name_of_the_city_is_a_bad_identity(
    certificates: Certificates, uris: list[str]
) -> None:
    assert reason(certificates.issue(Role.METER, uri_sans=uris).certificate_pem) is (
        Reason.BAD_IDENTITY
    )


@pytest.mark.parametrize("pem", [b"", b"noise", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_bytes_that_are_no_certificate_are_a_bad_identity(pem: bytes) -> None:
    assert reason(pem) is Reason.BAD_IDENTITY


def test_certificate_is_of_one_city_only(certificates: Certificates) -> None:
    assert reason(certificates.issue(Role.METER).certificate_pem, bytes(16)) is Reason.BAD_IDENTITY


def test_caller_without_certificate_is_a_bad_identity() -> None:
    with pytest.raises(NotAuthentic) as caught:
        peer_certificate({}, CITY)
    assert caught.value.reason is Reason.BAD_IDENTITY


@pytest.mark.parametrize(("days", "valid"), [(-2, False), (0, True), (2, False)])
def test_certificate_counts_only_within_its_validity(
    certificates: Certificates, days: int, valid: bool
) -> None:
    peer = parse_certificate(certificates.issue(Role.METER).certificate_pem, CITY)
    moment = (datetime.now(UTC) + timedelta(days=days)).timestamp()
    if valid:
        peer.check_valid(moment)
        return
    with pytest.raises(NotAuthentic) as caught:
        peer.check_valid(moment)
    assert caught.value.reason is Reason.CERT_EXPIRED


def test_authority_from_its_folder_issues_what_the_first_one_vouches_for(
    certificates: Certificates, tmp_path: Path
) -> None:
    certificates.authority.write(tmp_path / "ca")
    loaded = Authority.load(tmp_path / "ca")
    assert loaded.city_id == CITY
    assert loaded.certificate_pem == certificates.authority.certificate_pem
    start, end = validity(days=1)
    issued = load(loaded.issue(Role.METER, "one", valid_from=start, valid_until=end))
    issued.verify_directly_issued_by(
        x509.load_pem_x509_certificate(certificates.authority.certificate_pem)
    )


@pytest.mark.parametrize("spoil", ["missing", "noise", "foreign key", "no certificate"])
def test_folder_that_is_no_authority_is_refused(
    certificates: Certificates, tmp_path: Path, spoil: str
) -> None:
    folder = tmp_path / "ca"
    if spoil != "missing":
        certificates.authority.write(folder)
    if spoil == "noise":
        (folder / "ca-key.pem").write_bytes(b"noise")
    if spoil == "foreign key":
        (folder / "ca-key.pem").write_bytes(certificates.issue(Role.METER).key_pem)
    if spoil == "no certificate":
        (folder / "ca.pem").write_bytes(b"")
    with pytest.raises(MalformedInput) as caught:
        Authority.load(folder)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_secrets_are_readable_by_their_owner_only_and_never_printed(
    certificates: Certificates, tmp_path: Path
) -> None:
    certificates.authority.write(tmp_path / "ca")
    tls = certificates.tls(Role.METER)
    for path in (tmp_path / "ca" / "ca-key.pem", tls.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"PRIVATE KEY" in path.read_bytes()
    assert "PRIVATE" not in repr(certificates.issue(Role.METER))
