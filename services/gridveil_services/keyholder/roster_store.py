"""The roster on disk: SQLite, one writer, every change one signed version.

A version is in force from the first window that starts after it was made, so that the roster of
a window never changes once the window has begun. Keys of a meter are never replaced and a
withdrawn id never comes back: a pseudonym stands for one meter for ever.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
from nacl import bindings

from gridveil.clock import Clock
from gridveil.protocol.errors import (
    Conflict,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotFound,
    Reason,
    Unavailable,
)
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.windows import WindowRules
from gridveil_services.keyholder.membership import NEVER, Membership

APPLICATION_ID = 0x47567231
SCHEMA_VERSION = 1
_SYNCHRONOUS_FULL = 2
_FIELD_PRIME = 2**255 - 19
SCHEMA = """
CREATE TABLE meters (
    place INTEGER PRIMARY KEY,
    meter_id BLOB NOT NULL UNIQUE,
    signing_key BLOB NOT NULL UNIQUE,
    sealing_key BLOB NOT NULL,
    enrolled INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL
) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY,
    effective_window INTEGER NOT NULL,
    count INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE city (city_id BLOB NOT NULL, window_length INTEGER NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class RosterChange:
    """What leads from one version to another; meters ascend by id."""

    head: RosterVersion
    added: list[Member]
    removed: list[bytes]


class RosterStore:
    """The roster of one city. Thread-safe."""

    def __init__(
        self,
        path: Path,
        city_id: bytes,
        rules: WindowRules,
        identity: SigningKey,
        clock: Clock,
        on_version: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the database at ``path``, or make it.

        ``on_version`` is called before anybody is told of a version, and maybe again.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if it is damaged or of another city.
            MalformedInput: CONFIG_INVALID if it was made for another window length.
        """
        self._city_id = city_id
        self._rules = rules
        self._identity = identity
        self._clock = clock
        self._on_version = on_version
        self._writing = threading.Lock()
        self._failed = False
        self._members = Membership()
        self._versions: list[RosterVersion] = []
        self._told = 0
        try:
            self._database = _open(path)
            self._check_city()
            self._read()
        except apsw.Error:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is damaged") from None

    @property
    def members(self) -> Membership:
        """Every meter that was ever enrolled."""
        return self._members

    @property
    def first_in_force(self) -> int | None:
        """First window that any version is in force for."""
        return self._versions[0].effective_window if self._versions else None

    def close(self) -> None:
        """Let the database go."""
        with self._writing:
            self._failed = True
            self._database.close()

    def sign(self, version: RosterVersion) -> bytes:
        """The identity key's signature of a version."""
        return version.sign(self._identity)

    def in_force(self, window_start: int) -> RosterVersion | None:
        """The version in force for a window."""
        at = bisect_right(self._versions, window_start, key=lambda v: v.effective_window)
        return self._versions[at - 1] if at else None

    def tell(self, window_start: int) -> RosterVersion | None:
        """The version in force for a window that has begun; the window keeps it from now on.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE as long as it may change.
        """
        with self._writing:
            if window_start > self._clock.now():
                raise Unavailable(
                    Reason.KEYHOLDER_UNAVAILABLE, "the window has not begun", retry_after_s=1
                )
            self._told = max(self._told, window_start)
            return self.in_force(window_start)

    def version(self, number: int) -> RosterVersion | None:
        """The version with a number, from 1."""
        return self._versions[number - 1] if 0 < number <= len(self._versions) else None

    def since(self, number: int) -> Iterator[tuple[RosterVersion, int, int]]:
        """The versions after one; how many meters each enrolled and withdrew."""
        for version in self._versions[number:]:
            added, removed = self._members.between(version.version - 1, version.version)
            yield version, len(added), len(removed)

    def change(self, known: int, version: RosterVersion) -> RosterChange:
        """What leads from version ``known`` (0: nobody) to another, forward or back."""
        if known and self.version(known) is None:
            raise NotFound(Reason.NOT_FOUND, "there is no such roster version")
        added, removed = self._members.between(known, version.version)
        return RosterChange(
            version,
            [self._members.at(place) for place in added],
            [self._members.at(place).meter_id for place in removed],
        )

    def enrol(self, members: Sequence[Member]) -> RosterVersion:
        """A version with these meters too; the newest one if it has them all already.

        Raises:
            Conflict: METER_EXISTS, and nothing changes, if an id or a signing key was given to
                another meter, or the meter was withdrawn.
            MalformedInput: FIELD_FORMAT, and nothing changes, for a key that is none.
            Unavailable: STORE_UNAVAILABLE; KEYHOLDER_UNAVAILABLE if the change stands and is not
                logged yet.
        """
        for member in members:
            check_member_keys(member)
        with self._writing:
            fresh = self._fresh(members)
            if not fresh and self._versions:
                self._on_version()
                return self._versions[-1]
            with self._transaction():
                number, place = len(self._versions) + 1, len(self._members)
                self._database.executemany(
                    "INSERT INTO meters VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        (place + at, m.meter_id, m.signing_key, m.sealing_key, number, NEVER)
                        for at, m in enumerate(fresh)
                    ),
                )
                version = self._add_version(number)
            for member in fresh:
                self._members.add(member, number)
            self._versions.append(version)
            self._on_version()
            return version

    def withdraw(self, meter_ids: Sequence[bytes]) -> RosterVersion:
        """A version without these meters; the newest one if they were withdrawn before.

        Raises:
            NotFound: NOT_FOUND, and nothing changes, if one was never enrolled.
            Unavailable: as :meth:`enrol`.
        """
        with self._writing:
            leaving = self._leaving(meter_ids)
            if not leaving:
                self._on_version()
                return self._versions[-1]
            with self._transaction():
                number = len(self._versions) + 1
                self._database.executemany(
                    "UPDATE meters SET withdrawn = ? WHERE meter_id = ?",
                    ((number, meter_id) for meter_id in leaving),
                )
                version = self._add_version(number)
            for meter_id in leaving:
                self._members.withdraw(meter_id, number)
            self._versions.append(version)
            self._on_version()
            return version

    def _fresh(self, members: Sequence[Member]) -> list[Member]:
        fresh: dict[bytes, Member] = {}
        for member in members:
            place = self._members.place(member.meter_id)
            if place is None:
                if fresh.setdefault(member.meter_id, member) != member:
                    raise _exists()
            elif self._members.at(place) != member or self._members.is_withdrawn(place):
                raise _exists()
        if len({member.signing_key for member in fresh.values()}) != len(fresh):
            raise _exists()
        return list(fresh.values())

    def _leaving(self, meter_ids: Sequence[bytes]) -> list[bytes]:
        leaving: dict[bytes, None] = {}
        for meter_id in meter_ids:
            place = self._members.place(meter_id)
            if place is None:
                raise NotFound(Reason.NOT_FOUND, "a meter was never enrolled")
            if not self._members.is_withdrawn(place):
                leaving[meter_id] = None
        return list(leaving)

    def _add_version(self, number: int) -> RosterVersion:
        """Write the head of a version whose changes are written already."""
        newest = self._versions[-1].effective_window if self._versions else 0
        # The clock may have stepped back since somebody was told a window's version.
        window = max(self._rules.start_at(self._clock.now()), self._told) + self._rules.length
        count = 0

        def enrolled() -> Iterator[Member]:
            nonlocal count
            for row in self._database.execute(
                "SELECT meter_id, signing_key, sealing_key FROM meters "
                "WHERE withdrawn = ? ORDER BY meter_id",
                (NEVER,),
            ):
                count += 1
                yield Member(*row)

        digest = roster_digest(enrolled())
        version = RosterVersion(self._city_id, number, max(newest, window), count, digest)
        self._database.execute(
            "INSERT INTO versions VALUES (?, ?, ?, ?)",
            (number, version.effective_window, count, digest),
        )
        return version

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._failed:
            raise _unavailable()
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._database.execute("COMMIT")
        except apsw.ConstraintError:
            self._roll_back()
            raise _exists() from None
        except apsw.Error:
            # Whether the commit is on the disk is in doubt until the file was read again.
            self._failed = True
            raise _unavailable() from None

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _check_city(self) -> None:
        rows = list(self._database.execute("SELECT city_id, window_length FROM city"))
        if not rows:
            self._database.execute(
                "INSERT INTO city VALUES (?, ?)", (self._city_id, self._rules.length)
            )
        elif rows[0][0] != self._city_id:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is of another city")
        elif rows[0][1] != self._rules.length:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "window_length cannot be changed: windows would overlap"
            )

    def _read(self) -> None:
        for row in self._database.execute(
            "SELECT version, effective_window, count, digest FROM versions ORDER BY version"
        ):
            self._versions.append(RosterVersion(self._city_id, *row))
        for _, meter_id, signing, sealing, enrolled, withdrawn in self._database.execute(
            "SELECT * FROM meters ORDER BY place"
        ):
            self._members.add(Member(meter_id, signing, sealing), enrolled, withdrawn)
        if not self._is_whole():
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is not the one it was")

    def _is_whole(self) -> bool:
        if not self._versions:
            return not len(self._members)
        newest = self._versions[-1]
        places, _ = self._members.between(0, newest.version)
        return (
            newest.version == len(self._versions)
            and newest.count == len(places)
            and newest.digest == roster_digest(self._members.at(place) for place in places)
        )


