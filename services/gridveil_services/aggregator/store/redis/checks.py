"""What a server must be like before anything is entrusted to it."""

from __future__ import annotations

from typing import Any

from redis import Redis

from gridveil_services.aggregator.store.interface import StoreFailed
from gridveil_services.aggregator.store.redis.failures import ClientError
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.servers import Servers
from gridveil_services.aggregator.store.redis.settings import (
    SETTINGS,
    setting_fault,
    version_fault,
)

_PAGE = 10_000


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
    if fault := version_fault(server["redis_version"]):
        raise StoreFailed(f"Redis does not serve: {fault}")
    settings: Any = client.config_get(*SETTINGS)
    if fault := setting_fault(settings, replicas):
        raise StoreFailed(f"Redis does not serve: {fault}")
    own = keys.start.encode()
    for key in client.scan_iter(count=_PAGE):
        if not key.startswith((own + b":", own + b"}")):
            raise StoreFailed("Redis does not serve: it holds keys of something else")
