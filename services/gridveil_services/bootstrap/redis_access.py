"""Who may do what in a city's Redis (ACL file of Redis 7): the aggregator, and its replicas."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256

USER = "gridveil"
REPLICATION_USER = "replica"
COMMANDS = (
    "+eval +wait +info +config|get +scan +get +set +exists +unlink +hget +hmget +hgetall +hset"
    " +hsetnx +hincrby +llen +lrange +rpush +sadd +smembers +srem +hdel +time +cluster|slots"
    " +multi +exec +command +ping"
)
"""All that an aggregator does; docs/operations.md says the same."""


@dataclass(frozen=True)
class RedisAccess:
    """Passwords of one city's Redis, and the files that a server reads them from."""

    city_id: bytes
    password: str
    replication_password: str

    @classmethod
    def create(cls, city_id: bytes) -> RedisAccess:
        """New passwords of 256 bits: their digests may lie in the ACL file."""
        return cls(city_id, secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    def __repr__(self) -> str:
        return "RedisAccess(...)"

    @property
    def users(self) -> str:
        """The server's ``aclfile``: nobody else gets in, the usual user neither."""
        return "".join(
            f"user {line}\n"
            for line in (
                "default off",
                f"{USER} on #{_digest(self.password)} ~gv:{{{self.city_id.hex()}* -@all {COMMANDS}",
                f"{REPLICATION_USER} on #{_digest(self.replication_password)}"
                " -@all +psync +replconf +ping",
            )
        )

    @property
    def replication(self) -> str:
        """What a replica includes, to be let in by its master."""
        return f"masteruser {REPLICATION_USER}\nmasterauth {self.replication_password}\n"


def _digest(password: str) -> str:
    return sha256(password.encode()).hexdigest()
