"""Releases on their way in: entries on disk, so that a release can be resumed and crash-proof.

A folder a release, named by its window and digest. Nothing in it is trusted after a restart
unless it is checked anew, or a claim in the log names its digest.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gridveil.files import make_folder, sync_folder, write_durably
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, Reader, blob, text, u32, u64
from gridveil.protocol.release import (
    CHUNK_BYTES,
    ENTRY_BYTES,
    EntriesDigest,
    LaneSum,
    ReleaseHeader,
    release_digest,
)
from gridveil_services.keyholder.at_rest import destroy_file

_HEADER = "header"
_ENTRIES = "entries"
_LANES = "lanes"
_NOISE = "noise"
_HEADER_DOMAIN = "gridveil/v1/spooled-header"
_LANES_DOMAIN = "gridveil/v1/spooled-lanes"
_CIPHERTEXT_LIMIT = 1 << 20


@dataclass(frozen=True)
class SpooledRelease:
    """A release that lies whole in its folder."""

    header: ReleaseHeader
    digest: bytes
    lanes: list[LaneSum]
    folder: Path

    @property
    def noise_file(self) -> Path:
        """Where the noise of its total is, once it is drawn."""
        return self.folder / _NOISE

    def chunks(self) -> Iterator[bytes]:
        """Its entries, whole ones, at most 1 MiB at a time."""
        return read_chunks(self.folder)

    def chunks_of(self, lane: int) -> Iterator[bytes]:
        """The entries of one lane, likewise."""
        start = sum(other.count for other in self.lanes if other.lane < lane)
        count = sum(other.count for other in self.lanes if other.lane == lane)
        return read_chunks(self.folder, start * ENTRY_BYTES, (start + count) * ENTRY_BYTES)


class Spool:
    """One release on its way in."""

    def __init__(self, folder: Path, header: ReleaseHeader, digest: bytes) -> None:
        self.header = header
        self.digest = digest
        self.folder = folder
        self.size = 0
        """Bytes of entries that count."""

    def append(self, entries: bytes) -> None:
        """Keep entries after those that count; OSError leaves what counts as it was."""
        with (self.folder / _ENTRIES).open("r+b") as file:
            file.seek(self.size)
            file.write(entries)
            file.flush()
        self.size += len(entries)

    def complete(self, lanes: Sequence[LaneSum]) -> SpooledRelease:
        """Make all of it durable."""
        with (self.folder / _ENTRIES).open("r+b") as file:
            file.truncate(self.size)
            os.fsync(file.fileno())
        write_durably(self.folder / _LANES, _encode_lanes(lanes))
        write_durably(self.folder / _HEADER, _encode_header(self.header))
        sync_folder(self.folder.parent)
        return SpooledRelease(self.header, self.digest, list(lanes), self.folder)


class SpoolFolder:
    """All releases on their way in; one a window at the most."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder

    def create(self, header: ReleaseHeader, digest: bytes) -> Spool:
        """An empty spool, in the place of any other of its window."""
        self.delete(header.window_start)
        folder = self._path(header.window_start, digest)
        folder.mkdir(mode=0o700)
        (folder / _HEADER).write_bytes(_encode_header(header))
        (folder / _ENTRIES).touch(0o600)
        return Spool(folder, header, digest)

    def find(self, window_start: int, digest: bytes) -> Spool | None:
        """The spool of a release, if there is one; of its entries none counts yet."""
        folder = self._path(window_start, digest)
        try:
            header = _decode_header((folder / _HEADER).read_bytes())
            (folder / _ENTRIES).stat()
        except (FileNotFoundError, GridveilError):
            return None
        return Spool(folder, header, digest)

    def find_whole(self, window_start: int, digest: bytes) -> SpooledRelease | None:
        """The release with this digest, if all of it is there: the digest is computed anew."""
        spool = self.find(window_start, digest)
        if spool is None:
            return None
        entries = EntriesDigest()
        for chunk in read_chunks(spool.folder):
            entries.update(chunk)
        try:
            lanes = _decode_lanes((spool.folder / _LANES).read_bytes())
        except (FileNotFoundError, GridveilError):
            return None
        if release_digest(spool.header, lanes, entries.digest()) != digest:
            return None
        return SpooledRelease(spool.header, digest, lanes, spool.folder)

    def windows(self) -> set[int]:
        """Windows with a spool."""
        return {int(path.name.partition("-")[0]) for path in self._folder.iterdir()}

    def delete(self, window_start: int) -> None:
        """Forget what came in for a window; its noise is overwritten."""
        for path in self._folder.glob(f"{window_start}-*"):
            destroy_file(path / _NOISE)
            shutil.rmtree(path)

    def _path(self, window_start: int, digest: bytes) -> Path:
        return self._folder / f"{window_start}-{digest.hex()}"


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a release that came in as a whole, so that all of it was synced."""
    return all((folder / name).is_file() for name in (_HEADER, _ENTRIES, _LANES))


def read_chunks(folder: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The spooled entries in a folder, or those between two bytes; at most 1 MiB at a time."""
    with (folder / _ENTRIES).open("rb") as file:
        file.seek(start)
        left = sys.maxsize if end is None else end - start
        while chunk := file.read(min(left, CHUNK_BYTES)):
            left -= len(chunk)
            yield chunk


def _encode_header(header: ReleaseHeader) -> bytes:
    return b"".join(
        (
            text(_HEADER_DOMAIN),
            header.city_id,
            header.parameters_digest,
            u64(header.window_start),
            u64(header.roster_version),
            u32(header.lanes),
            u64(header.count),
        )
    )


def _decode_header(data: bytes) -> ReleaseHeader:
    reader = Reader(data, "spooled header")
    reader.domain(_HEADER_DOMAIN)
    header = ReleaseHeader(
        reader.take(ID_BYTES),
        reader.take(DIGEST_BYTES),
        reader.uint(8),
        reader.uint(8),
        reader.uint(4),
        reader.uint(8),
    )
    reader.end()
    return header


def _encode_lanes(lanes: Sequence[LaneSum]) -> bytes:
    parts = (u32(lane.lane) + u64(lane.count) + blob(lane.ciphertext) for lane in lanes)
    return text(_LANES_DOMAIN) + u32(len(lanes)) + b"".join(parts)


def _decode_lanes(data: bytes) -> list[LaneSum]:
    reader = Reader(data, "spooled lanes")
    reader.domain(_LANES_DOMAIN)
    lanes = [
        LaneSum(reader.uint(4), reader.uint(8), reader.blob(_CIPHERTEXT_LIMIT))
        for _ in range(reader.uint(4))
    ]
    reader.end()
    return lanes
