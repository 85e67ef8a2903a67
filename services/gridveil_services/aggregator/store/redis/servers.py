"""Connections to one server or to the masters of a cluster, and the rule for when a write counts.

No retry is left to redis-py: it would run a script again whose answer was lost, many times. Every
script can be run again with the same arguments, and is, once, here, or a few times while a slot
moves to another server. ASK is not followed: a key that is on neither server yet would look like
one that never was. Scripts are sent whole: a server that was restarted does not know them by their
hash. With every write the server's settings are asked for: what was written under dangerous ones is
not acknowledged.

On a single server the scripts of a write are one transaction. Each still succeeds or fails by
itself; but the server syncs once for all, and not whenever it has executed what it read at once,
which is some 32 kB, hence a lane or two. In a cluster a transaction is of one slot.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ResponseError
from redis.retry import Retry

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.interface import StoreFailed
from gridveil_services.aggregator.store.redis.failures import (
    MOVING,
    UNREACHED,
    ClientError,
    explained,
    unavailable,
)
from gridveil_services.aggregator.store.redis.settings import SETTINGS, setting_fault

ANSWER_S = 5.0
"""How long an answer may take before the connection is dropped."""
WAIT_MS = 2_000
"""How long replicas may take to have a write."""
_PAUSES_S = (0.0, 0.02, 0.08, 0.2)
"""How long to wait each time that a slot is found to be on its way to another server."""

_log = structlog.get_logger()


_Command = tuple[str | int | bytes, ...]
_ASK_SETTINGS: _Command = ("CONFIG", "GET", *SETTINGS)


class Call(NamedTuple):
    """One command, and a key that says which server it is for."""

    key: str
    command: _Command


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
        return self._tried(calls, writes=False)

    def write(self, calls: Sequence[Call], *, everywhere: bool = False) -> list[Any]:
        """The answers, in order, when what was done is durable.

        Args:
            calls: any of them may be carried out twice.
            everywhere: wait for all replicas that are connected, if those are more than configured.

        Raises:
            NotReplicated: it was done, and may be lost with the server.
            StoreFailed: so it may, because a setting was changed.
            Unavailable: some of it may have been done.
        """
        return self._tried(calls, writes=True, everywhere=everywhere)

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

    def _tried(self, calls: Sequence[Call], *, writes: bool, everywhere: bool = False) -> list[Any]:
        if self._failed:
            raise StoreFailed("the store has failed")
        pauses, unreached = iter(_PAUSES_S), False
        while True:
            try:
                if unreached and self._cluster is not None:
                    self._cluster.nodes_manager.initialize()
                return self._once(calls, writes=writes, everywhere=everywhere)
            except MOVING as error:
                if (pause := next(pauses, None)) is None:
                    raise explained(error, self.fail) from None
                time.sleep(pause)
            except ClientError as error:
                # Perhaps somebody else serves the keys by now.
                if unreached or not isinstance(error, UNREACHED):
                    raise explained(error, self.fail) from None
            unreached = True

    def _once(self, calls: Sequence[Call], *, writes: bool, everywhere: bool) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        replicated = True
        for client, places in self._by_server(calls):
            some = [calls[place] for place in places]
            if not writes:
                found = _read(client, some)
            else:
                wanted = self._wanted(client, everywhere=everywhere)
                found, settings, reached = self._write(client, some, wanted)
                self._check_settings(settings)
                replicated &= isinstance(reached, int) and reached >= wanted
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        if not replicated:
            raise NotReplicated
        return answers

    def _check_settings(self, settings: Any) -> None:
        if isinstance(settings, Exception):
            raise settings
        told = dict(
            zip(map(bytes.decode, settings[::2]), map(bytes.decode, settings[1::2]), strict=True)
        )
        if fault := setting_fault(told, self.replicas):
            _log.error("nothing is acknowledged any more: Redis was changed", why=fault)
            raise self.fail(f"Redis does not serve any more: {fault}")

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

    def _write(
        self, client: Redis, calls: Sequence[Call], replicas: int
    ) -> tuple[list[Any], Any, Any]:
        """The answers, the server's settings, and what WAIT counts; all on one connection."""
        commands: list[_Command] = [*(call.command for call in calls), _ASK_SETTINGS]
        if together := self._single is not None and all(c.command[0] == "EVAL" for c in calls):
            commands = [("MULTI",), *commands, ("EXEC",)]
        if replicas:
            # It is about what its own connection wrote.
            answers = _exchange(client, [*commands, ("WAIT", replicas, WAIT_MS)])
            reached = answers.pop()
        else:
            answers, reached = _exchange(client, commands), 0
        if together:
            answers = _executed(answers)
        return answers[:-1], answers[-1], reached


def _read(client: Redis, calls: Sequence[Call]) -> list[Any]:
    pipeline: Any = client.pipeline(transaction=False)
    for call in calls:
        pipeline.execute_command(*call.command)
    return list(pipeline.execute(raise_on_error=False))


def _exchange(client: Redis, commands: Sequence[_Command]) -> list[Any]:
    """Send commands in one piece, which a pipeline does not; the answers, errors among them.

    What comes in pieces is executed in pieces, and synced after each.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    answers: list[Any] = []
    try:
        connection.send_packed_command([b"".join(connection.pack_commands(commands))])
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:
                answers.append(error)
    except BaseException:
        # Answers may be under way yet that nobody would wait for.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    return answers


def _executed(answers: Sequence[Any]) -> list[Any]:
    """What EXEC answered; the first error if it was not executed."""
    *queued, executed = answers
    for answer in (*queued, executed):
        if isinstance(answer, Exception):
            raise answer
    return list(executed)


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
