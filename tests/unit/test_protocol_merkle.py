"""The log's tree: the published vectors of Certificate Transparency, and every way to lie."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.protocol.merkle import (
    EMPTY_ROOT,
    Tree,
    TreeHasher,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

# The reference tree of the Certificate Transparency implementations (transparency-dev/merkle).
LEAVES = [
    leaf_hash(bytes.fromhex(data))
    for data in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
L0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
L1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
L4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
N01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
N23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
N45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
N67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
N0_3 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
N4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"

INCLUSIONS = [
    (0, 1, []),
    (0, 2, [L1]),
    (1, 2, [L0]),
    (2, 3, [N01]),
    (1, 5, [L0, N23, L4]),
    (0, 8, [L1, N23, N4_7]),
    (5, 8, [L4, N67, N0_3]),
]
CONSISTENCIES = [
    (1, 1, []),
    (1, 8, [L1, N23, N4_7]),
    (2, 5, [N23, L4]),
    (6, 8, [N45, N67, N0_3]),
]


def hashes(proof: list[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in proof]


def made_leaves(size: int, label: str = "leaf") -> list[bytes]:
    return [leaf_hash(f"{label} {index}".encode()) for index in range(size)]


def holds(*proof: object) -> bool:
    """Whether the proof (of an inclusion: leaf first; of a consistency: size first) is right."""
    try:
        if isinstance(proof[0], bytes):
            verify_inclusion(*proof)  # type: ignore[arg-type]
        else:
            verify_consistency(*proof)  # type: ignore[arg-type]
    except NotAuthentic as error:
        if error.reason is not Reason.PROOF_INVALID:
            raise
        return False
    return True


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert root(LEAVES[:size]).hex() == ROOTS[size]
    assert Tree(LEAVES).root(size).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSIONS)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int, proof: list[str]) -> None:
    assert inclusion_proof(LEAVES[:size], index) == hashes(proof)
    verify_inclusion(LEAVES[index], index, size, hashes(proof), bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCIES)
def test_consistency_proofs_are_the_published_ones(old: int, new: int, proof: list[str]) -> None:
    assert consistency_proof(LEAVES[:new], old) == hashes(proof)
    old_root, new_root = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new])
    verify_consistency(old, old_root, new, new_root, hashes(proof))


def test_every_proof_of_small_trees_verifies_and_for_no_other_place() -> None:
    leaves = made_leaves(20)
    tree = Tree(leaves)
    for size in range(1, 21):
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            right = [
                other
                for other in range(20)
                if holds(leaves[index], other, size, proof, tree.root(size))
            ]
            assert right == [index]
        for old in range(size + 1):
            proof = tree.consistency_proof(old, size)
            right = [
                other
                for other in range(size + 1)
                if holds(other, tree.root(old), size, tree.root(size), proof)
            ]
            assert right == [old]


@given(st.integers(0, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_streamed_roots_and_all_proofs_agree_at_any_size(size: int, data: st.DataObject) -> None:
    leaves = made_leaves(size)
    hasher = TreeHasher()
    for leaf in leaves:
        hasher.append(leaf)
    assert (hasher.size, hasher.root()) == (size, Tree(leaves).root(size)) == (size, root(leaves))
    old = data.draw(st.integers(0, size))
    proof = consistency_proof(leaves, old)
    verify_consistency(old, root(leaves[:old]), size, hasher.root(), proof)
    if size:
        index = data.draw(st.integers(0, size - 1))
        verify_inclusion(leaves[index], index, size, inclusion_proof(leaves, index), hasher.root())


@given(st.integers(2, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_inclusion_proof_shows_nothing(size: int, data: st.DataObject) -> None:
    leaves = made_leaves(size)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    changed = data.draw(st.sampled_from(_changes(proof)))
    assert not holds(leaves[index], index, size, changed, root(leaves))


@given(st.integers(2, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_consistency_proof_shows_nothing(size: int, data: st.DataObject) -> None:
    leaves = made_leaves(size)
    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(leaves, old)
    changed = data.draw(st.sampled_from(_changes(proof)))
    assert not holds(old, root(leaves[:old]), size, root(leaves), changed)


def _changes(proof: list[bytes]) -> list[list[bytes]]:
    bad = bytes(32)
    changes = [[*proof, bad], [bad, *proof], proof[1:], proof[:-1], [*proof[:-1], proof[-1][:31]]]
    changes += [[*proof[:at], bad, *proof[at + 1 :]] for at in range(len(proof))]
    return changes


@given(st.integers(1, 40), st.integers(0, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_no_proof_joins_a_tree_to_one_that_changed_what_it_had(
    old: int, more: int, data: st.DataObject
) -> None:
    honest = made_leaves(old + more)
    at = data.draw(st.integers(0, old - 1))
    forked = [*honest[:at], leaf_hash(b"another"), *honest[at + 1 :]]
    for proof in (consistency_proof(forked, old), consistency_proof(honest, old)):
        assert not holds(old, root(honest[:old]), old + more, root(forked), proof)


def test_a_tree_never_shrinks_and_begins_empty() -> None:
    leaves = made_leaves(5)
    assert not holds(5, root(leaves), 4, root(leaves[:4]), [])
    assert holds(0, EMPTY_ROOT, 5, root(leaves), [])
    assert not holds(0, root(leaves), 5, root(leaves), [])
    assert not holds(0, EMPTY_ROOT, 5, root(leaves), [bytes(32)])
    assert not holds(0, EMPTY_ROOT, 0, root(leaves), [])
    assert not holds(0, root(leaves), 0, root(leaves), [])
    assert not holds(5, root(leaves), 5, root(leaves), [bytes(32)])
    assert not holds(leaves[0], -1, 5, inclusion_proof(leaves, 0), root(leaves))


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_no_proof_for_what_the_tree_lacks(index: int) -> None:
    with pytest.raises(ValueError, match="no such leaves"):
        inclusion_proof(made_leaves(5), index)


@pytest.mark.parametrize("old", [-1, 6])
def test_there_is_no_proof_from_a_larger_tree(old: int) -> None:
    with pytest.raises(ValueError, match="no such leaves"):
        consistency_proof(made_leaves(5), old)
