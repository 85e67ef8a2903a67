"""What a server must be like before anything is entrusted to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis import Redis

from gridveil_services.aggregator.store.interface import StoreFailed
from gridveil_services.aggregator.store.redis.failures import ClientError
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.servers import Servers

_FIRST_VERSION = (7, 0)
_SETTINGS = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "aof-load-truncated",
    "maxmemory-policy",
    "min-replicas-to-write",
)
_PAGE = 10_000


def fault_of(version: str, settings: Mapping[str, str], replicas: int) -> str | None:
    """Why a server could lose what was acknowledged, naming the setting; None if it could not.

    Args:
        version: as the server tells it.
        settings: the server's, by name.
        replicas: how many must have a write before it is acknowledged.
    """
    if tuple(map(int, version.split(".")[:2])) < _FIRST_VERSION:
        return "its version is below 7.0: scripts would begin without the memory to end"
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


def check_server(servers: Servers, keys: CityKeys) -> None:
    """Refuse to start on servers that could lose data, or that hold something else's.

    Raises:
        StoreFailed: says which setting, or that there are foreign keys.
    """
    for client in servers.masters():
        try:
            _check(client, servers.replicas, keys)
        except ClientError:
            raise StoreFailed("the store's settings cannot be read") from None


def _check(client: Redis, replicas: int, keys: CityKeys) -> None:
    server: Any = client.info("server")
    replication: Any = client.info("replication")
    if replication["role"] != "master":
        raise StoreFailed("Redis does not serve: it is a replica")
    settings: dict[str, str] = {}
    for name in _SETTINGS:
        told: Any = client.config_get(name)
        settings |= told
    if fault := fault_of(server["redis_version"], settings, replicas):
        raise StoreFailed(f"Redis does not serve: {fault}")
    own = keys.start.encode()
    for key in client.scan_iter(count=_PAGE):
        if not key.startswith((own + b":", own + b"}")):
            raise StoreFailed("Redis does not serve: it holds keys of something else")
