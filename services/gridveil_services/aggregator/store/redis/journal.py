"""What this aggregator acknowledged: its own file's word against what Redis has at the seal.

A failover of Redis may lose what was stored, and nobody in Redis would know. So before a receipt
leaves, it is written here, synced; a sealed window in which one of them is missing is poisoned
(:mod:`.vouching`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.records import acknowledged_checksum

RECORD_BYTES = ID_BYTES + DIGEST_BYTES
"""Meter id, then the report's digest."""

Place = tuple[int, int]
"""Start of a window, and one of its lanes."""
Acknowledged = Mapping[bytes, bytes]
"""Digests of reports by meter."""


class Journal:
    """Acknowledgements of windows that are not settled. From any thread."""

    def __init__(self, database: Database) -> None:
        """Raises StoreFailed if a row is not what was written."""
        self._database = database
        self._writing = threading.Lock()
        self._meters: dict[int, set[bytes]] = {}
        for start, _, packed in self._rows("", ()):
            self._meters.setdefault(start, set()).update(_records(packed))

    def add(self, acknowledged: Mapping[Place, Acknowledged]) -> None:
        """Have acknowledgements durable; those that are here already are not written again."""
        with self._writing:
            rows = []
            for (start, lane), reports in acknowledged.items():
                held = self._meters.setdefault(start, set())
                fresh = {meter: digest for meter, digest in reports.items() if meter not in held}
                if fresh:
                    rows.append((start, lane, b"".join(m + d for m, d in fresh.items()), fresh))
            if not rows:
                return
            with self._database.transaction() as connection:
                connection.executemany(
                    "INSERT INTO acknowledgements (window, lane, reports, checksum)"
                    " VALUES (?,?,?,?)",
                    [
                        (start, lane, packed, acknowledged_checksum(start, lane, packed))
                        for start, lane, packed, _ in rows
                    ],
                )
            for start, _, _, fresh in rows:
                self._meters[start].update(fresh)

    def lacking(self, acknowledged: Mapping[Place, Acknowledged]) -> list[Place]:
        """The lanes of which something is not here."""
        return [
            (start, lane)
            for (start, lane), reports in acknowledged.items()
            if not reports.keys() <= self._meters.get(start, set())
        ]

    def of(self, start: int) -> dict[int, dict[bytes, bytes]]:
        """A window's acknowledgements, by lane."""
        lanes: dict[int, dict[bytes, bytes]] = {}
        for _, lane, packed in self._rows(" WHERE window = ?", (start,)):
            lanes.setdefault(lane, {}).update(_records(packed))
        return lanes

    def forget(self, starts: Iterable[int]) -> None:
        """Delete those of windows that are settled."""
        with self._writing:
            gone = [start for start in starts if self._meters.pop(start, None) is not None]
            if gone:
                with self._database.transaction() as connection:
                    connection.executemany(
                        "DELETE FROM acknowledgements WHERE window = ?", [(s,) for s in gone]
                    )

    def _rows(self, where: str, values: Sequence[int]) -> list[tuple[int, int, bytes]]:
        found = self._database.rows(
            f"SELECT window, lane, reports, checksum FROM acknowledgements{where}",  # noqa: S608 - constants
            values,
        )
        for start, lane, packed, checksum in found:
            if acknowledged_checksum(start, lane, packed) != checksum:
                raise self._database.fail("the journal of acknowledgements is damaged")
        return [(start, lane, packed) for start, lane, packed, _ in found]


def _records(packed: bytes) -> dict[bytes, bytes]:
    return {
        packed[at : at + ID_BYTES]: packed[at + ID_BYTES : at + RECORD_BYTES]
        for at in range(0, len(packed), RECORD_BYTES)
    }
