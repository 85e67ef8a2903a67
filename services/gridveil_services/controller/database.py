"""One SQLite file, written by one process and durable at every commit."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from gridveil.files import make_folder, sync_folder
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)

APPLICATION_ID = 0x6776436A
VERSION = 1
SCHEMA = """
CREATE TABLE controller (
    city_id BLOB NOT NULL, instance TEXT NOT NULL, begun INTEGER NOT NULL
) STRICT;
CREATE TABLE rules (since INTEGER PRIMARY KEY, rules BLOB NOT NULL) STRICT;
CREATE TABLE journal (
    number INTEGER PRIMARY KEY, at INTEGER NOT NULL,
    event BLOB NOT NULL, state BLOB NOT NULL, signal BLOB NOT NULL
) STRICT;
CREATE INDEX by_time ON journal (at, number);
CREATE TABLE windows (
    window_start INTEGER PRIMARY KEY,
    energy_wh INTEGER, count INTEGER, enrolled INTEGER, reason TEXT
) STRICT;
CREATE TABLE deliveries (
    place INTEGER PRIMARY KEY, number INTEGER NOT NULL, at INTEGER NOT NULL,
    kind INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    state INTEGER NOT NULL, tried INTEGER NOT NULL
) STRICT;
CREATE INDEX by_number ON deliveries (number);
CREATE INDEX pending ON deliveries (place) WHERE state = 2;
"""

_SYNCHRONOUS_FULL = 2


class Database:
    """A connection for many threads. After a failure it is not used again, unless it was full.

    Raises, also later:
        Unavailable: STORE_UNAVAILABLE, STORE_FULL.
        IntegrityLost: PARTIAL_CORRUPT.
        MalformedInput: CONFIG_INVALID for a file of another kind or version.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._lock = threading.RLock()
        self._failed: GridveilError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._held = _hold(path.with_name(path.name + ".lock"))
        try:
            self._connection = _open(path)
        except BaseException:
            os.close(self._held)
            raise

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            if self._held >= 0:
                self._failed = _unavailable()
                self._connection.close()
                os.close(self._held)
                self._held = -1

    @property
    def usable(self) -> bool:
        """Whether it has not failed for good."""
        return self._failed is None

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """A transaction: durable at its end, or undone if anything in it fails."""
        with self._lock, self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    with suppress(apsw.Error):
                        self._connection.execute("ROLLBACK")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The whole answer to a query."""
        with self._lock, self._guarded():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except apsw.FullError:
            raise Unavailable(Reason.STORE_FULL, "the disk of the journal is full") from None
        except (apsw.CorruptError, apsw.NotADBError):
            raise self._fail(damaged()) from None
        except apsw.Error:
            # Nobody knows what is on the disk: the next start looks.
            raise self._fail(_unavailable()) from None

    def _fail(self, error: GridveilError) -> GridveilError:
        if self._failed is None:
            self._failed = error
            self.on_failure()
        return self._failed


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Unavailable(Reason.STORE_UNAVAILABLE, "another process uses the journal") from None
    return descriptor


def _open(path: Path) -> apsw.Connection:
    try:
        with suppress(FileExistsError):
            # SQLite gives its own files the mode of this one.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = apsw.Connection(str(path))
        _prepare(connection)
        sync_folder(path.parent)
    except apsw.FullError:
        raise Unavailable(Reason.STORE_FULL, "the disk of the journal is full") from None
    except (apsw.CorruptError, apsw.NotADBError):
        raise damaged() from None
    except (OSError, apsw.Error):
        raise _unavailable() from None
    return connection


def _prepare(connection: apsw.Connection) -> None:
    is_new = not connection.execute("SELECT count(*) FROM sqlite_schema").get
    kind = connection.pragma("application_id"), connection.pragma("user_version")
    if not is_new and kind != (APPLICATION_ID, VERSION):
        raise MalformedInput(Reason.CONFIG_INVALID, "this is no journal of this version")
    connection.pragma("trusted_schema", False)
    connection.pragma("cell_size_check", True)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", _SYNCHRONOUS_FULL)
    if connection.pragma("synchronous") != _SYNCHRONOUS_FULL:
        raise _unavailable()
    if is_new:
        with connection:
            connection.execute(SCHEMA)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", VERSION)
    if connection.pragma("quick_check") != "ok":
        raise damaged()


def damaged() -> IntegrityLost:
    """The error of a journal that says what no controller writes."""
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "the journal is damaged")


def _unavailable() -> Unavailable:
    return Unavailable(Reason.STORE_UNAVAILABLE, "the journal cannot be read or written")
