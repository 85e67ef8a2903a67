"""``console.toml``: read once, checked whole."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from gridveil.config import ConfigFile, Section, load
from gridveil.days import time_zone
from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason

_PORTS = 65_536


class HttpsFiles(Section, frozen=True, kw_only=True):
    """What the page is served with, PEM."""

    certificate: str
    key: str


class OidcSection(Section, frozen=True, kw_only=True):
    """The provider that people log in with (OpenID Connect Core 1.0)."""

    issuer: str
    client_id: str
    client_secret_file: str
    roles_claim: str = "roles"
    """The claim of the id token that lists what a person may be."""
    operators: str = "gridveil-operator"
    """The value that makes somebody an operator."""
    viewers: str = "gridveil-viewer"
    """The value that makes somebody a viewer: the curve and the signals, without exports."""
    factors: tuple[str, ...] = ("mfa", "otp", "hwk", "pop", "sc", "fpt", "face")
    """``amr`` values (RFC 8176) of which the provider must state one."""


class ConsoleFile(ConfigFile, frozen=True, kw_only=True):
    """``console.toml``. Paths are relative to its folder."""

    listen: str
    profile: str = "profile.toml"
    url: str = ""
    """Where people find it, such as ``https://console.city.example``."""
    time_zone: str = "UTC"
    register: str = "import_wh"
    window_length: int
    public: bool = True
    """Whether everybody sees the page for citizens."""
    contact: str = ""
    """Where citizens object: an address that the page for them shows."""
    https: HttpsFiles | None = None
    oidc: OidcSection | None = None


@dataclass(frozen=True)
class Https:
    """Paths of PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Oidc:
    """A checked section ``[oidc]``."""

    section: OidcSection
    client_secret: str


@dataclass(frozen=True)
class ConsoleConfig:
    """A checked configuration."""

    host: str
    port: int
    """0 takes a free one."""
    url: str
    """Without a slash at its end; empty: where it listens."""
    profile: Profile
    time_zone: str
    """A name of the IANA database."""
    zone: tzinfo
    register: str
    window_length: int
    public: bool
    contact: str
    https: Https | None
    oidc: Oidc | None
    """None: a one-time token, on this machine and in a development city only."""

    @classmethod
    def load(cls, path: Path) -> ConsoleConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, ConsoleFile), path.parent
        profile = Profile.load(folder / file.profile)
        host, port = _address(file.listen)
        if not 60 <= file.window_length <= 86_400:
            _refuse("window_length", "is 60 to 86400 seconds")
        config = cls(
            host,
            port,
            _checked_url(file.url),
            profile,
            file.time_zone,
            time_zone(file.time_zone),
            file.register,
            file.window_length,
            file.public,
            file.contact,
            _https(file.https, folder),
            _oidc(file.oidc, folder),
        )
        config._check_exposure()
        return config

    @property
    def secure(self) -> bool:
        """Whether people reach it by https."""
        return self.https is not None or self.url.startswith("https://")

    def _check_exposure(self) -> None:
        """What is not encrypted stays on this machine, and so does a page without a provider."""
        if self.https is None and not _is_loopback(self.host):
            _refuse("https", "is needed to listen beyond this machine")
        if self.oidc is not None:
            if not self.url:
                _refuse("url", "is where the provider of [oidc] sends people back to")
            return
        if not self.profile.development or not _is_loopback(self.host):
            _refuse("oidc", "is needed except for a development city on this machine")


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) >= _PORTS:
        _refuse("listen", "is HOST:PORT")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_encrypted_or_local(parts: SplitResult) -> bool:
    local = parts.scheme == "http" and _is_loopback(parts.hostname or "")
    return bool(parts.hostname) and (parts.scheme == "https" or local)


def _checked_url(url: str) -> str:
    if not url:
        return ""
    parts = urlsplit(url)
    if not _is_encrypted_or_local(parts):
        _refuse("url", "is an https address")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        _refuse("url", "has no path, query or user")
    return url.rstrip("/")


def _https(files: HttpsFiles | None, folder: Path) -> Https | None:
    return Https(folder / files.certificate, folder / files.key) if files else None


def _oidc(section: OidcSection | None, folder: Path) -> Oidc | None:
    if section is None:
        return None
    if not _is_encrypted_or_local(urlsplit(section.issuer)):
        _refuse("oidc.issuer", "is an https address")
    if not section.factors:
        _refuse("oidc.factors", "name at least one")
    try:
        secret = (folder / section.client_secret_file).read_text().strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if not secret:
        _refuse("oidc.client_secret_file", "is a file with the secret")
    return Oidc(section, secret)


def _refuse(key: str, what: str) -> NoReturn:
    raise MalformedInput(Reason.CONFIG_INVALID, f"{key} {what}", field=key)
