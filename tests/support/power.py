"""A disk below SQLite whose power can be cut at any moment.

The shim passes everything on to the real file system and notes each write, truncation, sync and
removal. From those notes any number of images are made of what a power cut at some moment may
leave: what was synced is there; of what was not, each sector of 512 bytes holds one of the things
that were written to it since, and a truncation has happened or not.

    with recording(folder) as disk:
        ...                                     # SQLite at work on files in the folder
    disk.cut(at=disk.events // 2, target=copy, chance=Random(1))

A kill -9 cannot find a missing fsync, as the kernel keeps what was written; this can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import apsw

SECTOR = 512
_NAME = "gridveil-power"


@dataclass(frozen=True)
class _Event:
    file: str
    """Name in the folder."""
    kind: str
    """``write``, ``truncate``, ``sync``, ``delete``, or ``folder`` for a sync of the names."""
    at: int = 0
    data: bytes = b""


@dataclass
class _Content:
    """One file while notes are replayed."""

    durable: bytearray = field(default_factory=bytearray)
    named: bool = False
    """Whether its name is durable."""
    pending: list[_Event] = field(default_factory=list)

    def sync(self) -> None:
        for event in self.pending:
            _apply(self.durable, event)
        self.pending.clear()


class Disk:
    """Notes of what became of the files in one folder."""

    def __init__(self, folder: Path, *, lies_about: str | None = None) -> None:
        """What lies in the folder counts as durable.

        Args:
            folder: of the database.
            lies_about: syncs of files whose name ends so are not noted, as a broken disk would.
        """
        self._lies_about = lies_about
        self._folder = folder.stat()
        self._before = {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.endswith((".lock", "-shm"))
        }
        self._events: list[_Event] = []

    @property
    def events(self) -> int:
        """How many there were so far; the power may be cut after each."""
        return len(self._events)

    @property
    def syncs(self) -> int:
        """How many of them were syncs."""
        return sum(event.kind == "sync" for event in self._events)

    def note(self, file: str, kind: str, at: int = 0, data: bytes = b"") -> None:
        """One more event."""
        if kind == "sync" and self._lies_about and file.endswith(self._lies_about):
            return
        self._events.append(_Event(file, kind, at, data))

    def fsync(self, fd: Any) -> None:
        """In the place of ``os.fsync``, with which Gridveil syncs its folders."""
        if os.path.samestat(os.fstat(fd), self._folder):
            self.note("", "folder")

    def cut(self, at: int, target: Path, chance: Random) -> None:
        """Write into the new folder ``target`` what may be left after ``at`` events."""
        target.mkdir(parents=True)
        reach = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for name, content in self._replay(at).items():
            if content.named or chance.random() < reach:
                (target / name).write_bytes(_torn(content, reach, chance))

    def _replay(self, at: int) -> dict[str, _Content]:
        files = {name: _Content(bytearray(data), True) for name, data in self._before.items()}
        gone: dict[str, _Content] = {}
        """Removed, and may come back: their folder was not synced since."""
        for event in self._events[:at]:
            if event.kind == "folder":
                _sync_names(files, gone)
                continue
            content = files.setdefault(event.file, _Content())
            if event.kind == "sync":
                content.sync()
                # SQLite syncs the folder with the first sync of a new log or journal.
                if not content.named and event.file.endswith(("-wal", "-journal")):
                    _sync_names(files, gone)
            elif event.kind == "delete":
                if files.pop(event.file).named:
                    gone[event.file] = content
            else:
                content.pending.append(event)
        return gone | files


def _sync_names(files: dict[str, _Content], gone: dict[str, _Content]) -> None:
    gone.clear()
    for content in files.values():
        content.named = True


@contextmanager
def recording(folder: Path, *, lies_about: str | None = None) -> Iterator[Disk]:
    """Note what SQLite does with the files in ``folder``, on connections opened meanwhile."""
    disk = Disk(folder, lies_about=lies_about)
    default = apsw.vfs_names()[0]
    shim = _Shim(disk, default)
    fsync = os.fsync
    os.fsync = disk.fsync
    try:
        yield disk
    finally:
        os.fsync = fsync
        shim.unregister()
        # The shim was the default; without it the first that is left is.
        assert apsw.vfs_names()[0] == default


class _Shim(apsw.VFS):
    def __init__(self, disk: Disk, base: str) -> None:
        self._disk = disk
        self._base = base
        super().__init__(_NAME, base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(self._disk, self._base, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self._disk.note(Path(filename).name, "delete")
        if syncdir:
            self._disk.note("", "folder")


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, base: str, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = Path(name.filename() if hasattr(name, "filename") else name).name
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.note(self._name, "write", offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._disk.note(self._name, "truncate", newsize)

    def xSync(self, flags: int) -> None:
        # Not passed on: the machine that runs the tests keeps its power.
        self._disk.note(self._name, "sync")


def _apply(content: bytearray, event: _Event) -> None:
    if event.kind == "truncate":
        if event.at < len(content):
            del content[event.at :]
        else:
            content.extend(bytes(event.at - len(content)))
        return
    if event.at > len(content):
        content.extend(bytes(event.at - len(content)))
    content[event.at : event.at + len(event.data)] = event.data


def _torn(content: _Content, reach: float, chance: Random) -> bytes:
    """Of each sector one of its versions, older ones being likelier the smaller ``reach`` is."""
    data = bytearray(content.durable)
    settled: set[int] = set()
    """Sectors that the disk has stopped writing."""
    for event in content.pending:
        if event.kind == "truncate":
            if chance.random() < reach:
                _apply(data, event)
            continue
        end = event.at + len(event.data)
        for sector in range(event.at // SECTOR, (end + SECTOR - 1) // SECTOR):
            if sector in settled or chance.random() >= reach:
                settled.add(sector)
                continue
            first, last = max(event.at, sector * SECTOR), min(end, (sector + 1) * SECTOR)
            part = event.data[first - event.at : last - event.at]
            _apply(data, _Event(event.file, "write", first, part))
    return bytes(data)
