"""Spoilt requests to a witness by the thousand: refused, remembered by nothing, echoed nowhere.

As tests/integration/test_mutations.py does it with gRPC: MUTATIONS requests at the boundary where
HTTP hands bodies over, and a tenth as many over HTTP.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from random import Random

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import TreeHead, log_key, log_origin
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.witnessing import PATH, AddCheckpoint
from tests.support.mutations import CANARY, mutate
from tests.support.witnesses import WitnessFolder

MUTATIONS = int(os.environ.get("GRIDVEIL_MUTATIONS", "2500"))
CITY = bytes(range(16))
KEY, OTHER_KEY = SigningKey(b"k" * 32), SigningKey(b"o" * 32)
TREE = Tree(leaf_hash(b"record %d" % at) for at in range(20))
SEEN = 8
REFUSED = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


def request(old: int, size: int, key: SigningKey = KEY) -> bytes:
    note = TreeHead(log_origin(CITY), size, TREE.root(size)).sign(key)
    return AddCheckpoint(old, tuple(TREE.consistency_proof(old, size)), note).encode()


GOOD = request(SEEN, SEEN)
"""Cosigned again; nothing else that it could be changed to is."""
BASES = [
    GOOD,
    request(3, SEEN),
    request(12, 12),
    request(SEEN, 12, OTHER_KEY),
    replace(AddCheckpoint.decode(request(SEEN, 12)), proof=(leaf_hash(b"x"),)).encode(),
]
"""Requests of the right shape, of which the witness has good reason to refuse all but one."""


@pytest.fixture(scope="module")
def seed() -> int:
    chosen = int(os.environ.get("GRIDVEIL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"GRIDVEIL_SEED={chosen}")
    return chosen


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    folder = WitnessFolder.create(
        tmp_path / "witness", log_key(CITY, bytes(KEY.verify_key)), "witness.example/1"
    )
    witness = folder.witness()
    assert witness.add_checkpoint(request(0, SEEN)).status is HTTPStatus.OK
    witness.close()
    return folder


def spoilt(chance: Random) -> bytes:
    """A request changed in its bytes, its lines or its numbers."""
    data = chance.choice(BASES)
    for _ in range(chance.choice((1, 1, 2))):
        lines = data.split(b"\n")
        at = chance.randrange(len(lines))
        match chance.randrange(8):
            case 0:
                lines = [*lines[:at], *lines[at + 1 :]]
            case 1:
                lines = [*lines[: at + 1], *lines[at:]]
            case 2:
                lines = chance.sample(lines, len(lines))
            case 3:
                numbers = (b"0", b"-1", b"007", b"8 ", b"\xd9\xa8", b"9" * 40, b"%d" % 2**63)
                lines[at] = chance.choice((b"", b"old ")) + chance.choice(numbers)
            case 4:
                lines[at] = chance.choice((CANARY, lines[at] + b"\r", lines[at][:-1], b"\0"))
            case 5:
                lines[at:at] = [lines[at]] * chance.choice((2, 64, 2000))
            case _:
                lines = mutate(data, chance, BASES)[1].split(b"\n")
        data = b"\n".join(lines)
    return data


def says_the_same(data: bytes) -> bool:
    """Whether only signature lines were added, which a note may have of others."""
    changed, good = AddCheckpoint.decode(data), AddCheckpoint.decode(GOOD)
    signed = set(good.note.signatures) <= set(changed.note.signatures)
    return (
        signed and replace(changed, note=good.note) == good and changed.note.text == good.note.text
    )


def run(
    ask: Callable[[bytes], tuple[int, bytes]], folder: WitnessFolder, label: str, count: int
) -> Counter[int]:
    """Send spoilt requests, and look at answers and memory after each."""
    answered = Counter[int]()
    (memory,) = [path for path in folder.folder.rglob("*") if len(path.name) == 64]
    before = memory.read_bytes()
    for number in range(count):
        data = spoilt(Random(f"{label}/{number}"))
        status, body = ask(data)
        about = f"{label}/{number}: {status} {body!r} for {data[:3000]!r}"
        assert status in REFUSED or (status == HTTPStatus.OK and says_the_same(data)), about
        assert status == HTTPStatus.OK or body in (b"", b"%d\n" % SEEN), about
        assert memory.read_bytes() == before, about
        answered[status] += 1
    return answered


def test_spoilt_requests_are_refused_and_not_remembered(
    folder: WitnessFolder, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    witness = folder.witness()

    def ask(data: bytes) -> tuple[int, bytes]:
        answer = witness.add_checkpoint(data)
        return answer.status.value, answer.body

    answered = run(ask, folder, f"{seed}/witness", MUTATIONS)
    witness.close()
    assert {400, 403, 404, 409} <= set(answered)
    assert CANARY.decode() not in "".join(capfd.readouterr())


def test_over_http_they_are_answered_alike(
    folder: WitnessFolder, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with folder.serve() as endpoint:

        def ask(data: bytes) -> tuple[int, bytes]:
            connection = HTTPConnection(endpoint.url.removeprefix("http://"), timeout=10)
            connection.request("POST", PATH, data)
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
            connection.close()
            return status, body

        run(ask, folder, f"{seed}/witness/http", max(100, MUTATIONS // 10))
    assert CANARY.decode() not in "".join(capfd.readouterr())
