"""Strict configuration files: TOML into typed structs; an unknown or wrong key is named."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from gridveil.protocol.errors import MalformedInput, Reason

T = TypeVar("T", bound="ConfigFile")


class Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A table in a configuration file."""


class ConfigFile(Section, frozen=True, kw_only=True):
    """A whole configuration file. Paths in it are relative to its folder."""


class TlsFiles(Section, frozen=True, kw_only=True):
    """Where the TLS identity of a party is kept; secrets are named by path only."""

    ca: str
    certificate: str
    key: str


def load(path: Path, kind: type[T]) -> T:
    """The configuration in ``path``; CONFIG_INVALID names the key that is wrong."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} does not exist") from None
    except OSError:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} cannot be read") from None
    except msgspec.ValidationError as error:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} is not TOML: {error}") from None


def hex_bytes(value: str, size: int, key: str) -> bytes:
    """``size`` bytes from their hexadecimal form, or CONFIG_INVALID naming ``key``."""
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{key} must be {size} bytes in hexadecimal")
    return raw
