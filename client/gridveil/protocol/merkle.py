"""Merkle trees (RFC 9162, section 2.1, with SHA-256): roots, and proofs of what is in them.

A tree is over the hashes of its leaves, in order. The proofs are lists of 32-byte hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.protocol.layout import DIGEST_BYTES

EMPTY_ROOT = hashlib.sha256().digest()
"""Root of the tree without leaves."""

PROOF_LIMIT = 63
"""Longest proof in hashes: trees have fewer than 2^63 leaves."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), 32 bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The tree's root, 32 bytes; SHA-256 of nothing for no leaves."""
    hasher = TreeHasher()
    for leaf in leaf_hashes:
        hasher.append(leaf)
    return hasher.root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(index, leaves), section 2.1.3.1; ValueError unless 0 <= index < leaves."""
    return Tree(leaf_hashes).inclusion_proof(index, len(leaf_hashes))


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """PROOF(old_size, leaves), section 2.1.4.1; empty for old sizes 0 and all.

    ValueError unless 0 <= old_size <= leaves.
    """
    return Tree(leaf_hashes).consistency_proof(old_size, len(leaf_hashes))


class TreeHasher:
    """The root of a growing tree, in memory of the order of log(leaves)."""

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []

    @property
    def size(self) -> int:
        """How many leaves were appended."""
        return self._size

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        full = self._size
        while full & 1:
            leaf = node_hash(self._peaks.pop(), leaf)
            full >>= 1
        self._peaks.append(leaf)
        self._size += 1

    def root(self) -> bytes:
        """Root over the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        *others, result = self._peaks
        for peak in reversed(others):
            result = node_hash(peak, result)
        return result


class Tree:
    """A growing tree that keeps all its nodes: roots and proofs for every size it has had."""

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaf_hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """How many leaves were appended."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        for level in self._levels:
            level.append(leaf)
            if len(level) % 2:
                return
            leaf = node_hash(level[-2], level[-1])
        self._levels.append([leaf])

    def leaf(self, index: int) -> bytes:
        """The hash of a leaf."""
        return self._levels[0][index]

    def root(self, size: int) -> bytes:
        """Root over the first ``size`` leaves."""
        self._check(0 <= size <= self.size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Proof that leaf ``index`` is in the tree over the first ``size`` leaves."""
        self._check(0 <= index < size <= self.size)
        start, end = 0, size
        proof = []
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old_size: int, size: int) -> list[bytes]:
        """Proof that the first ``size`` leaves begin with the first ``old_size`` leaves."""
        self._check(0 <= old_size <= size <= self.size)
        if old_size in (0, size):
            return []
        start, end = 0, size
        proof = []
        while end != old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(start, middle))
                start = middle
        if start:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _subtree(self, start: int, end: int) -> bytes:
        """Root over some leaves that are a subtree of a tree over the first leaves."""
        size = end - start
        if size & (size - 1) == 0:
            return self._levels[size.bit_length() - 1][start // size]
        middle = start + _split(size)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))

    @staticmethod
    def _check(possible: bool) -> None:
        if not possible:
            raise ValueError("the tree has no such leaves")


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], tree_root: bytes
) -> None:
    """PROOF_INVALID unless the proof shows leaf hash ``leaf`` at ``index`` (section 2.1.3.2)."""
    if not 0 <= index < size:
        raise _invalid("an inclusion proof is for a leaf that the tree does not have")
    _check_lengths((leaf, tree_root, *proof))
    at, last, result = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _invalid("an inclusion proof is too long")
        if at & 1 or at == last:
            result = node_hash(sibling, result)
            at, last = _skip_lone(at, last)
        else:
            result = node_hash(result, sibling)
        at, last = at >> 1, last >> 1
    if last != 0 or result != tree_root:
        raise _invalid("an inclusion proof does not lead to the root")


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """PROOF_INVALID unless the new tree begins with the old one's leaves (section 2.1.4.2)."""
    if not 0 <= old_size <= new_size:
        raise _invalid("a consistency proof leads to a smaller tree")
    _check_lengths((old_root, new_root, *proof))
    if old_size in (0, new_size):
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if proof or old_root != expected or (new_size == 0 and new_root != EMPTY_ROOT):
            raise _invalid("trees that need no consistency proof are not consistent")
        return
    if not proof:
        raise _invalid("a consistency proof is empty")
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if _rebuild(old_size, new_size, path) != (old_root, new_root):
        raise _invalid("a consistency proof does not lead to both roots")


def _rebuild(old_size: int, new_size: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _invalid("a consistency proof is too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            at, last = _skip_lone(at, last)
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise _invalid("a consistency proof is too short")
    return old, new


def _skip_lone(at: int, last: int) -> tuple[int, int]:
    """Up to where the rightmost node has a sibling: on the way there it is carried unchanged."""
    while not at & 1 and at:
        at, last = at >> 1, last >> 1
    return at, last


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return int(1 << ((size - 1).bit_length() - 1))


def _check_lengths(hashes: Iterable[bytes]) -> None:
    if any(len(value) != DIGEST_BYTES for value in hashes):
        raise _invalid("a hash has another length")


def _invalid(how: str) -> NotAuthentic:
    return NotAuthentic(Reason.PROOF_INVALID, how)
