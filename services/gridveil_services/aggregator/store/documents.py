"""Signed documents of the key-holder in the SQLite file: city parameters and the roster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gridveil.protocol.city import CityParameters
from gridveil.protocol.roster import Member, RosterVersion
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import MembershipRow

_PAGE = 10_000


class SqliteDocuments:
    """``Documents`` on a :class:`Database`, whose other user is ``SqliteStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save_parameters(
        self, parameters: CityParameters, document: bytes, signature: bytes
    ) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO parameters (digest, end_window, document, signature)"
                " VALUES (?,?,?,?)",
                (parameters.digest, parameters.epoch.end_window, document, signature),
            )

    def parameters(self) -> Sequence[tuple[bytes, bytes]]:
        rows = self._database.rows("SELECT document, signature FROM parameters ORDER BY number")
        return [(document, signature) for document, signature in rows]

    def save_roster(
        self,
        head: RosterVersion,
        signature: bytes,
        removed: Sequence[bytes],
        added: Sequence[Member],
    ) -> None:
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE members SET until = ? WHERE meter_id = ? AND until IS NULL",
                ((head.version, meter) for meter in removed),
            )
            connection.executemany(
                "INSERT INTO members VALUES (?,?,NULL,?,?)",
                ((m.meter_id, head.version, m.signing_key, m.sealing_key) for m in added),
            )
            connection.execute(
                "INSERT OR REPLACE INTO roster VALUES (1,?,?,?,?,?,?)",
                (
                    head.city_id,
                    head.version,
                    head.effective_window,
                    head.count,
                    head.digest,
                    signature,
                ),
            )

    def roster(self) -> tuple[RosterVersion, bytes] | None:
        rows = self._database.rows(
            "SELECT city_id, version, effective_window, count, digest, signature FROM roster"
        )
        return next(((RosterVersion(*row[:-1]), row[-1]) for row in rows), None)

    def members(self) -> Iterator[Member]:
        after = b""
        while rows := self._database.rows(
            "SELECT meter_id, signing_key, sealing_key FROM members"
            " WHERE until IS NULL AND meter_id > ? ORDER BY meter_id LIMIT ?",
            (after, _PAGE),
        ):
            for row in rows:
                yield Member(*row)
            after = rows[-1][0]

    def memberships(self) -> Iterator[MembershipRow]:
        after: tuple[bytes, int] = (b"", 0)
        while rows := self._database.rows(
            "SELECT meter_id, signing_key, since, until FROM members"
            " WHERE (meter_id, since) > (?, ?) ORDER BY meter_id, since LIMIT ?",
            (*after, _PAGE),
        ):
            for row in rows:
                yield MembershipRow(*row)
            after = (rows[-1][0], rows[-1][2])

    def prune(self, ended_before: int) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM parameters WHERE end_window < ?"
                " AND digest NOT IN (SELECT parameters_digest FROM windows)",
                (ended_before,),
            )
