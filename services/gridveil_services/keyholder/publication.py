"""What a released window publishes beside the log: the opened entries, if the policy says so."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from itertools import chain, repeat
from pathlib import Path

from gridveil.files import make_folder, sync_folder
from gridveil.protocol.commitment import POINT_BYTES
from gridveil.protocol.release import split_entries
from gridveil_services.keyholder.spool import SpooledRelease

ENTRIES = "entries"
LOG = "log"

_FOLDER_MODE = 0o750
_FILE_MODE = 0o640


class Publication:
    """The folder of opened entries, a file a window."""

    def __init__(self, published: Path) -> None:
        self._folder = published / ENTRIES
        make_folder(self._folder, mode=_FOLDER_MODE)

    def write(
        self, release: SpooledRelease, commitments: bytes, left_out: Container[int] = ()
    ) -> None:
        """Publish the opened entries of a window; durable when this returns."""
        path, fresh = self._paths(release.header.window_start)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            for part in opened_entries(release, commitments, left_out):
                file.write(part)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
        sync_folder(self._folder)

    def discard(self, window_start: int) -> None:
        """Take back what a crash left of a window that stays without a total."""
        for path in self._paths(window_start):
            path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _paths(self, window_start: int) -> tuple[Path, Path]:
        path = self._folder / str(window_start)
        return path, path.with_name(path.name + ".new")


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
