"""What the aggregator's own file says of the windows that are kept in Redis.

A server that was emptied looks like one that never had anything. The file knows better: a window
that it lists was opened, and if Redis has it no more, or less far than it was, it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from typing import NamedTuple

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
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (1, ?)", (forgotten,))
            connection.executemany(
                "DELETE FROM windows WHERE start = ?", [(start,) for start in starts]
            )


class Record(NamedTuple):
    """What Redis has of a window."""

    window: Window
    sealed: int
    """Fencing epoch under which it was sealed; 0 if it was not."""


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
