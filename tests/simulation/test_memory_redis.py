"""The simulated Redis answers what a real one does, to the product's own scripts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from redis.exceptions import ResponseError

from gridveil_services.aggregator.store.redis import scripts
from tests.simulation.cluster.memory_redis import Argument, Master
from tests.support.redis_servers import NEEDED, one_server

pytestmark = NEEDED

_KEYS = ["{t}:lane", "{t}:journal", "{t}:partials", "{t}:receipts:000", "{t}:receipts:001"]
_WINDOW, _SET, _NAME, _TEXT = "{t}:window", "{t}:set", "{t}:leader", "{t}:text"


def _eval(text: str, keys: list[str], *values: Argument) -> tuple[Argument, ...]:
    return ("EVAL", text, len(keys), *keys, *values)


def _commit(source: random.Random) -> tuple[Argument, ...]:
    number = source.randrange(4)
    reports = b""
    for meter in source.sample(range(8), source.randint(1, 3)):
        key = (4 + meter % 2).to_bytes(2, "big")
        reports += key + b"r" * 40 + (bytes([meter]) * 16 + b"entry").ljust(204, b"\0")
    writer, last = source.choice(["a", "b"]), str(number)
    fixed = (writer, str(number + 1), last, b"p", source.choice([b"sum", b"\x00\xff"]))
    return _eval(scripts.COMMIT, _KEYS, *fixed, reports)


def commands(source: random.Random) -> tuple[Argument, ...]:
    """One command of those that the store uses, on keys that others use too."""
    one = source.choice
    return one(
        [
            _commit(source),
            _commit(source),
            _eval(scripts.OPEN_LANE, _KEYS[:3], b"p", "12", b"digest"),
            _eval(scripts.CONFIRM, _KEYS[:1]),
            _eval(scripts.SEAL_LANE, [_KEYS[0], _KEYS[2]], one(["1", "2"]), "a", one(["0", "9"])),
            _eval(scripts.OPEN_WINDOW, [_WINDOW], b"facts", "1", "lineage", ""),
            _eval(scripts.MOVE_WINDOW, [_WINDOW], b"facts", "1", b"facts"),
            _eval(scripts.FENCE, [_WINDOW], "1"),
            _eval(scripts.SEAL_WINDOW, [_WINDOW], "1", "2", one(["1", "2", "3"])),
            _eval(scripts.SETTLE, [_WINDOW], b"facts", "3", one(["x", "y"]), "", "2"),
            _eval(scripts.JOIN, [_WINDOW], "me", "1", "2"),
            _eval(scripts.VOUCH, [_WINDOW], "me", "2", "1", "digest"),
            _eval(scripts.INQUIRE, [_WINDOW], "me", "1", one(["x", "y"])),
            _eval(scripts.ANSWER, [_WINDOW], "me", "1", one(["x", "y"]), "you"),
            _eval(scripts.RESIGN, [_NAME], "me"),
            _eval(scripts.FORGET, ["{t}:forgotten", _SET], one(["5", "7"]), "5"),
            _eval(scripts.SERVERS, ["{t}:servers"], "1", one(["l", "m"]), "1.5"),
            _eval(scripts.KNOWN, [_KEYS[3], _KEYS[4]], b"\x00" * 16, b"\x01" * 16),
            ("HGETALL", one([_KEYS[0], _KEYS[2], _WINDOW])),
            ("HMGET", _KEYS[0], "count", "sealed", "none"),
            ("HSETNX", "{t}:equivocations", one(["a", "b"]), one([b"1", b"2"])),
            ("SADD", _SET, one([5, 6, 7])),
            ("LLEN", _KEYS[1]),
            ("LRANGE", _KEYS[1], one([0, 2]), one([1, 3, -1])),
            ("GET", "{t}:forgotten"),
            ("HGET", one([_KEYS[1], _KEYS[2]]), "s:a"),
            ("EXISTS", _KEYS[0]),
            ("UNLINK", *source.sample([*_KEYS, _WINDOW], source.choice([1, 1, 2]))),
            ("SET", _TEXT, "x", "PX", "600000"),
            ("RPUSH", one([_TEXT, "{t}:list"]), "y"),
        ]
    )


def _said(answer: Any) -> Any:
    if isinstance(answer, ResponseError):
        return "refused"
    return sorted(answer) if isinstance(answer, (set, frozenset)) else answer


@pytest.mark.parametrize("seed", range(4))
def test_it_answers_as_a_real_server_does(seed: int) -> None:
    source = random.Random(seed)
    client = one_server().client
    client.flushall()
    master = Master("m", random.Random(seed), lambda: 0.0)
    for _ in range(100):
        together = [commands(source) for _ in range(10)]
        pipeline = client.pipeline(transaction=False)
        for command in together:
            pipeline.execute_command(*command)
        answers = pipeline.execute(raise_on_error=False)
        for command, answer in zip(together, answers, strict=True):
            try:
                found = master.execute(command)
            except ResponseError as error:
                found = error
            name = command[0] if command[0] != "EVAL" else str(command[1])[:200]
            assert _said(found) == _said(answer), name
    kept = {key.decode() for key in client.scan_iter()}
    assert kept == {key.decode() for key in master.data}


def test_what_a_full_server_refuses_it_refuses_whole() -> None:
    master = Master("m", random.Random(0), lambda: 0.0)
    master.execute(_eval(scripts.OPEN_LANE, _KEYS[:3], b"p", "12", b"digest"))
    before = dict(master.data)
    master.full = True
    for command in (_eval(scripts.CONFIRM, _KEYS[:1]), ("SADD", _SET, 1)):
        with pytest.raises(ResponseError):
            master.execute(command)
    assert master.execute(_eval(scripts.KNOWN, _KEYS[3:], b"a", b"b")) == []
    assert master.data == before
