"""The TLS identity of a server: checked before it listens, renewed without a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil_services.rpc.roles import Role, parse_certificate

_Fetcher = Callable[[], grpc.ServerCertificateConfiguration]
_log = structlog.get_logger()


def server_credentials(tls: Tls, role: Role, city_id: bytes) -> grpc.ServerCredentials:
    """Mutual TLS from PEM files; CONFIG_INVALID names what is wrong with them.

    Files that are replaced later serve the connections made from then on; files that are then
    wrong are logged, and those before them stay in use.
    """
    return TlsIdentity(tls, role, city_id).credentials()


@dataclass
class TlsIdentity:
    """A server's certificate and key, as its files are."""

    tls: Tls
    role: Role
    city_id: bytes

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._state = self._states()
        self.first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a server, as :func:`server_credentials` says."""
        return grpc.dynamic_ssl_server_credentials(
            self.first, cast(_Fetcher, self.renewed), require_client_authentication=True
        )

    def expires(self) -> float:
        """Unix seconds until when the next connection's certificate is valid."""
        try:
            certificate = _bytes(self.tls.certificate, "tls.certificate")
            return _check_certificate(certificate, self.role, self.city_id)
        except MalformedInput:
            return self._expires

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """For each handshake: None as long as nothing has changed."""
        with self._lock:
            state = self._states()
            if state == self._state:
                return None
            self._state = state
            try:
                return self._read()
            except MalformedInput as error:
                _log.error("the renewed certificate is not used", cause=error.message)
                return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        ca = _bytes(self.tls.ca, "tls.ca")
        certificate = _bytes(self.tls.certificate, "tls.certificate")
        key = _bytes(self.tls.key, "tls.key")
        _check_authority(ca)
        expires = _check_certificate(certificate, self.role, self.city_id)
        _check_key(key, certificate)
        self._expires = expires
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

    def _states(self) -> list[tuple[int, int]]:
        return [_state(path) for path in (self.tls.ca, self.tls.certificate, self.tls.key)]


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise _invalid(f"{name} cannot be read") from None


def _check_authority(ca: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(ca)
    except ValueError:
        raise _invalid("tls.ca is no certificate") from None


def _check_certificate(certificate: bytes, role: Role, city_id: bytes) -> float:
    """Until when it is valid, Unix seconds."""
    try:
        own = parse_certificate(certificate, city_id)
        own.check_valid(time.time())
    except NotAuthentic as error:
        raise _invalid(f"tls.certificate: {error.message}") from None
    if own.identity.role is not role:
        raise _invalid(f"tls.certificate is not one of a {role}")
    return own.not_after


def _check_key(key: bytes, certificate: bytes) -> None:
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise _invalid("tls.key is no private key") from None
    if private.public_key() != x509.load_pem_x509_certificate(certificate).public_key():
        raise _invalid("tls.key is not the key of tls.certificate")


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
