"""The section ``[metrics]`` of every service's configuration."""

from __future__ import annotations

from gridveil.config import Section
from gridveil.protocol.errors import MalformedInput, Reason

Address = tuple[str, int]


class MetricsSection(Section, frozen=True, kw_only=True):
    """Where metrics are served, without TLS or access control; without the section, nowhere."""

    listen: str


def address_of(section: MetricsSection | None) -> Address | None:
    """Host and port to listen on; CONFIG_INVALID unless both are there."""
    if section is None:
        return None
    host, _, port = section.listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65_536:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "metrics.listen is host:port", field="metrics.listen"
        )
    return host.strip("[]"), int(port)
