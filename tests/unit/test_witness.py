"""A witness cosigns a log that only grows, and says how far it is (C2SP tlog-witness)."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import TreeHead, log_key, log_origin
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Unavailable
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import Note, sign_note
from gridveil.protocol.witnessing import (
    SIZE_TYPE,
    AddCheckpoint,
    parse_cosignatures,
    parse_size,
)
from gridveil_services.witness.config import WitnessConfig, create_key
from gridveil_services.witness.witness import Answer, Witness
from tests.support.witnesses import NOW, WitnessFolder

CITY = bytes(range(16))
KEY = SigningKey(b"k" * 32)
LOG_KEY = log_key(CITY, bytes(KEY.verify_key))
TREE = Tree(leaf_hash(b"record %d" % at) for at in range(20))
FORK = Tree(leaf_hash(b"record %d" % at if at < 3 else b"other") for at in range(20))
# The example of C2SP tlog-witness.
EXAMPLE = (
    "old 20852014\n"
    "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
    "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
    "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
    "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
    "\n"
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"  # noqa: E501
    "— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n"  # noqa: E501
).encode()
EXAMPLE_ANSWER = (
    "— witness.example/w1 CMp+6LWBU0anHGH5aNDTJkH/gj79sG+T6+iP2ThYN5krrDJbR1HDnucjL39QsZTSvVjyQLrdk3DXDqI5G2HgLatVs0pWh6Up69HVOw==\n"  # noqa: E501
    "— witness.example/w1 I7rEps0pvK2UqkS2gSpVUDhrhVtQV9lgF6pRrWAvjJHjyWpW7VcE3SiOlVlbQNt64vWhO+DlkL0+UfzuOBMh9ChdMkP1vi/lCAsmlw==\n"  # noqa: E501
).encode()


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    return WitnessFolder.create(tmp_path / "witness", LOG_KEY)


@pytest.fixture
def witness(folder: WitnessFolder) -> Iterator[Witness]:
    opened = folder.witness()
    yield opened
    opened.close()


def note(size: int, tree: Tree = TREE, key: SigningKey = KEY) -> Note:
    return TreeHead(log_origin(CITY), size, tree.root(size)).sign(key)


def ask(witness: Witness, old: int, size: int, tree: Tree = TREE) -> Answer:
    proof = tuple(tree.consistency_proof(old, size))
    return witness.add_checkpoint(AddCheckpoint(old, proof, note(size, tree)).encode())


def says(answer: Answer) -> int:
    assert (answer.status, answer.content_type) == (HTTPStatus.CONFLICT, SIZE_TYPE)
    return int(answer.body)


def test_the_published_request_and_answer_are_read_and_written_byte_for_byte() -> None:
    request = AddCheckpoint.decode(EXAMPLE)
    assert (request.old_size, len(request.proof)) == (20852014, 4)
    assert request.encode() == EXAMPLE
    assert [line.key_id.hex() for line in parse_cosignatures(EXAMPLE_ANSWER)] == [
        "08ca7ee8",
        "23bac4a6",
    ]


def test_a_log_that_grows_is_cosigned_each_time(witness: Witness, folder: WitnessFolder) -> None:
    for old, size in ((0, 0), (0, 3), (3, 3), (3, 7), (7, 20)):
        answer = ask(witness, old, size)
        assert answer.status is HTTPStatus.OK
        (line,) = parse_cosignatures(answer.body)
        assert Note(note(size).text, (line,)).is_signed_by(folder.key)
        assert int.from_bytes(line.signature[:8], "big") == NOW


def test_whoever_is_behind_or_ahead_is_told_the_size_that_was_seen(witness: Witness) -> None:
    ask(witness, 0, 7)
    assert says(ask(witness, 0, 9)) == 7
    assert says(ask(witness, 3, 5)) == 7
    assert says(ask(witness, 8, 9)) == 7
    assert ask(witness, 7, 9).status is HTTPStatus.OK


def test_a_log_is_never_taken_back_and_never_forked(witness: Witness) -> None:
    ask(witness, 0, 7)
    assert says(ask(witness, 3, 7, FORK)) == 7
    assert says(ask(witness, 7, 7, FORK)) == 7
    assert ask(witness, 7, 12, FORK).status is HTTPStatus.UNPROCESSABLE_ENTITY
    assert ask(witness, 7, 7).status is HTTPStatus.OK


def test_what_was_seen_is_remembered_over_restarts(folder: WitnessFolder) -> None:
    first = folder.witness()
    ask(first, 0, 7)
    with pytest.raises(Unavailable):
        folder.witness()
    first.close()
    later = folder.witness()
    assert says(ask(later, 0, 9)) == 7
    assert ask(later, 7, 9).status is HTTPStatus.OK
    later.close()


def test_a_memory_that_is_damaged_stops_the_witness(folder: WitnessFolder) -> None:
    first = folder.witness()
    ask(first, 0, 7)
    first.close()
    (kept,) = (path for path in (folder.folder / "state").iterdir() if path.name != "lock")
    whole = kept.read_bytes()
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(IntegrityLost):
            folder.witness()


def test_a_checkpoint_is_not_cosigned_that_cannot_be_kept(
    witness: Witness, folder: WitnessFolder
) -> None:
    (folder.folder / "state").rename(folder.folder / "aside")
    with pytest.raises(OSError, match="state"):
        ask(witness, 0, 7)
    (folder.folder / "aside").rename(folder.folder / "state")
    assert ask(witness, 0, 5).status is HTTPStatus.OK


def test_logs_and_keys_that_are_not_known_get_nothing(witness: Witness) -> None:
    unknown = TreeHead("gridveil/other", 3, TREE.root(3)).sign(KEY)
    stranger = note(3, key=SigningKey(b"s" * 32))
    text = note(3).text
    renamed = Note(text, (sign_note(text, "gridveil/other", KEY),))
    statuses = [
        witness.add_checkpoint(AddCheckpoint(0, (), found).encode()).status
        for found in (unknown, stranger, renamed)
    ]
    assert statuses == [HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.FORBIDDEN]


REQUEST = AddCheckpoint(0, (), note(3)).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        REQUEST.replace(b"old 0", b"old 00"),
        REQUEST.replace(b"old 0", b"old -1"),
        REQUEST.replace(b"old 0", b"old 4"),
        REQUEST.replace(b"old 0", b"old 99999999999999999999"),
        REQUEST.replace(b"old", b"Old"),
        REQUEST.replace(b"old 0\n", b"old 0\nAAAA\n"),
        REQUEST.replace(b"old 0\n", b"old 0\n" + EXAMPLE.split(b"\n")[1] + b"\n" * 1 + b"x\n"),
        REQUEST.replace(b"old 0\n", b"old 0\n" + (EXAMPLE.split(b"\n")[1] + b"\n") * 64),
        REQUEST + b"more",
        REQUEST[:-1],
    ],
)
def test_what_is_no_request_is_refused(witness: Witness, body: bytes) -> None:
    assert witness.add_checkpoint(body).status is HTTPStatus.BAD_REQUEST


def test_a_proof_for_a_log_never_seen_is_refused(witness: Witness) -> None:
    body = AddCheckpoint(0, (bytes(32),), note(3)).encode()
    assert witness.add_checkpoint(body).status is HTTPStatus.UNPROCESSABLE_ENTITY


@pytest.mark.parametrize("text", [b"", b"01", b"-1", b"1 ", b"\xb2", b"9" * 20])
def test_what_is_no_size_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        parse_size(text)


@pytest.mark.parametrize("name", ["", "two words", "a+b"])
def test_a_name_that_no_note_can_carry_is_refused(folder: WitnessFolder, name: str) -> None:
    folder.name = name
    folder.write(LOG_KEY)
    with pytest.raises(MalformedInput):
        WitnessConfig.load(folder.config)


def test_a_key_is_never_replaced_and_must_be_whole(folder: WitnessFolder) -> None:
    path = folder.folder / "witness.key"
    with pytest.raises(MalformedInput):
        create_key(path)
    path.write_bytes(b"short")
    with pytest.raises(GridveilError):
        WitnessConfig.load(folder.config)