def check_member_keys(member: Member) -> None:
    """FIELD_FORMAT unless both keys are canonical, and the Ed25519 key is of the prime order.

    That neither is of small order, an enrolment's own check has seen to.
    """
    if not bindings.crypto_core_ed25519_is_valid_point(member.signing_key):
        raise MalformedInput(Reason.FIELD_FORMAT, "not an Ed25519 key", field="signing_key")
    if int.from_bytes(member.sealing_key, "little") >= _FIELD_PRIME:
        raise MalformedInput(Reason.FIELD_FORMAT, "not an X25519 key", field="sealing_key")


def _open(path: Path) -> apsw.Connection:
    database = apsw.Connection(str(path))
    fresh = database.pragma("application_id") == 0 and not database.pragma("schema_version")
    if not fresh and (
        database.pragma("application_id") != APPLICATION_ID
        or database.pragma("user_version") != SCHEMA_VERSION
    ):
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is of another kind or version")
    database.pragma("journal_mode", "wal")
    database.pragma("synchronous", _SYNCHRONOUS_FULL)
    database.pragma("cell_size_check", True)
    if fresh:
        with database:
            database.execute(SCHEMA)
            database.pragma("application_id", APPLICATION_ID)
            database.pragma("user_version", SCHEMA_VERSION)
    if (
        database.pragma("journal_mode") != "wal"
        or database.pragma("synchronous") != _SYNCHRONOUS_FULL
        or database.pragma("quick_check") != "ok"
    ):
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is damaged")
    return database


def _exists() -> GridveilError:
    return Conflict(Reason.METER_EXISTS, "a meter with this id or key was enrolled before")


def _unavailable() -> GridveilError:
    return Unavailable(Reason.STORE_UNAVAILABLE, "the roster cannot be written")
