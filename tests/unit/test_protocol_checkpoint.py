"""Signed notes and checkpoints: the published examples byte for byte, and nothing else passes."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import (
    TreeHead,
    WitnessPolicy,
    log_key,
    log_origin,
    open_checkpoint,
)
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAuthentic, Reason
from gridveil.protocol.note import Note, NoteKey, SignatureType, cosign, sign_note

# The example of golang.org/x/mod/sumdb/note.
PETER = NoteKey.decode("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
PETERS_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETERS_TEXT = (
    b"If you think cryptography is the answer to your problem,\n"
    b"then you don't know what your problem is.\n"
)
PETERS_NOTE = (
    PETERS_TEXT.decode() + "\n"
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
# The example of C2SP tlog-cosignature.
SOFA = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"  # noqa: E501
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"  # noqa: E501
).encode()

CITY = bytes(range(16))
LOG = SigningKey(b"l" * 32)
LOG_KEY = log_key(CITY, bytes(LOG.verify_key))
HEAD = TreeHead(log_origin(CITY), 12, bytes(range(32)))
WITNESSES = [SigningKey(bytes([at]) * 32) for at in (1, 2, 3)]
NAMES = [f"witness.example/{at}" for at in (1, 2, 3)]
WITNESS_KEYS = tuple(
    NoteKey(name, SignatureType.COSIGNATURE, bytes(key.verify_key))
    for name, key in zip(NAMES, WITNESSES, strict=True)
)


def checkpoint(*cosigners: int) -> bytes:
    note = HEAD.sign(LOG)
    lines = [cosign(note.text, NAMES[at], WITNESSES[at], 1_700_000_000) for at in cosigners]
    return note.with_signatures(lines).encode()


def test_the_published_note_is_made_byte_for_byte_and_verifies() -> None:
    signature = sign_note(PETERS_TEXT, "PeterNeumann", SigningKey(PETERS_SEED))
    assert Note(PETERS_TEXT, (signature,)).encode() == PETERS_NOTE
    assert Note.decode(PETERS_NOTE).encode() == PETERS_NOTE
    assert Note.decode(PETERS_NOTE).is_signed_by(PETER)
    assert PETER.key_id.hex() == "c74f20a3"


def test_the_published_checkpoint_is_read_and_written_byte_for_byte() -> None:
    note = Note.decode(SOFA)
    head = TreeHead.decode(note.text)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20852163)
    assert head.encode() == note.text
    assert note.encode() == SOFA
    assert [line.key_id.hex() for line in note.signatures] == ["033de0ae", "8d66cf3f"]
    assert int.from_bytes(note.signatures[1].signature[:8], "big") == 1679315147


@pytest.mark.parametrize("at", range(len(PETER.encode())))
def test_a_key_with_another_letter_is_refused(at: int) -> None:
    text = PETER.encode()
    with pytest.raises(MalformedInput):
        NoteKey.decode(text[:at] + chr(ord(text[at]) + 1) + text[at + 1 :])


def test_a_log_signs_with_its_identity_key_under_its_origin() -> None:
    opened = open_checkpoint(checkpoint(), LOG_KEY)
    assert opened.head == HEAD
    assert opened.note == checkpoint()
    assert checkpoint().startswith(b"gridveil/000102030405060708090a0b0c0d0e0f\n12\n")


@given(st.integers(0, len(checkpoint(0)) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_gives_another_checkpoint(bit: int) -> None:
    data = bytearray(checkpoint(0))
    data[bit // 8] ^= 1 << bit % 8
    policy = WitnessPolicy(1, WITNESS_KEYS)
    with pytest.raises(GridveilError):
        open_checkpoint(bytes(data), LOG_KEY, policy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"gridveil/00\n12\n",
        b"gridveil/00\n012\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n-1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n+1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n1 \nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n9223372036854775808\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n" + b"9" * 5_000 + b"\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        b"gridveil/00\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=\n",
        b"gridveil/00\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh\n",
        b"gridveil/00\n12\nAAEC\n",
        b"gridveil/00\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        b"gridveil/00\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\nmore\n",
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        TreeHead.decode(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PETERS_TEXT,
        PETERS_TEXT + b"\n",
        PETERS_NOTE[:-1],
        PETERS_NOTE + b"\n",
        PETERS_NOTE + b"more",
        PETERS_NOTE.replace(b"\xe2\x80\x94", b"-"),
        PETERS_NOTE.replace(b"you ", b"you\t"),
        PETERS_NOTE.replace(b"you ", b"you\xff"),
        PETERS_NOTE.replace(b"PeterNeumann x", b"Peter Neumann x"),
        PETERS_NOTE.replace(b"PeterNeumann x", b"Peter+Neumann x"),
        PETERS_NOTE.replace(b"nAM=", b"nAN="),
        PETERS_NOTE.replace(b"nAM=", b"nAM"),
        PETERS_NOTE + PETERS_NOTE.splitlines(keepends=True)[-1] * 16,
    ],
)
def test_what_is_no_signed_note_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        Note.decode(data)


def test_signatures_of_unknown_keys_are_ignored_and_wrong_ones_are_not() -> None:
    note = Note.decode(PETERS_NOTE)
    stranger = sign_note(PETERS_TEXT, "stranger", LOG)
    assert note.with_signatures([stranger]).is_signed_by(PETER)
    assert not Note(PETERS_TEXT, (stranger,)).is_signed_by(PETER)
    wrong = replace(note.signatures[0], signature=bytes(64))
    with pytest.raises(NotAuthentic):
        note.with_signatures([wrong]).is_signed_by(PETER)


def test_another_key_or_another_citys_log_is_not_believed() -> None:
    other = bytes(SigningKey(b"o" * 32).verify_key)
    for key in (log_key(CITY, other), log_key(bytes(16), LOG_KEY.public_key)):
        with pytest.raises(NotAuthentic) as refused:
            open_checkpoint(checkpoint(), key)
        assert refused.value.reason is Reason.KEY_NOT_PINNED


def test_a_key_signs_for_its_own_log_only() -> None:
    """The log's key name is right, the text is another log's."""
    text = TreeHead(log_origin(bytes(16)), 1, bytes(32)).encode()
    note = Note(text, (sign_note(text, LOG_KEY.name, LOG),)).encode()
    with pytest.raises(NotAuthentic) as refused:
        open_checkpoint(note, LOG_KEY)
    assert refused.value.reason is Reason.KEY_NOT_PINNED


def test_so_many_witnesses_as_the_policy_says_must_have_cosigned() -> None:
    policy = WitnessPolicy(2, WITNESS_KEYS)
    assert open_checkpoint(checkpoint(0, 2), LOG_KEY, policy).head == HEAD
    assert open_checkpoint(checkpoint(0, 1, 2), LOG_KEY, policy).head == HEAD
    for cosigners in ((), (1,), (1, 1)):
        with pytest.raises(GridveilError) as refused:
            open_checkpoint(checkpoint(*cosigners), LOG_KEY, policy)
        assert refused.value.reason is Reason.NOT_WITNESSED


def test_a_cosignature_holds_for_its_time_only() -> None:
    note = Note.decode(checkpoint(0))
    line = note.signatures[1]
    assert note.is_signed_by(WITNESS_KEYS[0])
    later = replace(line, signature=(1_700_000_001).to_bytes(8, "big") + line.signature[8:])
    with pytest.raises(NotAuthentic):
        Note(note.text, (later,)).is_signed_by(WITNESS_KEYS[0])


@pytest.mark.parametrize(
    ("threshold", "witnesses"),
    [
        (1, ()),
        (4, WITNESS_KEYS),
        (-1, WITNESS_KEYS),
        (1, (WITNESS_KEYS[0], WITNESS_KEYS[0])),
        (1, (WITNESS_KEYS[0], replace(WITNESS_KEYS[0], name="another"))),
        (1, (LOG_KEY,)),
    ],
)
def test_a_policy_that_promises_less_than_it_says_is_refused(
    threshold: int, witnesses: tuple[NoteKey, ...]
) -> None:
    with pytest.raises(MalformedInput):
        WitnessPolicy(threshold, witnesses)
