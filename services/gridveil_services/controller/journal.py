"""The journal: every event with the signal that it led to, durable before anybody sees it.

Signals are the fold of the journal under the rules that were in force, which it keeps as well: so
``gridveil control replay --journal`` comes to the same bytes. Beside it is what is known of settled
windows, for the forecast, and what became of the objects for the VTN.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import apsw
import msgspec

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.core import Event, Gap, Settled, Signal, State
from gridveil_services.controller.database import Database, damaged
from gridveil_services.controller.rules import ControlRules

RETENTION_S = 400 * 86_400
"""How long events, windows and deliveries are kept: a year, and the weeks to compare it with."""

T = TypeVar("T")

_LOOK = "SELECT number, signal FROM journal"
# Times never go back: one look into their index says where to begin.
_LOOK_FROM = (
    "SELECT number, signal FROM journal WHERE number >= max(?2 + 1,"
    " (SELECT number FROM journal WHERE at >= ?1 ORDER BY at, number LIMIT 1))"
    " ORDER BY number LIMIT ?3"
)


class Delivery(IntEnum):
    """What became of an object for the VTN; the numbers are those of the protocol."""

    NOT_SENT = 1
    PENDING = 2
    DELIVERED = 3
    REFUSED = 4
    SUPERSEDED = 5


class Kind(IntEnum):
    """What an object for the VTN is."""

    EVENT = 1
    REPORT = 2


_NONE_BEHIND: Mapping[Kind, int] = MappingProxyType({})


class Draft(NamedTuple):
    """An object for the VTN that is to be kept."""

    kind: Kind
    name: str
    body: str
    state: Delivery


class Entry(NamedTuple):
    """An event, what it led to, and what is sent for it."""

    number: int
    event: Event
    state: State
    signal: Signal
    drafts: Sequence[Draft] = ()


class Shown(NamedTuple):
    """A signal as others may see it."""

    number: int
    signal: Signal
    objects: Sequence[tuple[str, Delivery]] = ()


@dataclass(frozen=True)
class Window:
    """A settled window. Without a total, none of the figures are there."""

    window_start: int
    energy_wh: int | None = None
    count: int | None = None
    enrolled: int | None = None

    @classmethod
    def of(cls, event: Settled | Gap) -> Window:
        """What an event says of its window."""
        if isinstance(event, Gap):
            return cls(event.window_start)
        return cls(event.window_start, event.energy_wh, event.count, event.enrolled)


class Parcel(NamedTuple):
    """An object for the VTN that was not delivered yet."""

    place: int
    number: int
    kind: Kind
    name: str
    body: str
    tried: bool
    """Whether it was sent once, and the VTN may have it."""


class Journal:
    """Raises what :class:`Database` does; PARTIAL_CORRUPT also for what it never wrote."""

    def __init__(self, path: Path, city_id: bytes, now: int) -> None:
        """Open the journal of a city's controller, or begin one at ``now`` (Unix seconds).

        Raises:
            MalformedInput: CONFIG_INVALID if it is another city's.
        """
        self._database = Database(path)
        try:
            self._begin(city_id, now)
        except BaseException:
            self._database.close()
            raise

    def _begin(self, city_id: bytes, now: int) -> None:
        with self._database.transaction() as writer:
            if not writer.execute("SELECT count(*) FROM controller").get:
                writer.execute(
                    "INSERT INTO controller VALUES (?, ?, ?)", (city_id, secrets.token_hex(4), now)
                )
        found, self.instance, self.begun = _only(self._database.rows("SELECT * FROM controller"))
        if found != city_id:
            raise MalformedInput(Reason.CONFIG_INVALID, "the journal is of another city")

    instance: str
    """A name of this history of signals: another one begins with 1 as well."""
    begun: int
    """When the controller was first started, Unix seconds."""

    def close(self) -> None:
        self._database.close()

    def on_failure(self, tell: Callable[[], None]) -> None:
        """Whom to tell, once, that it cannot be used any more."""
        self._database.on_failure = tell

    @property
    def usable(self) -> bool:
        """Whether it has not failed for good."""
        return self._database.usable

    def newest(self) -> tuple[int, State]:
        """The number of the newest entry, 0 if there is none, and the state that it left."""
        query = "SELECT number, state FROM journal ORDER BY number DESC LIMIT 1"
        for number, state in self._database.rows(query):
            return number, _decoded(state, State)
        return 0, State()

    def append(self, entries: Sequence[Entry], history: Iterable[Settled | Gap] = ()) -> None:
        """Keep entries, and windows that led to none, all or none of them."""
        with self._database.transaction() as writer:
            for entry in entries:
                _write(writer, entry)
                if isinstance(entry.event, Settled | Gap):
                    _write_window(writer, entry.event)
            for window in history:
                _write_window(writer, window)

    def keep_rules(self, rules: ControlRules) -> None:
        """Note the rules that later entries are made by, if they are others than before.

        Raises:
            MalformedInput: CONFIG_INVALID for another register or window length than before: what
                is known of windows would not be of these.
        """
        past = self.rules()
        if past and past[-1][1] == rules:
            return
        if past and any(_grid(kept) != _grid(rules) for _, kept in past):
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                "the journal is of another register or window_length: name another state folder",
                field="state",
            )
        with self._database.transaction() as writer:
            number = writer.execute("SELECT coalesce(max(number), 0) FROM journal").get
            values = number + 1, msgspec.json.encode(rules)
            writer.execute("REPLACE INTO rules VALUES (?, ?)", values)

    def rules(self) -> list[tuple[int, ControlRules]]:
        """The rules that were in force, each with the number of the first entry made by them."""
        rows = self._database.rows("SELECT since, rules FROM rules ORDER BY since")
        return [(since, _decoded(rules, ControlRules)) for since, rules in rows]

    def signals(self, from_: int, after: int, most: int) -> list[Shown]:
        """At most ``most`` signals at or after a time, and behind a number, in order."""
        rows = self._database.rows(_LOOK_FROM, (from_, after, most))
        return [self._shown(*row) for row in rows]

    def signal(self, number: int) -> Shown:
        """The signal with a number that the journal has."""
        return self._shown(*_only(self._database.rows(f"{_LOOK} WHERE number = ?", (number,))))

    def _shown(self, number: int, signal: bytes) -> Shown:
        objects = self._database.rows(
            "SELECT body, state FROM deliveries WHERE number = ? AND kind = ? ORDER BY place",
            (number, Kind.EVENT),
        )
        decoded = _decoded(signal, Signal)
        return Shown(number, decoded, [(body, Delivery(state)) for body, state in objects])

    def windows(self) -> list[Window]:
        """All settled windows that are known, ascending."""
        return [
            Window(*row)
            for row in self._database.rows(
                "SELECT window_start, energy_wh, count, enrolled FROM windows ORDER BY 1"
            )
        ]

    def next_parcel(self, behind: Mapping[Kind, int] = _NONE_BEHIND) -> tuple[Parcel | None, int]:
        """What to send next, and how many events it supersedes: they are marked so.

        Events of the newest signal come first, in their order; then reports, the oldest first. Of
        a kind, those up to the place ``behind`` come last.
        """
        with self._database.transaction() as writer:
            writer.execute(
                "UPDATE deliveries INDEXED BY pending SET state = ?1 WHERE state = 2 AND kind = ?2"
                " AND number < (SELECT max(number) FROM deliveries WHERE kind = ?2)",
                (Delivery.SUPERSEDED, Kind.EVENT),
            )
            superseded = writer.changes()
            rows: list[Any] = writer.execute(
                "SELECT place, number, kind, name, body, tried FROM deliveries"
                " WHERE state = 2"
                " ORDER BY kind, place <= CASE kind WHEN ? THEN ? ELSE ? END, place LIMIT 1",
                (Kind.EVENT, behind.get(Kind.EVENT, 0), behind.get(Kind.REPORT, 0)),
            ).fetchall()
        for place, number, kind, name, body, tried in rows:
            return Parcel(place, number, Kind(kind), name, body, bool(tried)), superseded
        return None, superseded

    def mark_tried(self, place: int, *, tried: bool) -> None:
        """Note that the VTN may have an object, or that it has not."""
        with self._database.transaction() as writer:
            writer.execute("UPDATE deliveries SET tried = ? WHERE place = ?", (tried, place))

    def conclude(self, place: int, delivery: Delivery) -> None:
        """Note what became of an object that was pending."""
        with self._database.transaction() as writer:
            writer.execute(
                "UPDATE deliveries SET state = ? WHERE place = ? AND state = 2", (delivery, place)
            )

    def send_nothing(self) -> None:
        """Nobody is there to send to any more."""
        with self._database.transaction() as writer:
            writer.execute("UPDATE deliveries SET state = ? WHERE state = 2", (Delivery.NOT_SENT,))

    def pending(self) -> int:
        """How many objects wait to be sent."""
        ((count,),) = self._database.rows("SELECT count(*) FROM deliveries WHERE state = 2")
        return int(count)

    def prune(self, before: int) -> None:
        """Forget what is older than a time, but for the newest entry and the rules in force."""
        with self._database.transaction() as writer:
            writer.execute(
                "DELETE FROM journal WHERE at < ? AND number < (SELECT max(number) FROM journal)",
                (before,),
            )
            oldest = writer.execute("SELECT coalesce(min(number), 1) FROM journal").get
            writer.execute(
                "DELETE FROM rules WHERE since < (SELECT max(since) FROM rules WHERE since <= ?)",
                (oldest,),
            )
            writer.execute("DELETE FROM windows WHERE window_start < ?", (before,))
            writer.execute("DELETE FROM deliveries WHERE at < ?", (before,))


def _decoded(encoded: bytes, kind: type[T]) -> T:
    """What an entry says; PARTIAL_CORRUPT if it is none that was written here."""
    try:
        return msgspec.json.decode(encoded, type=kind)
    except (msgspec.DecodeError, MalformedInput):
        raise damaged() from None


def _only(rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    if len(rows) != 1:
        raise damaged()
    return rows[0]


def _grid(rules: ControlRules) -> tuple[str, int]:
    return rules.register, rules.window_length


def _write(writer: apsw.Connection, entry: Entry) -> None:
    event, state = msgspec.json.encode(entry.event), msgspec.json.encode(entry.state)
    at, signal = entry.event.at, entry.signal.encode()
    writer.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (entry.number, at, event, state, signal)
    )
    writer.executemany(
        "INSERT INTO deliveries (number, at, kind, name, body, state, tried)"
        " VALUES (?, ?, ?, ?, ?, ?, 0)",
        (
            (entry.number, at, draft.kind, draft.name, draft.body, draft.state)
            for draft in entry.drafts
        ),
    )


def _write_window(writer: apsw.Connection, event: Settled | Gap) -> None:
    found = Window.of(event)
    reason = event.reason if isinstance(event, Gap) else None
    writer.execute(
        "INSERT OR IGNORE INTO windows VALUES (?, ?, ?, ?, ?)",
        (found.window_start, found.energy_wh, found.count, found.enrolled, reason),
    )
