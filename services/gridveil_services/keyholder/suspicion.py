"""Which meters may make lanes fail: a hint for the registrar, and never a verdict.

Lanes are group tests (Dorfman, "The Detection of Defective Members of Large Populations", 1943):
a lane that does not open holds at least one misbehaving meter if the aggregator added honestly,
and a hash puts every meter among others in every window. A meter's score is the evidence, in
bits, for "it spoils every second lane it is in" against "it spoils none". With f the share of the
decrypted meters that are in failing lanes, which is how often an honest meter is in one:

    its lane failed   log2((1/2 + f/2) / f)        0 if every lane failed: that tells nothing
    its lane opened   log2((1/2 - f/2) / (1 - f)) = -1

A score never falls below zero (the cumulative sum of Page, "Continuous Inspection Schemes", 1954):
a year of good windows hides no meter that fails today, and a meter whose score has come down to
zero is forgotten. It never exceeds 64 bits: a meter that was repaired is off the list 64 windows
later. Hence the store holds a row for each meter under suspicion, however many windows there were.

A seal that does not open is another matter: the meter has signed it. Such meters are kept as
proven, before all scores, until they are withdrawn.

Whoever adds the ciphertexts can spoil any lane, and so frame any meter.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import apsw
import structlog

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil.protocol.windows import EXPIRY_S

OPENED_BITS = -1.0
"""What a lane that opened adds to the score of each of its meters."""

MOST_BITS = 64.0
"""No score is higher."""

_REMEMBERED_S = 7 * EXPIRY_S
"""A window is settled within a day of its end, or when a key-holder that was down comes back."""

_APPLICATION_ID = 0x47567332
_SCHEMA_VERSION = 1
_SYNCHRONOUS_FULL = 2
_SCHEMA = """
CREATE TABLE suspects (
    meter_id BLOB PRIMARY KEY,
    windows INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    proven INTEGER NOT NULL,
    score REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE windows (window_start INTEGER PRIMARY KEY) STRICT;
"""
_FAILED = """
INSERT INTO suspects VALUES (?1, 1, 1, 0, ?2) ON CONFLICT DO UPDATE
SET windows = windows + 1, failed = failed + 1, score = min(?3, score + ?2)
"""
_OPENED = "UPDATE suspects SET windows = windows + 1, score = score + ?2 WHERE meter_id = ?1"
_PROVEN = """
INSERT INTO suspects VALUES (?1, 1, 0, 1, 0.0) ON CONFLICT DO UPDATE
SET windows = windows + 1, proven = proven + 1
"""
_CLEAR = (
    "DELETE FROM suspects WHERE score <= 0 AND proven = 0",
    "UPDATE suspects SET score = 0 WHERE score < 0",
)
_COUNT = """
SELECT coalesce(sum(proven = 0 AND score >= ?), 0), coalesce(sum(proven > 0), 0) FROM suspects
"""
_RANKING = """
SELECT meter_id, windows, failed, proven, score FROM suspects
ORDER BY proven DESC, score DESC, meter_id LIMIT ?
"""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Suspect:
    """What speaks against one meter. All counts are since it came under suspicion."""

    meter_id: bytes
    windows: int
    """In which its lane was decrypted, or its seal did not open."""
    failed: int
    """In which its lane was decrypted and did not open."""
    proven: int
    """In which it signed a seal that does not open."""
    score: float
    """Bits, 0 to 64."""


def failed_bits(failing: int, opened: int) -> float:
    """What a failing lane adds to the score of each of its meters.

    Args:
        failing: meters in the window's lanes that failed, 1 or more.
        opened: meters in its lanes that opened.
    """
    share = failing / (failing + opened)
    return math.log2((1 + share) / (2 * share))


def _anybody(_meter_id: bytes) -> bool:
    return True


class Suspicions:
    """The scores of one city's meters on disk. Thread-safe."""

    def __init__(self, path: Path, is_enrolled: Callable[[bytes], bool] = _anybody) -> None:
        """Open the database at ``path``, or make it.

        Args:
            is_enrolled: whether a meter is enrolled and not withdrawn; nothing is kept of others.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if it is damaged.
        """
        self._is_enrolled = is_enrolled
        self._lock = threading.Lock()
        try:
            self._database = _open(path)
            held: list[Any] = self._database.execute("SELECT meter_id FROM suspects").fetchall()
        except apsw.Error:
            raise _damaged() from None
        self.forget([meter_id for (meter_id,) in held if not is_enrolled(meter_id)])

    def close(self) -> None:
        """Let the database go."""
        with self._lock:
            self._database.close()

    def record(
        self,
        window_start: int,
        failed: Sequence[Sequence[bytes]],
        proven: Sequence[bytes],
        passed: Sequence[Sequence[bytes]],
    ) -> None:
        """What one window showed; nothing if it was recorded before.

        That it cannot be written is logged and nothing else: no hint is worth a release.

        Args:
            window_start: of a window whose outcome is durable.
            failed: the meter ids of each lane that was decrypted and did not open.
            proven: meters whose own seal did not open.
            passed: the meter ids of each lane that opened.
        """
        try:
            with self._transaction():
                if self._is_new(window_start):
                    self._weigh(failed, proven, passed)
        except Unavailable:
            _log.warning("suspicions cannot be written", window=window_start)

    def ranking(self, limit: int) -> list[Suspect]:
        """At most ``limit`` suspects: proven meters first, then by score.

        Raises:
            Unavailable: STORE_UNAVAILABLE
        """
        with self._lock:
            try:
                rows: list[Any] = self._database.execute(_RANKING, (limit,)).fetchall()
            except apsw.Error:
                raise _unavailable() from None
        return [Suspect(*row) for row in rows]

    def count(self, bits: float) -> tuple[int, int]:
        """Meters with so high a score that are not proven, and meters that are.

        Raises:
            Unavailable: STORE_UNAVAILABLE
        """
        with self._lock:
            try:
                row: Any = self._database.execute(_COUNT, (bits,)).fetchone()
            except apsw.Error:
                raise _unavailable() from None
        strong, proven = row
        return strong, proven

    def forget(self, meter_ids: Sequence[bytes]) -> None:
        """Keep nothing of meters that were withdrawn.

        Raises:
            Unavailable: STORE_UNAVAILABLE
        """
        with self._transaction():
            self._database.executemany(
                "DELETE FROM suspects WHERE meter_id = ?", ((m,) for m in meter_ids)
            )

    def _is_new(self, window_start: int) -> bool:
        """Note a window; whether it was not noted before."""
        newest = self._database.execute("SELECT max(window_start) FROM windows").get
        oldest = (newest if isinstance(newest, int) else window_start) - _REMEMBERED_S
        self._database.execute("DELETE FROM windows WHERE window_start < ?", (oldest,))
        self._database.execute("INSERT OR IGNORE INTO windows VALUES (?)", (window_start,))
        return window_start >= oldest and self._database.changes() == 1

    def _weigh(
        self,
        failed: Sequence[Sequence[bytes]],
        proven: Sequence[bytes],
        passed: Sequence[Sequence[bytes]],
    ) -> None:
        rows: list[Any] = self._database.execute("SELECT meter_id FROM suspects").fetchall()
        held = {meter_id for (meter_id,) in rows}
        failing = sum(map(len, failed))
        if failing:
            bits = failed_bits(failing, sum(map(len, passed)))
            self._database.executemany(
                _FAILED,
                ((m, bits, MOST_BITS) for m in chain.from_iterable(failed) if self._is_enrolled(m)),
            )
        # In a city without misbehaving meters this is nobody, window after window.
        cleared = (m for m in chain.from_iterable(passed) if m in held)
        self._database.executemany(_OPENED, ((m, OPENED_BITS) for m in cleared))
        self._database.executemany(_PROVEN, ((m,) for m in proven if self._is_enrolled(m)))
        for statement in _CLEAR:
            self._database.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._database.execute("COMMIT")
            except apsw.Error:
                raise _unavailable() from None
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except apsw.Error:
            _log.warning("suspicions cannot be rolled back")


def _open(path: Path) -> apsw.Connection:
    database = apsw.Connection(str(path))
    fresh = database.pragma("application_id") == 0 and not database.pragma("schema_version")
    if not fresh and (
        database.pragma("application_id") != _APPLICATION_ID
        or database.pragma("user_version") != _SCHEMA_VERSION
    ):
        raise _damaged()
    database.pragma("journal_mode", "wal")
    database.pragma("synchronous", _SYNCHRONOUS_FULL)
    database.pragma("cell_size_check", True)
    if fresh:
        with database:
            database.execute(_SCHEMA)
            database.pragma("application_id", _APPLICATION_ID)
            database.pragma("user_version", _SCHEMA_VERSION)
    if (
        database.pragma("journal_mode") != "wal"
        or database.pragma("synchronous") != _SYNCHRONOUS_FULL
        or database.pragma("quick_check") != "ok"
    ):
        raise _damaged()
    return database


def _damaged() -> IntegrityLost:
    return IntegrityLost(
        Reason.PARTIAL_CORRUPT, "the suspicions are damaged: move suspicions.db away to begin anew"
    )


def _unavailable() -> Unavailable:
    return Unavailable(Reason.STORE_UNAVAILABLE, "the suspicions cannot be read or written")
