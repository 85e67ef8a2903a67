"""The durable outbox: a report is on disk before it is sent, and stays until its fate is known.

One SQLite file (WAL, synchronous=FULL) and its lock file, both mode 0600, used by one process at
a time. A key is (window, meter). The first report recorded for a key stands: the same values
again change nothing, others are refused, so no second blinding is ever sent for a reading.

**The outbox holds plaintext readings of its own meters**: the values of an entry are kept beside
its report until the entry is purged, so that a report can be made anew for another epoch and a
repeated recording be told from a conflicting one. They are as secret as the meter's key file and
belong on the same disk; deleted ones are overwritten in the database as far as that costs no
further writes, which is no promise about the medium below.

Entries end as SETTLED or GAVE_UP and then hold no report any more; they are purged some time after
their window is closed. The number of waiting entries is bounded: recording more is refused, and
nothing is dropped to make room.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from gridveil.files import sync_folder
from gridveil.protocol.errors import (
    Conflict,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)

APPLICATION_ID = 0x67764F42
VERSION = 1
SCHEMA = """
CREATE TABLE city (city_id BLOB NOT NULL) STRICT;
CREATE TABLE parameters (
    place INTEGER PRIMARY KEY, encoded BLOB NOT NULL, signature BLOB NOT NULL,
    end_window INTEGER NOT NULL
) STRICT;
CREATE TABLE entries (
    window INTEGER NOT NULL, meter BLOB NOT NULL, reading TEXT NOT NULL,
    state INTEGER NOT NULL, epoch BLOB, attempts INTEGER NOT NULL, due REAL NOT NULL,
    reason TEXT, answered INTEGER NOT NULL,
    PRIMARY KEY (window, meter)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting ON entries (due) WHERE state = 0;
CREATE TABLE reports (
    window INTEGER NOT NULL, meter BLOB NOT NULL, report BLOB NOT NULL,
    PRIMARY KEY (window, meter)
) STRICT;
"""


_COLUMNS = "window, meter, reading, state, epoch, attempts, due, reason, answered"


class State(IntEnum):
    """Where an entry stands."""

    WAITING = 0
    SETTLED = 1
    """The aggregator gave a receipt."""
    GAVE_UP = 2
    """It was not, or not known to be, accepted; the reason says why."""


@dataclass(frozen=True)
class NewEntry:
    """What is recorded for one window of one meter."""

    window_start: int
    meter_id: bytes
    values: Mapping[str, int]
    due_at: float
    parameters_digest: bytes | None
    """Of the epoch the report is made for; None if it cannot be made yet."""
    report: bytes | None
    """The signed report as its protobuf message."""

    def __post_init__(self) -> None:
        if (self.report is None) != (self.parameters_digest is None):
            raise ValueError("a report names its parameters")


@dataclass(frozen=True)
class Entry:
    """One entry as it is stored."""

    window_start: int
    meter_id: bytes
    values: Mapping[str, int]
    state: State
    parameters_digest: bytes | None
    attempts: int
    due_at: float
    """Unix seconds; when to send next."""
    reason: Reason | None
    """Why the last attempt failed, or why it was given up."""
    answered: bool
    """Whether the aggregator itself ended it; otherwise its fate is unknown."""
    report: bytes | None = None

    @property
    def key(self) -> tuple[int, bytes]:
        """Window start and meter id."""
        return self.window_start, self.meter_id


@dataclass(frozen=True)
class Verdict:
    """The new standing of one entry after an attempt."""

    window_start: int
    meter_id: bytes
    state: State
    reason: Reason | None = None
    due_at: float = 0.0
    answered: bool = True
    duplicate: bool = False
    """Whether an earlier attempt had brought the report already."""


class Outbox:
    """Entries of one city's meters, durable after every call that changes them.

    Every method raises Unavailable (STORE_UNAVAILABLE, or STORE_FULL on a full disk) if the disk
    fails; after a failed write the outbox stays shut until it is opened, and so checked, again.
    Methods may be called from several threads.
    """

    def __init__(self, path: Path | str, city_id: bytes, *, most_waiting: int = 10_000) -> None:
        """Open the outbox of a city's meters, or make one.

        Args:
            path: the SQLite file; its lock is ``path`` + ``.lock``.
            city_id: an outbox belongs to one city.
            most_waiting: how many unsettled entries it holds.

        Raises:
            Unavailable: STORE_UNAVAILABLE if another process has it open.
            IntegrityLost: PARTIAL_CORRUPT if the file is not what was written.
            MalformedInput: CONFIG_INVALID for an outbox of another city or version.
        """
        self._path = Path(path)
        self._most_waiting = most_waiting
        self._lock = threading.RLock()
        self._shut = False
        self._lock_file = _lock_path(self._path)
        try:
            self._database = _open(self._path, city_id)
        except BaseException:
            os.close(self._lock_file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            if self._lock_file < 0:
                return
            self._shut = True
            self._database.close()
            os.close(self._lock_file)
            self._lock_file = -1

    def record(self, entries: Sequence[NewEntry]) -> int:
        """Keep new entries, all or none; how many of them were new.

        Raises:
            Conflict: EQUIVOCATION if other values are recorded for one of the keys.
            Unavailable: STORE_FULL if ``most_waiting`` would be exceeded.
        """
        with self._write() as database:
            waiting = _one(database, "SELECT count(*) FROM entries WHERE state = 0")
            fresh = 0
            for entry in entries:
                if not self._stands(entry):
                    fresh += 1
                    _insert(database, entry)
            if fresh and waiting + fresh > self._most_waiting:
                raise Unavailable(
                    Reason.STORE_FULL,
                    f"the outbox holds {waiting} unsettled reports, and {self._most_waiting} at "
                    "most; nothing was dropped",
                )
        return fresh

    def find(self, window_start: int, meter_id: bytes) -> Entry | None:
        """The entry of a key, without its report."""
        found = self._entries("WHERE window = ? AND meter = ?", (window_start, meter_id))
        return found[0] if found else None

    def entries(self, window_start: int | None = None) -> list[Entry]:
        """Entries by window and meter, ended ones included, without reports.

        Args:
            window_start: only this window's.
        """
        return self._entries(
            "WHERE ?1 IS NULL OR window = ?1 ORDER BY window, meter", (window_start,)
        )

    def due(self, now: float, most: int) -> list[Entry]:
        """Waiting entries whose time has come, of one window and epoch, with their reports.

        The window and epoch are those of the entry that has been due longest.
        """
        rows = self._read(
            "SELECT window, epoch FROM entries WHERE state = 0 AND due <= ? ORDER BY due LIMIT 1",
            (now,),
        )
        if not rows:
            return []
        window, epoch = rows[0]
        return self._entries(
            "LEFT JOIN reports USING (window, meter) WHERE state = 0 AND due <= ? AND window = ? "
            "AND epoch IS ? ORDER BY due LIMIT ?",
            (now, window, epoch, most),
            report="report",
        )

    def next_due(self) -> float | None:
        """When the next waiting entry is due; None if none waits."""
        rows = self._read("SELECT due FROM entries WHERE state = 0 ORDER BY due LIMIT 1", ())
        return rows[0][0] if rows else None

    def begin(self, entries: Sequence[Entry], again_at: float) -> None:
        """Count an attempt before it is made; without an answer the next one is at ``again_at``.

        It is durable first, so that a sender that keeps crashing keeps to its pace.
        """
        with self._write() as database:
            database.executemany(
                "UPDATE entries SET attempts = attempts + 1, due = ? "
                "WHERE window = ? AND meter = ?",
                ((again_at, entry.window_start, entry.meter_id) for entry in entries),
            )

    def conclude(self, verdicts: Iterable[Verdict]) -> None:
        """Keep what became of attempts. Ended entries lose their reports; an end is final."""
        with self._write() as database:
            for verdict in verdicts:
                database.execute(
                    "UPDATE entries SET state = ?, reason = ?, due = ?, answered = ? "
                    "WHERE window = ? AND meter = ? AND state = 0",
                    (
                        int(verdict.state),
                        verdict.reason,
                        verdict.due_at,
                        int(verdict.answered and verdict.state is not State.WAITING),
                        verdict.window_start,
                        verdict.meter_id,
                    ),
                )
                if verdict.state is not State.WAITING:
                    database.execute(
                        "DELETE FROM reports WHERE window = ? AND meter = ?",
                        (verdict.window_start, verdict.meter_id),
                    )

    def replace_report(self, entry: Entry, digest: bytes, report: bytes, due_at: float) -> None:
        """Put a report of the same reading for another epoch in the place of the entry's."""
        with self._write() as database:
            database.execute(
                "UPDATE entries SET epoch = ?, due = ? "
                "WHERE window = ? AND meter = ? AND state = 0",
                (digest, due_at, *entry.key),
            )
            if database.changes():
                database.execute("REPLACE INTO reports VALUES (?, ?, ?)", (*entry.key, report))

    def purge(self, before_window: int) -> None:
        """Forget ended entries of windows before ``before_window``, and epochs that ended.

        The newest parameters stay while entries wait: their windows' rules are among them.
        """
        with self._write() as database:
            database.execute(
                "DELETE FROM entries WHERE state != 0 AND window < ?", (before_window,)
            )
            database.execute(
                "DELETE FROM parameters WHERE end_window <= "
                "coalesce((SELECT min(window) FROM entries), ?) AND end_window <= ? "
                "AND (place < (SELECT max(place) FROM parameters) "
                "OR NOT EXISTS (SELECT 1 FROM entries WHERE state = 0))",
                (before_window, before_window),
            )

    def keep_parameters(self, encoded: bytes, signature: bytes, end_window: int) -> None:
        """Keep signed city parameters, as the newest."""
        with self._write() as database:
            database.execute("DELETE FROM parameters WHERE encoded = ?", (encoded,))
            database.execute(
                "INSERT INTO parameters (encoded, signature, end_window) VALUES (?, ?, ?)",
                (encoded, signature, end_window),
            )

    def parameters(self) -> list[tuple[bytes, bytes]]:
        """Kept city parameters and their signatures, newest first; check them before use."""
        rows = self._read("SELECT encoded, signature FROM parameters ORDER BY place DESC", ())
        return [(encoded, signature) for encoded, signature in rows]

    def _stands(self, entry: NewEntry) -> bool:
        """Whether the key is taken by the same values; EQUIVOCATION if by others."""
        rows = self._database.execute(
            "SELECT reading FROM entries WHERE window = ? AND meter = ?",
            (entry.window_start, entry.meter_id),
        ).fetchall()
        if rows and json.loads(str(rows[0][0])) != dict(entry.values):
            raise Conflict(
                Reason.EQUIVOCATION, "another reading is recorded for this window already"
            )
        return bool(rows)

    def _entries(
        self, rest: str, bindings: tuple[Any, ...], *, report: str = "NULL"
    ) -> list[Entry]:
        rows = self._read(
            f"SELECT {_COLUMNS}, {report} FROM entries {rest}",  # noqa: S608 - our own words
            bindings,
        )
        return [_entry(row) for row in rows]

    def _read(self, query: str, bindings: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            self._check_open()
            try:
                return self._database.execute(query, bindings).fetchall()
            except apsw.Error as error:
                raise self._failed(error) from None

    @contextmanager
    def _write(self) -> Iterator[apsw.Connection]:
        with self._lock:
            self._check_open()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except apsw.Error as error:
                raise self._failed(error) from None
            except BaseException:
                with suppress(apsw.Error):
                    self._database.execute("ROLLBACK")
                raise

    def _check_open(self) -> None:
        if self._shut:
            raise Unavailable(Reason.STORE_UNAVAILABLE, "the outbox is closed")

    def _failed(self, error: apsw.Error) -> GridveilError:
        self._shut = True
        if isinstance(error, apsw.FullError):
            return Unavailable(Reason.STORE_FULL, "the outbox's disk is full")
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return _corrupt()
        return Unavailable(Reason.STORE_UNAVAILABLE, "the outbox could not be read or written")


def _insert(database: apsw.Connection, entry: NewEntry) -> None:
    key = entry.window_start, entry.meter_id
    reading = json.dumps(dict(entry.values), separators=(",", ":"))
    database.execute(
        "INSERT INTO entries VALUES (?, ?, ?, 0, ?, 0, ?, NULL, 0)",
        (*key, reading, entry.parameters_digest, entry.due_at),
    )
    if entry.report is not None:
        database.execute("INSERT INTO reports VALUES (?, ?, ?)", (*key, entry.report))


def _entry(row: Sequence[Any]) -> Entry:
    window, meter, reading, state, epoch, attempts, due, reason, answered, report = row
    return Entry(
        window_start=window,
        meter_id=meter,
        values=json.loads(reading),
        state=State(state),
        parameters_digest=epoch,
        attempts=attempts,
        due_at=due,
        reason=None if reason is None else Reason(reason),
        answered=bool(answered),
        report=report,
    )


def _one(database: apsw.Connection, query: str) -> int:
    count: int = database.execute(query).get
    return count


def _lock_path(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise Unavailable(
            Reason.STORE_UNAVAILABLE, f"{name.name} cannot be opened or created"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Unavailable(
            Reason.STORE_UNAVAILABLE, f"{path.name} is in use by another process"
        ) from None
    return descriptor


def _open(path: Path, city_id: bytes) -> apsw.Connection:
    try:
        _create(path)
        database = apsw.Connection(str(path))
    except (OSError, apsw.Error):
        raise Unavailable(
            Reason.STORE_UNAVAILABLE, f"{path.name} cannot be opened or created"
        ) from None
    try:
        _prepare(database, path.name, city_id)
    except apsw.FullError:
        database.close()
        raise Unavailable(Reason.STORE_FULL, "the outbox's disk is full") from None
    except apsw.Error:
        database.close()
        raise _corrupt() from None
    except GridveilError:
        database.close()
        raise
    return database


def _create(path: Path) -> None:
    """An empty file that only its owner may read: SQLite gives its journals the same mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    sync_folder(path.parent)


def _prepare(database: apsw.Connection, name: str, city_id: bytes) -> None:
    # Before anything that could touch a file that is not ours.
    application = database.pragma("application_id")
    empty = not database.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    if not empty and application != APPLICATION_ID:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{name} is not an outbox")
    database.pragma("locking_mode", "EXCLUSIVE")
    database.pragma("journal_mode", "WAL")
    database.pragma("synchronous", "FULL")
    database.pragma("secure_delete", "FAST")
    database.pragma("cell_size_check", True)
    if database.pragma("synchronous") != 2 or database.pragma("journal_mode") != "wal":
        raise Unavailable(Reason.STORE_UNAVAILABLE, f"{name} cannot be made durable")
    if empty:
        _set_up(database, city_id)
    elif database.pragma("user_version") != VERSION:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{name} is an outbox of another version")
    if database.pragma("quick_check") != "ok":
        raise _corrupt()
    if database.execute("SELECT city_id FROM city").fetchall() != [(city_id,)]:
        raise MalformedInput(Reason.CONFIG_INVALID, f"{name} is the outbox of another city")


def _set_up(database: apsw.Connection, city_id: bytes) -> None:
    with database:
        database.execute(SCHEMA)
        database.execute("INSERT INTO city VALUES (?)", (city_id,))
        database.pragma("application_id", APPLICATION_ID)
        database.pragma("user_version", VERSION)


def _corrupt() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "the outbox is not what was written")
