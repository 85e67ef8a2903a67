"""A Redis Cluster of three masters with a replica each, whose servers can be hurt one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from gridveil_services.aggregator.config import RedisConfig
from tests.support.ports import HOST
from tests.support.redis_servers import RedisServer, until

_SLOTS = 16_384
_SETTINGS = {
    "cluster_enabled": "yes",
    "cluster_node_timeout": "1000",
    # A replica that was behind is elected too: what it lacks must be noticed by the store.
    "cluster_replica_validity_factor": "0",
    "repl_ping_replica_period": "1",
    "min_replicas_max_lag": "1",
    "protected_mode": "no",
}


class ReplicatedCluster:
    """Six servers. ``places`` are their addresses and what each is run with."""

    def __init__(self, places: Sequence[tuple[str, Sequence[str]]] = ((HOST, ()),) * 6) -> None:
        self.servers = [RedisServer(host, inside, **_SETTINGS) for host, inside in places]
        masters, replicas = self.servers[:3], self.servers[3:]
        for at, server in enumerate(masters):
            first, last = _SLOTS * at // 3, _SLOTS * (at + 1) // 3 - 1
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for server in self.servers[1:]:
            first_server = self.servers[0]
            server.client.execute_command("CLUSTER", "MEET", first_server.host, first_server.port)
        until(lambda: all("cluster_known_nodes:6" in self._info(s) for s in self.servers))
        for master, replica in zip(masters, replicas, strict=True):
            node = master.client.execute_command("CLUSTER", "MYID").decode()
            until(lambda r=replica, n=node: self._replicate(r, n))  # type: ignore[misc]
        self.wait()

    def config(self, replicas: int) -> RedisConfig:
        """For aggregators whose writes so many replicas must have."""
        nodes = tuple((server.host, server.port) for server in self.servers)
        return RedisConfig(nodes, cluster=True, replicas=replicas)

    def insist_on(self, replicas: int) -> None:
        """Have masters refuse writes without so many replicas."""
        for server in self.servers:
            server.settings["min-replicas-to-write"] = str(replicas)
            server.client.config_set("min-replicas-to-write", replicas)

    def masters(self) -> list[RedisServer]:
        """The servers that are masters just now, of those that answer."""
        return [s for s in self.servers if self._replication(s).get("role") == "master"]

    def replica_of(self, master: RedisServer) -> RedisServer | None:
        """A replica that follows a master now."""
        for server in self.servers:
            told = self._replication(server)
            if told.get("master_port") == master.port and told.get("master_host") == master.host:
                return server
        return None

    def wait(self) -> None:
        """Until all slots are served, and each master has a replica that is in step."""
        until(self.is_whole)

    def is_whole(self) -> bool:
        masters = self.masters()
        return (
            len(masters) == 3
            and all("cluster_state:ok" in self._info(server) for server in self.servers)
            and all(self._has_replica(master) for master in masters)
        )

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def _has_replica(self, master: RedisServer) -> bool:
        told = self._replication(master)
        return any(
            isinstance(told.get(name), dict) and told[name]["state"] == "online"
            for name in self._slaves(told)
        )

    @staticmethod
    def _slaves(told: dict[str, Any]) -> Iterator[str]:
        return (name for name in told if name.startswith("slave") and name[5:].isdigit())

    @staticmethod
    def _replication(server: RedisServer) -> dict[str, Any]:
        if server.process.poll() is not None:
            return {}
        with suppress(RedisError, OSError):
            return dict(server.client.info("replication"))
        return {}

    @staticmethod
    def _info(server: RedisServer) -> str:
        with suppress(RedisError, OSError):
            return bytes(server.client.execute_command("CLUSTER", "INFO")).decode()
        return ""

    @staticmethod
    def _replicate(replica: RedisServer, node: str) -> bool:
        with suppress(RedisError):
            replica.client.execute_command("CLUSTER", "REPLICATE", node)
            return True
        return False
