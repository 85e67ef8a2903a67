"""Who calls: the role that a peer's certificate gives it (X.509; names as SPIFFE ids)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cryptography import x509

from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.transport import DOMAIN


class Role(StrEnum):
    """What a party may be in a city."""

    METER = "meter"
    GATEWAY = "gateway"
    AGGREGATOR = "aggregator"
    KEYHOLDER = "keyholder"
    TOTALS = "totals"
    CONTROLLER = "controller"
    REGISTRAR = "registrar"
    OPERATOR = "operator"
    AUDITOR = "auditor"


SERVERS = frozenset({Role.AGGREGATOR, Role.CONTROLLER, Role.KEYHOLDER, Role.TOTALS})
"""Roles that listen."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Identity:
    """A proven caller."""

    role: Role
    name: str


@dataclass(frozen=True)
class PeerCertificate:
    """What a certificate says about its holder. Times are Unix seconds."""

    identity: Identity
    not_before: float
    not_after: float

    def check_valid(self, now: float) -> None:
        """CERT_EXPIRED outside the validity; ``now`` is the machine's clock."""
        if not self.not_before <= now <= self.not_after:
            raise NotAuthentic(Reason.CERT_EXPIRED, "the certificate is not valid at this time")


def spiffe_id(city_id: bytes, role: str, name: str) -> str:
    """The one URI name in the certificate of a party."""
    return f"spiffe://{trust_domain(city_id)}/{role}/{name}"


def trust_domain(city_id: bytes) -> str:
    """The authority part of every name in a city."""
    return f"{city_id.hex()}.{DOMAIN}"


def peer_certificate(
    auth_context: Mapping[str, Iterable[bytes]], city_id: bytes
) -> PeerCertificate:
    """The caller's certificate, already verified up to the city's authority by TLS.

    Raises:
        NotAuthentic: BAD_IDENTITY unless it has exactly one URI name, of this city.
    """
    pem = list(auth_context.get("x509_pem_cert", ()))
    if len(pem) != 1:
        raise _bad_identity("a client certificate is required")
    return parse_certificate(pem[0], city_id)


@lru_cache(maxsize=1024)
def parse_certificate(pem: bytes, city_id: bytes) -> PeerCertificate:
    """What a PEM certificate says; BAD_IDENTITY if that is not one role of the city."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise _bad_identity("the certificate has no name of a city") from None
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _bad_identity("the certificate must have exactly one URI name")
    return PeerCertificate(
        _parse_uri(uris[0], city_id),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _parse_uri(uri: str, city_id: bytes) -> Identity:
    scheme, _, rest = uri.partition("://")
    domain, *path = rest.split("/")
    if scheme != "spiffe" or domain != trust_domain(city_id):
        raise _bad_identity("the certificate is of another trust domain")
    if len(path) != 2 or path[0] not in list(Role) or not _NAME.fullmatch(path[1]):
        raise _bad_identity("the certificate names no role of a city")
    return Identity(Role(path[0]), path[1])


def _bad_identity(message: str) -> NotAuthentic:
    return NotAuthentic(Reason.BAD_IDENTITY, message)
