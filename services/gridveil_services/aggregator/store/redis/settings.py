"""Settings under which a server could lose what was acknowledged. Pure."""

from __future__ import annotations

from collections.abc import Mapping

_FIRST_VERSION = (7, 0)
SETTINGS = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "aof-load-truncated",
    "maxmemory-policy",
    "min-replicas-to-write",
)
"""Those that are looked at."""


def version_fault(version: str) -> str | None:
    """Why a server of this version could lose data; None if it could not."""
    if tuple(map(int, version.split(".")[:2])) < _FIRST_VERSION:
        return "its version is below 7.0: scripts would begin without the memory to end"
    return None


def setting_fault(settings: Mapping[str, str], replicas: int) -> str | None:
    """Why a server could lose what was acknowledged, naming the setting; None if it could not.

    Args:
        settings: the server's, by name.
        replicas: how many must have a write before it is acknowledged.
    """
    if settings.get("appendonly") != "yes":
        return "appendonly is not yes: a restart would lose reports"
    if settings.get("appendfsync") != "always":
        return "appendfsync is not always: a power cut would lose acknowledged reports"
    if settings.get("no-appendfsync-on-rewrite") != "no":
        return "no-appendfsync-on-rewrite is not no: nothing is synced during a rewrite"
    if settings.get("aof-load-truncated") != "no":
        return "aof-load-truncated is not no: a start would drop the end of a damaged log silently"
    if settings.get("maxmemory-policy") != "noeviction":
        return "maxmemory-policy is not noeviction: a meter that was evicted could report twice"
    if int(settings.get("min-replicas-to-write", "0")) < replicas:
        return "min-replicas-to-write is below the replicas that are to have each write"
    return None
