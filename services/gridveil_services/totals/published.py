"""What the key-holder published beside its log: entries, each meter's own, city parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from gridveil.protocol.errors import IntegrityLost, NotAllowed, NotFound, Reason
from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.merkle import Tree
from gridveil.protocol.own_entry import SEALED_ENTRY_BYTES, TAG_BYTES
from gridveil.protocol.release import OPENED_ENTRY_BYTES, Total
from gridveil.protocol.v1.aggregator_pb2 import SignedCityParameters

FOR_AUDITORS = "entries"
FOR_EVERYBODY = "public"

_CHUNK_BYTES = 1_048_576 // OPENED_ENTRY_BYTES * OPENED_ENTRY_BYTES
_ROW_BYTES = TAG_BYTES + 4 + SEALED_ENTRY_BYTES
_TREES = 4


@dataclass(frozen=True)
class OwnEntryFound:
    """One meter's sealed entry, and where in the tree it is."""

    sealed: bytes
    index: int
    leaf: bytes
    proof: list[bytes]


class Published:
    """Reads the key-holder's folder; never writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tree = lru_cache(maxsize=_TREES)(_read_tree)

    def entries(self, total: Total, *, for_auditors: bool) -> Iterator[bytes]:
        """The opened entries of a total, in chunks of whole ones.

        Raises:
            NotFound: they are not published.
            NotAllowed: ROLE_NOT_ALLOWED if they are not published to everybody.
            IntegrityLost: LOG_CORRUPT, on the way, if they are not whole.
        """
        folders = (FOR_EVERYBODY, FOR_AUDITORS) if for_auditors else (FOR_EVERYBODY,)
        for folder in folders:
            path = self._folder / folder / str(total.window_start)
            if path.exists():
                return _chunks(path, total.count * OPENED_ENTRY_BYTES)
        if not for_auditors:
            raise NotAllowed(
                Reason.ROLE_NOT_ALLOWED, "the entries of this window are not for everybody"
            )
        raise _not_found("the entries of this window are not published")

    def own_entry(self, total: Total, tag: bytes) -> OwnEntryFound | None:
        """The entry with this tag; None if there is none.

        Raises:
            NotFound: own entries of the window are not kept any more.
            IntegrityLost: LOG_CORRUPT.
        """
        path = self._folder / "own" / str(total.window_start)
        try:
            with path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != total.count * (DIGEST_BYTES + _ROW_BYTES):
                    raise _corrupt("own entries are not whole")
                row = _find(file, total.count, tag)
        except FileNotFoundError:
            raise _not_found("own entries of this window are not kept any more") from None
        if row is None:
            return None
        index = int.from_bytes(row[TAG_BYTES : TAG_BYTES + 4], "little")
        tree = self._tree(path, total.count, total.entries_root)
        if index >= total.count:
            raise _corrupt("an own entry is none of the total's")
        proof = tree.inclusion_proof(index, total.count)
        return OwnEntryFound(row[TAG_BYTES + 4 :], index, tree.leaf(index), proof)

    def parameters(self, total: Total) -> SignedCityParameters:
        """The city parameters that a total names; NOT_FOUND if they are not there."""
        path = self._folder / "parameters" / total.parameters_digest.hex()
        try:
            return SignedCityParameters.FromString(path.read_bytes())
        except FileNotFoundError:
            raise _not_found("the parameters of this window are not published") from None
        except DecodeError:
            raise _corrupt("published parameters are damaged") from None


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    sent = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sent += len(chunk)
            if sent > size:
                break
            yield chunk
    if sent != size:
        raise _corrupt("the published entries are not whole")


def _find(file: BinaryIO, count: int, tag: bytes) -> bytes | None:
    """Binary search among the rows, which ascend by tag."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        row = os.pread(file.fileno(), _ROW_BYTES, count * DIGEST_BYTES + middle * _ROW_BYTES)
        found = row[:TAG_BYTES]
        if found == tag:
            return row
        low, high = (middle + 1, high) if found < tag else (low, middle)
    return None


def _read_tree(path: Path, count: int, root: bytes) -> Tree:
    with path.open("rb") as file:
        leaves = file.read(count * DIGEST_BYTES)
    tree = Tree(leaves[at : at + DIGEST_BYTES] for at in range(0, len(leaves), DIGEST_BYTES))
    if tree.size != count or tree.root(count) != root:
        raise _corrupt("own entries are not those of the total")
    return tree


def _not_found(what: str) -> NotFound:
    return NotFound(Reason.NOT_FOUND, what)


def _corrupt(how: str) -> IntegrityLost:
    return IntegrityLost(Reason.LOG_CORRUPT, how)
