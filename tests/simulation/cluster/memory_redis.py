"""A Redis server in memory that runs the product's own Lua.

Only the commands that the store uses. Data of one master and its replicas can be looked at, kept
and put back, which is what a failover to a replica that was behind does. Held against a real
server in ``test_memory_redis.py``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

from lupa.lua51 import LuaRuntime, lua_type
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

Value = bytes | dict[bytes, bytes] | set[bytes] | list[bytes]
Data = dict[bytes, Value]
Argument = str | int | float | bytes

_WRITES = {
    *("SET", "HSET", "HSETNX", "HINCRBY", "HDEL", "RPUSH", "SADD", "SREM", "UNLINK", "DEL"),
    *("PEXPIRE", "INCR", "FLUSHALL"),
}
_NEED_MEMORY = {"SET", "HSET", "HSETNX", "HINCRBY", "RPUSH", "SADD", "INCR"}
_READ_ONLY_SCRIPT = b"#!lua flags=no-writes\n"


def as_bytes(value: Argument) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return b"%.17g" % value
    return str(value).encode()


def copied(data: Data) -> Data:
    """The same data, that nothing done to the original changes."""
    return {key: copy(value) for key, value in data.items()}


class Interpreter:
    """Lua as Redis has it: one function for each script text."""

    def __init__(self) -> None:
        self._lua = LuaRuntime(encoding=None, register_eval=False, unpack_returned_tuples=False)
        self._functions: dict[bytes, Any] = {}
        self._call: Callable[..., Any] = lambda *_: None
        redis = self._lua.table()
        redis[b"call"] = lambda *arguments: self._to_lua(self._call(*arguments))
        redis[b"sha1hex"] = lambda data: (
            hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()
        )
        self._lua.globals()[b"redis"] = redis

    def run(
        self, text: bytes, keys: list[bytes], values: list[bytes], call: Callable[..., Any]
    ) -> Any:
        """What a script returns, as redis-py has it."""
        if (function := self._functions.get(text)) is None:
            body = text.partition(b"\n")[2] if text.startswith(b"#!") else text
            function = self._lua.eval(b"function(KEYS, ARGV)\n" + body + b"\nend")
            self._functions[text] = function
        self._call = call
        found = function(self._lua.table_from(keys), self._lua.table_from(values))
        return self._to_python(found)

    def _to_lua(self, value: Any) -> Any:
        if value is None:
            return False
        if isinstance(value, dict):
            value = [part for pair in value.items() for part in pair]
        if isinstance(value, (list, set)):
            return self._lua.table_from([self._to_lua(part) for part in value])
        return b"OK" if value is True else value

    def _to_python(self, value: Any) -> Any:
        if lua_type(value) == "table":
            found, at = [], 1
            while (part := value[at]) is not None:
                found.append(self._to_python(part))
                at += 1
            return found
        if value is None or value is False:
            return None
        return 1 if value is True else int(value) if isinstance(value, float) else value


@lru_cache(maxsize=1)
def interpreter() -> Interpreter:
    """One for all masters: a script has nothing that outlives it."""
    return Interpreter()


class Master:
    """One server that is written to, and its replicas."""

    def __init__(self, name: str, source: random.Random, now: Callable[[], float]) -> None:
        self.name = name
        self._source = source
        self._now = now
        self.data: Data = {}
        self._expires: dict[bytes, float] = {}
        self.behind: list[Data | None] = [None, None]
        """Of each replica what it has, or None if that is what the master has."""
        self.linked = [True, True]
        """Whether the master knows of each replica."""
        self.up = True
        self.loading = False
        self.full = False
        self.read_only = False
        self.renew()

    def renew(self, *, history: bool = True) -> None:
        """As after a restart: other ids."""
        self.run_id = f"{self._source.getrandbits(160):040x}"
        if history:
            self.replication_id = f"{self._source.getrandbits(160):040x}"

    @property
    def in_step(self) -> int:
        """Replicas that have all there is."""
        return sum(held is None for held in self.behind)

    def fall_behind(self, replica: int, *, linked: bool) -> None:
        """From now on a replica gets nothing."""
        if self.behind[replica] is None:
            self.behind[replica] = copied(self.data)
        self.linked[replica] = linked

    def catch_up(self) -> None:
        self.behind = [None for _ in self.behind]
        self.linked = [True for _ in self.behind]

    def put_back(self, data: Data) -> None:
        """Earlier data, on a server that was not there before."""
        self.data = copied(data)
        self._expires = {}
        self.catch_up()
        self.renew()

    def fail_over(self, replica: int) -> bool:
        """A replica becomes the master; whether it was behind."""
        held = self.behind[replica]
        lost = held is not None and held != self.data
        self.put_back(self.data if held is None else held)
        return lost

    def execute(self, command: Sequence[Argument]) -> Any:
        """One command; an exception as redis-py raises it."""
        if not self.up:
            raise ConnectionError("down")
        if self.loading:
            raise BusyLoadingError("LOADING")
        name = str(command[0])
        if name == "EVAL":
            return self._eval(as_bytes(command[1]), int(command[2]), command[3:])
        if name == "WAIT":
            return self.in_step
        if name == "PING":
            return True
        self._check_may(name)
        return self._run(name, [as_bytes(part) for part in command[1:]])

    def info(self, section: str) -> dict[str, Any]:
        """As far as the store asks for it."""
        if not self.up or self.loading:
            raise ConnectionError("down")
        if section == "server":
            return {"redis_version": "7.0.15", "run_id": self.run_id}
        return {
            "role": "slave" if self.read_only else "master",
            "master_replid": self.replication_id,
            "connected_slaves": sum(self.linked),
            **{f"slave{number}": {"state": "online"} for number in range(sum(self.linked))},
        }

    def _check_may(self, name: str) -> None:
        if self.read_only and name in _WRITES:
            raise ReadOnlyError("READONLY")
        if self.full and name in _NEED_MEMORY:
            raise OutOfMemoryError("OOM")

    def _eval(self, text: bytes, count: int, arguments: Sequence[Argument]) -> Any:
        if not text.startswith(_READ_ONLY_SCRIPT):
            if self.read_only:
                raise ReadOnlyError("READONLY")
            if self.full:
                raise OutOfMemoryError("OOM")
        values = [as_bytes(part) for part in arguments]
        keys = values[:count]
        declared = set(keys)

        def call(name: bytes, *parts: Argument) -> Any:
            if name == b"TIME":
                seconds, rest = divmod(self._now(), 1)
                return [b"%d" % seconds, b"%d" % (rest * 1_000_000)]
            key = as_bytes(parts[0])
            if key not in declared:
                raise ResponseError("a script touches a key that it does not declare")
            return self._run(name.decode().upper(), [as_bytes(part) for part in parts])

        return interpreter().run(text, keys, values[count:], call)

    def _run(self, name: str, arguments: list[bytes]) -> Any:
        if (key := arguments[0]) in self._expires and self._expires[key] <= self._now():
            del self._expires[key]
            self.data.pop(key, None)
        return _COMMANDS[name](self, *arguments)

    # Commands, with bytes as arguments.

    def _get(self, key: bytes) -> Any:
        return self.data.get(key)

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        flags = [option.upper() for option in options]
        if b"NX" in flags and key in self.data:
            return None
        self.data[key] = value
        self._expires.pop(key, None)
        if b"PX" in flags:
            self._pexpire(key, options[flags.index(b"PX") + 1])
        return True

    def _incr(self, key: bytes) -> int:
        value = int(self._get(key) or 0) + 1
        self.data[key] = b"%d" % value
        return value

    def _pexpire(self, key: bytes, milliseconds: bytes) -> int:
        if key not in self.data:
            return 0
        self._expires[key] = self._now() + int(milliseconds) / 1000
        return 1

    def _exists(self, *keys: bytes) -> int:
        return sum(key in self.data for key in keys)

    def _unlink(self, *keys: bytes) -> int:
        return sum(self.data.pop(key, None) is not None for key in keys)

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        held = self.data.get(key, {})
        if not isinstance(held, dict):
            raise ResponseError("WRONGTYPE")
        return held

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        return self._hash(key).get(field)

    def _hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        held = self._hash(key)
        return [held.get(field) for field in fields]

    def _hgetall(self, key: bytes) -> dict[bytes, bytes]:
        return dict(self._hash(key))

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        held = self._hash(key)
        before = len(held)
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        self.data[key] = held
        return len(held) - before

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        held = self._hash(key)
        if field in held:
            return 0
        held[field] = value
        self.data[key] = held
        return 1

    def _hincrby(self, key: bytes, field: bytes, step: bytes) -> int:
        value = int(self._hash(key).get(field, b"0")) + int(step)
        self._hset(key, field, b"%d" % value)
        return value

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        held = self._hash(key)
        gone = sum(held.pop(field, None) is not None for field in fields)
        if not held:
            self.data.pop(key, None)
        return gone

    def _list(self, key: bytes) -> list[bytes]:
        held = self.data.get(key, [])
        if not isinstance(held, list):
            raise ResponseError("WRONGTYPE")
        return held

    def _rpush(self, key: bytes, *values: bytes) -> int:
        held = self._list(key)
        held.extend(values)
        self.data[key] = held
        return len(held)

    def _llen(self, key: bytes) -> int:
        return len(self._list(key))

    def _lrange(self, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
        first, last = int(start), int(stop)
        return self._list(key)[first : last + 1 if last >= 0 else len(self._list(key)) + last + 1]

    def _set_of(self, key: bytes) -> set[bytes]:
        held = self.data.get(key, set())
        if not isinstance(held, set):
            raise ResponseError("WRONGTYPE")
        return held

    def _sadd(self, key: bytes, *values: bytes) -> int:
        held = self._set_of(key)
        before = len(held)
        held.update(values)
        self.data[key] = held
        return len(held) - before

    def _srem(self, key: bytes, *values: bytes) -> int:
        held = self._set_of(key)
        gone = sum(value in held for value in values)
        held.difference_update(values)
        if not held:
            self.data.pop(key, None)
        return gone

    def _smembers(self, key: bytes) -> list[bytes]:
        # A set of bytes would be walked in another order in every process.
        return sorted(self._set_of(key))


_COMMANDS: dict[str, Callable[..., Any]] = {
    "GET": Master._get,
    "SET": Master._set,
    "INCR": Master._incr,
    "PEXPIRE": Master._pexpire,
    "EXISTS": Master._exists,
    "UNLINK": Master._unlink,
    "DEL": Master._unlink,
    "HGET": Master._hget,
    "HMGET": Master._hmget,
    "HGETALL": Master._hgetall,
    "HSET": Master._hset,
    "HSETNX": Master._hsetnx,
    "HINCRBY": Master._hincrby,
    "HDEL": Master._hdel,
    "RPUSH": Master._rpush,
    "LLEN": Master._llen,
    "LRANGE": Master._lrange,
    "SADD": Master._sadd,
    "SREM": Master._srem,
    "SMEMBERS": Master._smembers,
}
