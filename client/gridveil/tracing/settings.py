"""The section ``[tracing]`` of a configuration or profile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from gridveil.config import Section
from gridveil.protocol.errors import MalformedInput, Reason

_SCHEMES = {"http": False, "https": True}


class TracingSection(Section, frozen=True, kw_only=True):
    """Where traces are sent; without the section, nowhere."""

    endpoint: str
    sample: float = 1.0


@dataclass(frozen=True)
class TracingSettings:
    """A checked section."""

    address: str
    """``host:port`` of a collector of OTLP over gRPC."""
    secure: bool
    """Whether with TLS, by the system's authorities."""
    sample: float
    """The share of traces that is sent, 0 to 1."""

    @classmethod
    def of(cls, section: TracingSection | None) -> TracingSettings | None:
        """What a section says; CONFIG_INVALID names what is wrong."""
        if section is None:
            return None
        url = urlsplit(section.endpoint)
        try:
            named = bool(url.hostname and url.port)
        except ValueError:
            named = False
        plain = section.endpoint.rstrip("/") == f"{url.scheme}://{url.netloc}"
        if url.scheme not in _SCHEMES or not named or not plain or "@" in url.netloc:
            raise _invalid("tracing.endpoint", "is http://host:port or https://host:port")
        if not (math.isfinite(section.sample) and 0 <= section.sample <= 1):
            raise _invalid("tracing.sample", "is 0 to 1")
        return cls(url.netloc, _SCHEMES[url.scheme], section.sample)


def _invalid(key: str, rule: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"{key} {rule}", field=key)
