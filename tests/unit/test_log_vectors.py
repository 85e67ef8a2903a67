"""The vectors of the log, computed once more from the specifications with hashlib and PyNaCl."""

from __future__ import annotations

import base64
import hashlib

from nacl.signing import VerifyKey

from tests.vectors import generate

VECTOR = generate.load("log")
LEAVES = [hashlib.sha256(b"\0" + bytes.fromhex(record)).digest() for record in VECTOR["records"]]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], *, complete: bool) -> list[bytes]:
    """RFC 9162, section 2.1.4.1."""
    n = len(leaves)
    if m == n:
        return [] if complete else [mth(leaves)]
    k = split(n)
    if m <= k:
        return [*subproof(m, leaves[:k], complete=complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], complete=False), mth(leaves[:k])]


def test_leaves_roots_and_proofs_are_those_of_the_specification() -> None:
    assert VECTOR["leaf_hashes"] == [leaf.hex() for leaf in LEAVES]
    assert VECTOR["roots"] == [mth(LEAVES[:size]).hex() for size in range(len(LEAVES) + 1)]
    for proof in VECTOR["inclusion_proofs"]:
        expected = path(proof["index"], LEAVES[: proof["size"]])
        assert proof["hashes"] == [value.hex() for value in expected]
    for proof in VECTOR["consistency_proofs"]:
        old, size = proof["old_size"], proof["size"]
        expected = subproof(old, LEAVES[:size], complete=True) if old else []
        assert proof["hashes"] == [value.hex() for value in expected]


def signature_of(line: str, key: str, type_: int) -> tuple[bytes, VerifyKey]:
    """The signature in a line, its key id checked, and the key in a written key."""
    name, key_id, material = key.split("+", 2)
    raw = base64.b64decode(material)
    assert raw[0] == type_
    assert hashlib.sha256(name.encode() + b"\n" + raw).hexdigest()[:8] == key_id
    dash, signer, encoded = line.split(" ")
    data = base64.b64decode(encoded)
    assert (dash, signer, data[:4].hex()) == ("—", name, key_id)
    return data[4:], VerifyKey(raw[1:])


def test_the_checkpoint_and_its_cosignature_verify() -> None:
    text, _, lines = VECTOR["cosigned_checkpoint"].partition("\n\n")
    text += "\n"
    origin, size, root = text.splitlines()
    assert origin == f"gridveil/{VECTOR['city_id']}"
    assert (int(size), base64.b64decode(root)) == (len(LEAVES), mth(LEAVES))
    first, second = lines.splitlines()
    assert VECTOR["checkpoint"] == f"{text}\n{first}\n"
    signature, key = signature_of(first, VECTOR["log_key"], 1)
    assert bytes(key).hex() == VECTOR["identity_key"]
    key.verify(text.encode(), signature)
    cosignature, witness = signature_of(second, VECTOR["witness_key"], 4)
    assert int.from_bytes(cosignature[:8], "big") == VECTOR["cosigned_at"]
    message = f"cosignature/v1\ntime {VECTOR['cosigned_at']}\n{text}"
    witness.verify(message.encode(), cosignature[8:])


def test_the_request_to_the_witness_is_its_proof_and_the_checkpoint() -> None:
    old, *hashes = VECTOR["add_checkpoint"].partition("\n\n")[0].splitlines()
    assert old == "old 3"
    assert [base64.b64decode(value) for value in hashes] == subproof(3, LEAVES, complete=True)
    assert VECTOR["add_checkpoint"].endswith("\n\n" + VECTOR["checkpoint"])
