"""What the aggregator's own file says of the windows that are kept in Redis.

A server that was emptied looks like one that never had anything. The file knows better: a window
that it lists was opened, and if Redis has it no more, or less far than it was, it is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace

from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import Phase, Window


class Pins:
    """Windows and the horizon of the forgotten, in the tables of the SQLite store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def windows(self) -> Mapping[int, Window]:
        rows = self._database.rows(
            'SELECT start, "end", closes, parameters_digest, roster_version, enrolled, lanes,'
            " lane_capacity, parameter_set, slots, phase FROM windows"
        )
        return {row[0]: replace(Window(*row), phase=Phase(row[-1])) for row in rows}

    def forgotten(self) -> int:
        rows = self._database.rows("SELECT start FROM forgotten")
        return max((start for (start,) in rows), default=0)

    def put(self, window: Window) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO windows VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (*astuple(window)[:-1], int(window.phase)),
            )

    def forget(self, starts: Iterable[int], forgotten: int) -> None:
        gone = [(start,) for start in starts]
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (1, ?)", (forgotten,))
            connection.executemany("DELETE FROM windows WHERE start = ?", gone)
            connection.executemany("DELETE FROM poisoned WHERE window = ?", gone)
            connection.executemany("DELETE FROM participants WHERE window = ?", gone)

    def poison(self, window: Window, why: str) -> None:
        """Keep why a window is never released; the first reason stands."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO poisoned VALUES (?,?)", (window.start, why))

    def why(self, start: int) -> str:
        """Why a window is poisoned; '' if it is not."""
        rows = self._database.rows("SELECT why FROM poisoned WHERE window = ?", (start,))
        return str(rows[0][0]) if rows else ""

    def participants(self, start: int) -> frozenset[str]:
        """Which aggregators were seen to take part in a window."""
        rows = self._database.rows("SELECT name FROM participants WHERE window = ?", (start,))
        return frozenset(name for (name,) in rows)

    def saw(self, start: int, names: Iterable[str]) -> None:
        """Keep which aggregators take part, whatever Redis says of it later."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO participants VALUES (?,?)", [(start, name) for name in names]
            )

    def name(self) -> str:
        """What this aggregator is called among those that share a Redis; chosen at random once."""
        rows = self._database.rows("SELECT name FROM replica")
        if not rows:
            with self._database.transaction() as connection:
                connection.execute("INSERT INTO replica VALUES (1, ?)", (secrets.token_hex(8),))
            return self.name()
        return str(rows[0][0])


@dataclass(frozen=True)
class Record:
    """What Redis has of a window."""

    window: Window
    sealed: int
    """Fencing epoch under which it was sealed; 0 if it was not."""
    lineage: str
    """Digest of the servers as they were when it was opened."""
    why: str
    """Why it is poisoned."""
    participants: frozenset[str]
    """Aggregators that may have acknowledged reports of it."""
    vouchers: Mapping[str, str]
    """By aggregator: digest of a sealed set in which it found all that it acknowledged."""
    inquiries: Mapping[str, str] = field(default_factory=dict)
    """By aggregator that was away: token of its question whether the window was sealed before."""
    answers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By asker and answerer: token of the question to which the answer was that it was not."""


def phase_of(pinned: Window | None, record: Record | None) -> Phase | None:
    """How far a window has come, as both tell; None if there is no such window.

    What is less far in Redis than in the file was lost there. What the file has settled stays so.
    """
    if pinned is None:
        return None if record is None else record.window.phase
    if pinned.phase.settled:
        return pinned.phase
    if record is None or record.window.phase < pinned.phase:
        return Phase.POISONED
    return record.window.phase
