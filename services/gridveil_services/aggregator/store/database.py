"""One SQLite file, written by one connection and durable at every commit."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from gridveil.files import make_folder, sync_folder
from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.interface import StoreFailed

APPLICATION_ID = 0x67726C76
SCHEMA_VERSION = 2
_OLDER_VERSIONS = frozenset({1})
"""Whose tables are all there still, as they were; newer ones are added."""
PAGE_BYTES = 4096
CHECKPOINT_PAGES = 4_000
_ROOM = 4
"""One in so many pages of a bounded file is kept for sealing what was taken already."""
_LEAST_FREE_BYTES = 16 * 1024 * 1024
"""On the disk, to be called ready; commits are tried until it is really full."""
_FIRST_SOUND_VERSION = 3_051_003
"""SQLite before 3.51.3 can lose a commit when the WAL is reset."""

_PRAGMAS = (
    "trusted_schema = off",
    "cell_size_check = on",
    "secure_delete = on",
    "synchronous = full",
    "busy_timeout = 5000",
    f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
)

Row = tuple[Any, ...]


class Database:
    """A writer and a reader on one file, and the rule for what happens when either fails.

    A full disk undoes the transaction and the next one may do. After any other failure nobody
    knows what is on the disk: the database is not used again, and ``on_failure`` is called once.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        max_bytes: int | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_failure = on_failure
        self._failed = False
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._folder = path.parent
        make_folder(path.parent)
        self._lock = _exclusive(path.with_name(path.name + ".lock"))
        try:
            with self._guarded():
                self._writer = _open_writer(path, schema, max_bytes)
                self._reader = _open_reader(path)
        except BaseException:
            os.close(self._lock)
            raise

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """A write transaction: durable at its end, or undone if anything in it fails."""
        with self._writing, self._guarded():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def check_room(self) -> None:
        """STORE_FULL if the rest of a bounded file is owed to the windows that are open."""
        with self._guarded():
            most = self._writer.pragma("max_page_count")
            used = self._writer.pragma("page_count") - self._writer.pragma("freelist_count")
        if used > most - most // _ROOM:
            raise _full()

    def check_writable(self) -> None:
        """STORE_FULL if there is no room, in the file's bound or on its disk."""
        self.check_room()
        if shutil.disk_usage(self._folder).free < _LEAST_FREE_BYTES:
            raise _full()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """The whole answer to a query; no read stays open, or the WAL could not be reset."""
        with self._reading, self._guarded():
            return self._reader.execute(query, values).fetchall()

    def row_of_each(self, query: str, values: Iterable[Sequence[Any]]) -> list[Row]:
        """The answers to one query for each of ``values``, from one state of the database."""
        with self._reading, self._guarded():
            return self._reader.executemany(query, values).fetchall()

    def shrink_log(self) -> None:
        """Bring the WAL into the file and empty it, unless somebody reads just now."""
        # What was committed is durable in the log already: later will do.
        with self._guarded(), suppress(apsw.BusyError, apsw.FullError):
            self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def fail(self, message: str) -> StoreFailed:
        """Stop using the database; the error to raise."""
        if not self._failed:
            self._failed = True
            self._on_failure()
        return StoreFailed(message)

    def close(self) -> None:
        """Close both connections."""
        with self._reading:
            self._reader.close()
            self._writer.close()
            os.close(self._lock)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._failed:
            raise StoreFailed("the store has failed")
        try:
            yield
        except apsw.FullError:
            raise _full() from None
        except apsw.BusyError:
            raise Unavailable(
                Reason.STORE_UNAVAILABLE, "the store is busy", retry_after_s=1
            ) from None
        except apsw.Error as error:
            raise self.fail("the store has failed") from error


def _full() -> Unavailable:
    return Unavailable(Reason.STORE_FULL, "the store is full", retry_after_s=5)


def _exclusive(path: Path) -> int:
    """Hold the lock file, so that no second process adds to sums that this one has in memory."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreFailed("another process uses this store") from None
    return descriptor


def _open_writer(path: Path, schema: str, max_bytes: int | None) -> apsw.Connection:
    if apsw.SQLITE_VERSION_NUMBER < _FIRST_SOUND_VERSION:
        raise StoreFailed("this version of SQLite can lose commits")
    writer = apsw.Connection(str(path))
    writer.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    if writer.pragma("journal_mode", "wal") != "wal":
        raise StoreFailed("the store's file system does not support a write-ahead log")
    for pragma in _PRAGMAS:
        writer.execute(f"PRAGMA {pragma}")
    if writer.pragma("synchronous") != 2:
        raise StoreFailed("SQLite would not sync its commits")
    if max_bytes is not None:
        writer.execute(f"PRAGMA max_page_count = {max_bytes // PAGE_BYTES}")
    _check_or_create(writer, schema)
    sync_folder(path.parent)
    return writer


def _check_or_create(writer: apsw.Connection, schema: str) -> None:
    is_new = not writer.execute("SELECT count(*) FROM sqlite_schema").get
    kind = (writer.pragma("application_id"), writer.pragma("user_version"))
    if is_new or (kind[0] == APPLICATION_ID and kind[1] in _OLDER_VERSIONS):
        writer.execute(
            f"BEGIN IMMEDIATE; {schema};"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            "COMMIT"
        )
    kind = (writer.pragma("application_id"), writer.pragma("user_version"))
    if kind != (APPLICATION_ID, SCHEMA_VERSION):
        raise StoreFailed("the file is not a store of this version")
    if writer.pragma("quick_check") != "ok":
        raise StoreFailed("the store is damaged")


def _open_reader(path: Path) -> apsw.Connection:
    reader = apsw.Connection(
        f"{path.absolute().as_uri()}?mode=ro", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    for pragma in (
        "query_only = on",
        "trusted_schema = off",
        "cell_size_check = on",
        "busy_timeout = 5000",
    ):
        reader.execute(f"PRAGMA {pragma}")
    return reader
