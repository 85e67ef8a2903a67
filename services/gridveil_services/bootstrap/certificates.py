"""The development certificate authority of a city (X.509, RFC 5280; names as SPIFFE ids).

A certificate says which role of which city its holder has, in exactly one URI name
``spiffe://<city id>.gridveil/<role>/<name>``. It never says which meter a report is from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gridveil.files import make_folder, write_durably
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.transport import server_name
from gridveil_services.rpc.roles import SERVERS, Role, spiffe_id

CERTIFICATE = "ca.pem"
KEY = "ca-key.pem"
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return "Issued(...)"


class Authority:
    """Issues certificates to the parties of one city."""

    def __init__(
        self, city_id: bytes, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.city_id = city_id
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, city_id: bytes, valid_from: datetime, valid_until: datetime) -> Authority:
        """A new authority with a key of its own; times are aware."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("authority", city_id)
        certificate = (
            _builder(name, name, key.public_key(), valid_from, valid_until)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(city_id, certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority in a city's ``ca`` folder; CONFIG_INVALID if it is not one."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
            key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
            unit = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            city_id = bytes.fromhex(str(unit[0].value))
        except (OSError, ValueError, TypeError, IndexError):
            raise _unusable(folder) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _unusable(folder)
        if certificate.public_key() != key.public_key():
            raise _unusable(folder)
        return cls(city_id, certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, folder: Path) -> None:
        """Keep the authority in a city's ``ca`` folder, durably."""
        make_folder(folder)
        write_durably(folder / KEY, _key_pem(self._key))
        write_durably(folder / CERTIFICATE, self.certificate_pem)

    def issue(
        self,
        role: Role,
        name: str,
        *,
        valid_from: datetime,
        valid_until: datetime,
        dns_names: Sequence[str] = (),
        uri_sans: Sequence[str] | None = None,
    ) -> Issued:
        """A certificate and key for a party; services also get their DNS names.

        Args:
            role: what the holder may do.
            name: which holder of the role, for logs.
            valid_from: first valid moment, aware.
            valid_until: last valid moment, aware.
            dns_names: further names that a service is reached under.
            uri_sans: instead of the one right URI name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        uris = [spiffe_id(self.city_id, role, name)] if uri_sans is None else uri_sans
        server = role in SERVERS
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        if server:
            names += self._server_names(role, dns_names)
        subject = _name(f"{role}/{name}", self.city_id)
        issuer = self._certificate
        builder = (
            _builder(issuer.subject, subject, key.public_key(), valid_from, valid_until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_purposes(server=server)), critical=False)
            .add_extension(self._authority_key(), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def _server_names(self, role: Role, dns_names: Iterable[str]) -> list[x509.GeneralName]:
        dns = [server_name(role, self.city_id), "localhost", *dns_names]
        return [*map(x509.DNSName, dict.fromkeys(dns)), *map(x509.IPAddress, _LOOPBACK)]

    def _authority_key(self) -> x509.AuthorityKeyIdentifier:
        subject_key = self._certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key.value)


def write_tls_folder(folder: Path, authority: Authority, issued: Issued) -> None:
    """Give a party its TLS identity: ``ca.pem``, ``cert.pem`` and ``key.pem``, durably."""
    make_folder(folder)
    write_durably(folder / "key.pem", issued.key_pem)
    write_durably(folder / "ca.pem", authority.certificate_pem)
    write_durably(folder / "cert.pem", issued.certificate_pem)


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid_from: datetime,
    valid_until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str, city_id: bytes) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, city_id.hex()),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(*, server: bool) -> list[x509.ObjectIdentifier]:
    client = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return [*client, ExtendedKeyUsageOID.SERVER_AUTH] if server else client


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _unusable(folder: Path) -> MalformedInput:
    return MalformedInput(
        Reason.CONFIG_INVALID, f"{folder.name}: {CERTIFICATE} and {KEY} are no authority of a city"
    )
