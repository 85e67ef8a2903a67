"""What of a folder survives a power cut, by the letter of POSIX.

A file holds what it held at its last fsync, a folder names what it named at its last fsync, and
nothing else is promised. A kill, in contrast, loses nothing that was written.

    disk = DurableDisk(folder)          # all that lies there counts as durable
    disk.synced(descriptor)             # after each fsync
    disk.materialise(copy, Random(1))   # what a power cut may leave
"""

from __future__ import annotations

import os
import pickle
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

DATABASE = ".db"
"""SQLite syncs its own files, out of sight: they count as durable at any moment."""

Names = dict[str, int]


class DurableDisk:
    """The durable content of a folder: of files their bytes, of folders their names, by inode."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, Names] = {}
        self._gone = 0
        self._lock = threading.RLock()
        for path in [root, *root.rglob("*")]:
            if path.is_dir():
                self._folders[path.stat().st_ino] = names_in(path)
            elif DATABASE not in path.name:
                self._files[path.stat().st_ino] = path.read_bytes()

    def synced(self, descriptor: int) -> None:
        """Note what an fsync has just made durable."""
        with self._lock:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._folders[found.st_ino] = names_in(Path(f"/proc/self/fd/{descriptor}"))
            else:
                self._files[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def freeing(self, path: Path) -> None:
        """Before a name is removed or replaced: its inode may soon be another file's."""
        with self._lock:
            try:
                inode = path.lstat().st_ino
            except FileNotFoundError:
                return
            self._rename_inode(inode)

    def save(self, path: Path) -> None:
        """Keep it for the next process on the same folder, which inherits what was written."""
        with self._lock:
            path.write_bytes(pickle.dumps((self._files, self._folders, self._gone)))

    @classmethod
    def load(cls, root: Path, path: Path) -> DurableDisk:
        """What :meth:`save` kept."""
        disk = cls.__new__(cls)
        disk.root, disk._lock = root, threading.RLock()
        disk._files, disk._folders, disk._gone = pickle.loads(path.read_bytes())  # noqa: S301
        living = {found.lstat().st_ino for found in [root, *root.rglob("*")]}
        for inode in (disk._files.keys() | disk._folders.keys()) - living:
            if inode > 0:
                disk._rename_inode(inode)
        return disk

    def materialise(self, target: Path, chance: Random | None = None) -> None:
        """Write into ``target`` what a power cut leaves.

        Without ``chance`` that is the durable state and nothing more. With it, of what was written
        and not synced some has reached the disk: of each file all, a part or nothing, of each
        folder its new names or its old ones.
        """
        with self._lock:
            living = {path.lstat().st_ino: path for path in [self.root, *self.root.rglob("*")]}
            self._write_folder(self.root.stat().st_ino, target, living, chance)

    def _write_folder(
        self, inode: int, target: Path, living: dict[int, Path], chance: Random | None
    ) -> None:
        target.mkdir()
        here = living.get(inode)
        present = names_in(here) if here else {}
        names = dict(self._folders.get(inode, {}))
        if chance and here and chance.random() < 0.5:
            names = dict(present)
        names = {name: at for name, at in names.items() if DATABASE not in name}
        names |= {name: at for name, at in present.items() if DATABASE in name}
        for name, at in names.items():
            path = living.get(at)
            if at in self._folders or (path and path.is_dir()):
                self._write_folder(at, target / name, living, chance)
            else:
                (target / name).write_bytes(self._content(at, name, path, chance))
                if path:
                    (target / name).chmod(path.stat().st_mode & 0o777)

    def _content(self, inode: int, name: str, path: Path | None, chance: Random | None) -> bytes:
        if DATABASE in name:
            return path.read_bytes() if path else b""
        synced = self._files.get(inode, b"")
        if chance is None or path is None or chance.random() < 0.5:
            return synced
        written = path.read_bytes()
        if chance.random() < 0.5:
            return written
        reached = chance.randint(0, len(written))
        return written[:reached] + synced[reached:]

    def _rename_inode(self, inode: int) -> None:
        self._gone -= 1
        for known in (self._files, self._folders):
            if inode in known:
                known[self._gone] = known.pop(inode)  # type: ignore[assignment]
        for names in self._folders.values():
            for name, at in names.items():
                if at == inode:
                    names[name] = self._gone


def names_in(folder: Path) -> Names:
    """What a folder names now."""
    return dict(_entries(folder))


def _entries(folder: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as found:
        for entry in found:
            yield entry.name, entry.inode()
