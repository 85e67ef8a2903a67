"""What errors of the client and of the server mean for who asked the store."""

from __future__ import annotations

from collections.abc import Callable

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ConnectionError,
    ExecAbortError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,
    TryAgainError,
)

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.interface import StoreFailed

ClientError = (RedisError, RedisClusterException, OSError)
"""All that redis-py raises."""

MOVING = (AskError, TryAgainError)
"""A slot is on its way to another server, or was until now. AskError includes MovedError."""

UNREACHED = (
    *MOVING,
    ConnectionError,
    TimeoutError,
    ClusterDownError,
    RedisClusterException,
    OSError,
)
"""Perhaps somebody else serves the slot by now."""

_TRANSIENT = (
    *UNREACHED,
    AuthenticationError,
    AuthorizationError,
    ExecAbortError,
    NoPermissionError,
    ReadOnlyError,
)
_TRANSIENT_WORDS = (
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "UNKILLABLE",
    "NOAUTH",
)


def explained(error: Exception, fail: Callable[[str], StoreFailed]) -> Unavailable:
    """The error to raise: STORE_FULL, STORE_UNAVAILABLE, or what ``fail`` makes of a defect.

    Nothing of the original is kept: it may quote keys, addresses and what was to be stored.
    """
    if isinstance(error, OutOfMemoryError):
        return Unavailable(Reason.STORE_FULL, "the store is full", retry_after_s=5)
    if isinstance(error, _TRANSIENT) or str(error).startswith(_TRANSIENT_WORDS):
        return unavailable("the store cannot be reached")
    return fail("the store has failed")


def unavailable(message: str) -> Unavailable:
    return Unavailable(Reason.STORE_UNAVAILABLE, message, retry_after_s=1)


def catching_up() -> Unavailable:
    """It was away for too long to know whether a window was released meanwhile."""
    return unavailable("this aggregator has to find out first what the others did")
