"""The TLS identity of a server, checked before it listens."""

from __future__ import annotations

import time

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil_services.rpc.roles import Role, parse_certificate


def server_credentials(tls: Tls, role: Role, city_id: bytes) -> grpc.ServerCredentials:
    """Mutual TLS from PEM files; CONFIG_INVALID names what is wrong with them."""
    ca, certificate, key = (_read(tls, part) for part in ("ca", "certificate", "key"))
    _check(certificate, key, role, city_id)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )


def _read(tls: Tls, part: str) -> bytes:
    try:
        return bytes(getattr(tls, part).read_bytes())
    except OSError:
        raise _invalid(f"tls.{part} cannot be read") from None


def _check(certificate: bytes, key: bytes, role: Role, city_id: bytes) -> None:
    try:
        own = parse_certificate(certificate, city_id)
        own.check_valid(time.time())
    except NotAuthentic as error:
        raise _invalid(f"tls.certificate: {error.message}") from None
    if own.identity.role is not role:
        raise _invalid(f"tls.certificate is not one of a {role}")
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise _invalid("tls.key is no private key") from None
    if private.public_key() != x509.load_pem_x509_certificate(certificate).public_key():
        raise _invalid("tls.key is not the key of tls.certificate")


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
