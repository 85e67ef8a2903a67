"""What a released window publishes beside the log.

entries/<window>       opened entries for auditors, if the policy says so
public/<window>        the same for everybody, if the policy says so
own/<window>           opened entries, each for its own meter only; for OWN_ENTRIES_KEPT_S
parameters/<digest>    the signed city parameters that totals name, for ever
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path

from gridveil.files import make_folder, sync_folder, write_durably
from gridveil.protocol.city import EntryAudience
from gridveil.protocol.commitment import POINT_BYTES
from gridveil.protocol.layout import u32
from gridveil.protocol.merkle import TreeHasher, leaf_hash
from gridveil.protocol.own_entry import TAG_BYTES
from gridveil.protocol.release import split_entries, split_opened
from gridveil_services.keyholder.epoch_store import SignedParameters
from gridveil_services.keyholder.spool import SpooledRelease

LOG = "log"
ENTRIES = {EntryAudience.AUDITORS: "entries", EntryAudience.PUBLIC: "public"}
OWN = "own"
PARAMETERS = "parameters"

OWN_ENTRIES_KEPT_S = 7 * 86_400
"""After a window's start, how long its meters can fetch their own entries."""

OwnRow = Callable[[bytes, bytes], bytes]
"""From an opened entry and its leaf hash, the tag and the sealed entry, 260 bytes."""

_FOLDER_MODE = 0o750
_FILE_MODE = 0o640


class Publication:
    """The folders beside the log, a file a window or epoch."""

    def __init__(self, published: Path) -> None:
        self._folders = {name: published / name for name in (*ENTRIES.values(), OWN, PARAMETERS)}
        for folder in self._folders.values():
            make_folder(folder, mode=_FOLDER_MODE)

    def write(
        self,
        release: SpooledRelease,
        commitments: bytes,
        left_out: Container[int],
        signed: SignedParameters,
        audience: EntryAudience,
        own_row: OwnRow,
    ) -> bytes:
        """Publish what opened; durable when this returns. The root of the entries' tree.

        Args:
            release: claimed and opened.
            commitments: 32 bytes an entry of the lanes that opened, in order.
            left_out: lanes that did not.
            signed: the parameters of the release's epoch.
            audience: who may fetch the entries.
            own_row: seals a meter's own entry.
        """
        self._write_parameters(signed)
        name = str(release.header.window_start)
        if audience in ENTRIES:
            entries = opened_entries(release, commitments, left_out)
            _write_parts(self._folders[ENTRIES[audience]] / name, entries)

        entries = opened_entries(release, commitments, left_out)
        tree = TreeHasher()
        _write_parts(self._folders[OWN] / name, own_entries(entries, own_row, tree))
        return tree.root()

    def discard(self, window_start: int) -> None:
        """Take back what a crash left of a window that stays without a total."""
        for folder in (*ENTRIES.values(), OWN):
            self._remove(self._folders[folder], str(window_start))

    def prune(self, now: float) -> None:
        """Delete the meters' own entries of windows that are too long ago."""
        folder = self._folders[OWN]
        for path in list(folder.iterdir()):
            if int(path.stem) + OWN_ENTRIES_KEPT_S <= now:
                self._remove(folder, path.stem)

    def _write_parameters(self, signed: SignedParameters) -> None:
        path = self._folders[PARAMETERS] / signed.parameters.digest.hex()
        if not path.exists():
            write_durably(path, signed.to_message().SerializeToString(), mode=_FILE_MODE)

    @staticmethod
    def _remove(folder: Path, name: str) -> None:
        for path in (folder / name, _unfinished(folder / name)):
            path.unlink(missing_ok=True)
        sync_folder(folder)


def opened_entries(
    release: SpooledRelease, commitments: bytes, left_out: Container[int] = ()
) -> Iterator[bytes]:
    """Each entry of the lanes that opened with its commitment, in order; a chunk at a time.

    ``commitments``: 32 bytes an entry of those lanes, in the order of the release.
    """
    counted = chain.from_iterable(
        repeat(lane.lane not in left_out, lane.count) for lane in release.lanes
    )
    at = 0
    for chunk in release.chunks():
        parts = []
        for entry, counts in zip(split_entries(chunk), counted, strict=False):
            if counts:
                parts += [entry, commitments[at : at + POINT_BYTES]]
                at += POINT_BYTES
        yield b"".join(parts)


def own_entries(chunks: Iterable[bytes], own_row: OwnRow, tree: TreeHasher) -> Iterator[bytes]:
    """The file of own entries: all leaf hashes in order, then rows ascending by tag.

    Each leaf is appended to ``tree``. A row is the tag, the entry's index (u32), and the sealed
    entry: 264 bytes.
    """
    rows = []
    for index, entry in enumerate(chain.from_iterable(map(split_opened, chunks))):
        leaf = leaf_hash(entry)
        tree.append(leaf)
        row = own_row(entry, leaf)
        rows.append(row[:TAG_BYTES] + u32(index) + row[TAG_BYTES:])
        yield leaf
    rows.sort()
    yield from rows


def _write_parts(path: Path, parts: Iterable[bytes]) -> None:
    fresh = _unfinished(path)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
    sync_folder(path.parent)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".new")
