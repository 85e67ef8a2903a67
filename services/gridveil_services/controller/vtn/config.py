"""The section ``[vtn]`` of ``controller.toml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from gridveil.config import Section
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.openadr import check_id

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_PRINTED = re.compile(r"[!-~]+")
_ACCESS = ("url", "token_url", "client_id", "client_secret_file")


class VtnSection(Section, frozen=True, kw_only=True):
    """For which program events are made, and where they are sent; without ``url``, nowhere."""

    program_id: str
    report_event: str | None = None
    url: str | None = None
    token_url: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    scope: str | None = None
    ca: str | None = None


@dataclass(frozen=True)
class VtnAccess:
    """Where a VTN is, and who we are to it (OAuth 2.0 client credentials, RFC 6749 section 4.4)."""

    url: str
    """Base of its API, without a slash at the end."""
    token_url: str
    client_id: str
    client_secret_file: Path
    scope: str | None = None
    """What the authorization server is asked for; None: what it gives unasked."""
    ca: Path | None = None
    """PEM of the authority that its certificate must be of; None: the system's."""


@dataclass(frozen=True)
class VtnConfig:
    """A checked section."""

    program_id: str
    report_event: str | None = None
    """The event that reports of the city's use answer; None: nothing is reported."""
    access: VtnAccess | None = None

    @classmethod
    def beside(cls, section: VtnSection, folder: Path, *, development: bool) -> VtnConfig:
        """The section with its paths relative to a folder; CONFIG_INVALID names what is wrong."""
        for value in filter(None, (section.program_id, section.report_event)):
            check_id(value)
        return cls(section.program_id, section.report_event, _access(section, folder, development))


def _access(section: VtnSection, folder: Path, development: bool) -> VtnAccess | None:
    given = section.url, section.token_url, section.client_id, section.client_secret_file
    if not any((*given, section.ca, section.scope)):
        return None
    url, token_url, client_id, secret = given
    if not (url and token_url and client_id and secret):
        _refuse("vtn", f"{', '.join(_ACCESS)} belong together")
    for key, value in (("vtn.url", url), ("vtn.token_url", token_url)):
        _check_url(key, value, development)
    secret_file = folder / secret
    if not secret_file.is_file():
        _refuse("vtn.client_secret_file", "is no file")
    ca = folder / section.ca if section.ca else None
    if ca is not None and not ca.is_file():
        _refuse("vtn.ca", "is no file")
    return VtnAccess(url.rstrip("/"), token_url, client_id, secret_file, section.scope, ca)


def _check_url(key: str, value: str, development: bool) -> None:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        _refuse(key, "is no URL")
    secure = parts.scheme == "https" or (
        parts.scheme == "http" and development and host in _LOOPBACK
    )
    if not secure or not host:
        _refuse(key, "is an https:// URL; http:// is for development on this machine")
    # Also of an empty one: what is put behind it would be part of that.
    if parts.username or parts.password or "?" in value or "#" in value:
        _refuse(key, "has neither user, query nor fragment")
    if not _PRINTED.fullmatch(value) or parts.port == 0:
        _refuse(key, "is no URL")


def _refuse(key: str, what: str) -> NoReturn:
    raise MalformedInput(Reason.CONFIG_INVALID, f"{key} {what}", field=key)
