"""Connections to one server or to the masters of a cluster, and the rule for when a write counts.

No retry is left to redis-py: it would run a script again whose answer was lost, many times. Every
script can be run again with the same arguments, and is, once, here. Scripts are sent whole: a
server that was restarted does not know them by their hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.interface import StoreFailed
from gridveil_services.aggregator.store.redis.failures import (
    UNREACHED,
    ClientError,
    explained,
    unavailable,
)

ANSWER_S = 5.0
"""How long an answer may take before the connection is dropped."""
WAIT_MS = 2_000
"""How long replicas may take to have a write."""


class Call(NamedTuple):
    """One command, and a key that says which server it is for."""

    key: str
    command: tuple[str | int | bytes, ...]


def script(text: str, keys: Sequence[str], *values: str | bytes) -> Call:
    """A call of a script; its keys are of one slot."""
    return Call(keys[0], ("EVAL", text, len(keys), *keys, *values))


class NotReplicated(Unavailable):
    """Done, but fewer replicas than configured are known to have it: it may be lost yet."""

    def __init__(self) -> None:
        super().__init__(
            Reason.STORE_UNAVAILABLE, "the store's replicas are behind", retry_after_s=1
        )


class Servers:
    """Where the keys are. Reading and writing from any thread; a call has its own connection."""

    def __init__(self, config: RedisConfig, fail: Callable[[str], StoreFailed]) -> None:
        """``fail`` is called when an answer puts what is stored in doubt.

        Raises:
            Unavailable: STORE_UNAVAILABLE.
        """
        self.replicas = config.replicas
        self._on_defect = fail
        self._failed = False
        options = _options(config)
        self._single: Redis | None = None
        # redis-py types its cluster in part.
        self._cluster: Any = None
        try:
            if config.cluster:
                node: Any = ClusterNode
                nodes = [node(host, port) for host, port in config.addresses]
                self._cluster = RedisCluster(startup_nodes=nodes, **options)
            else:
                ((host, port),) = config.addresses
                self._single = Redis(host=host, port=port, db=config.database, **options)
        except ClientError as error:
            raise explained(error, fail) from None

    def masters(self) -> list[Redis]:
        """A client of every server that is written to."""
        if self._single is not None:
            return [self._single]
        return [self._cluster.get_redis_connection(node) for node in self._cluster.get_primaries()]

    def read(self, calls: Sequence[Call]) -> list[Any]:
        """The answers, in order."""
        return self._twice(calls, writes=False)

    def write(self, calls: Sequence[Call], *, everywhere: bool = False) -> list[Any]:
        """The answers, in order, when what was done is durable.

        Args:
            calls: any of them may be carried out twice.
            everywhere: wait for all replicas that are connected, if those are more than configured.

        Raises:
            NotReplicated: it was done, and may be lost with the server.
            Unavailable: some of it may have been done.
        """
        return self._twice(calls, writes=True, everywhere=everywhere)

    def lineage(self) -> str:
        """A digest that is another after any server was restarted, or a replica took over.

        Raises:
            Unavailable: not every server can be asked.
        """
        for again in (True, False):
            try:
                if (found := self._lineage()) is not None:
                    return found
                if self._cluster is not None:
                    self._cluster.nodes_manager.initialize()
            except UNREACHED as error:
                if not again:
                    raise explained(error, self.fail) from None
            except ClientError as error:
                raise explained(error, self.fail) from None
        raise unavailable("the store changes its servers")

    def _lineage(self) -> str | None:
        """None if one of them is no master any more."""
        told = []
        for client in self.masters():
            server: Any = client.info("server")
            replication: Any = client.info("replication")
            if replication["role"] != "master":
                return None
            told.append(f"{server['run_id']} {replication['master_replid']}")
        return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()

    def close(self) -> None:
        """Close all connections."""
        for client in (self._single, self._cluster):
            if client is not None:
                client.close()

    def fail(self, message: str) -> StoreFailed:
        """Answer nothing any more; the error to raise."""
        self._failed = True
        return self._on_defect(message)

    def _twice(self, calls: Sequence[Call], *, writes: bool, everywhere: bool = False) -> list[Any]:
        if self._failed:
            raise StoreFailed("the store has failed")
        try:
            return self._once(calls, writes=writes, everywhere=everywhere)
        except UNREACHED:
            pass  # Somebody else may serve the keys by now.
        except ClientError as error:
            raise explained(error, self.fail) from None
        try:
            if self._cluster is not None:
                self._cluster.nodes_manager.initialize()
            return self._once(calls, writes=writes, everywhere=everywhere)
        except ClientError as error:
            raise explained(error, self.fail) from None

    def _once(self, calls: Sequence[Call], *, writes: bool, everywhere: bool) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        replicated = True
        for client, places in self._by_server(calls):
            wanted = self._wanted(client, everywhere=everywhere) if writes else 0
            found = self._send(client, [calls[place] for place in places], wanted)
            if wanted:
                reached = found.pop()
                replicated &= isinstance(reached, int) and reached >= wanted
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        if not replicated:
            raise NotReplicated
        return answers

    def _by_server(self, calls: Sequence[Call]) -> list[tuple[Redis, list[int]]]:
        if self._single is not None:
            return [(self._single, list(range(len(calls))))]
        places: dict[str, tuple[Redis, list[int]]] = {}
        for place, call in enumerate(calls):
            node = self._cluster.get_node_from_key(call.key)
            client = self._cluster.get_redis_connection(node)
            places.setdefault(node.name, (client, []))[1].append(place)
        return list(places.values())

    def _wanted(self, client: Redis, *, everywhere: bool) -> int:
        """How many replicas must have a write."""
        if not everywhere:
            return self.replicas
        told: Any = client.info("replication")
        # One that is copied to just now gets this with the copy, and cannot take over before.
        replicas = [told[f"slave{number}"] for number in range(int(told["connected_slaves"]))]
        online = [replica for replica in replicas if replica["state"] == "online"]
        return max(self.replicas, len(online))

    def _send(self, client: Redis, calls: Sequence[Call], replicas: int) -> list[Any]:
        """All on one connection: WAIT is about what its own connection wrote."""
        pipeline: Any = client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.command)
        if replicas:
            pipeline.execute_command("WAIT", replicas, WAIT_MS)
        return list(pipeline.execute(raise_on_error=False))


def _options(config: RedisConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": ANSWER_S,
        "username": config.username,
        "password": config.password(),
    }
    if config.tls is not None:
        options |= {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": str(config.tls.ca),
            "ssl_certfile": str(config.tls.certificate),
            "ssl_keyfile": str(config.tls.key),
        }
    return options
