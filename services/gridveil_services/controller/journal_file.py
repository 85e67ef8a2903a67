"""Reading a journal that no controller uses: what was shown, and what its events lead to now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from gridveil.fsck import Checker, Trust, damaged, demand
from gridveil.protocol.errors import MalformedInput
from gridveil.protocol.layout import ID_BYTES
from gridveil.sqlite_file import SqliteFile, application_id, opened
from gridveil_services.controller.core import Event, Signal, State, step
from gridveil_services.controller.database import APPLICATION_ID, SCHEMA, VERSION
from gridveil_services.controller.journal import Delivery, Kind
from gridveil_services.controller.rules import ControlRules

_ENTRIES = "SELECT number, at, event, state, signal FROM journal ORDER BY number"


class Recorded(NamedTuple):
    """An entry of a journal."""

    number: int
    event: Event
    shown: bytes
    """The signal as it was shown."""
    signal: Signal
    """What the event leads to, by the state and the rules of the journal."""
    rules: ControlRules

    @property
    def holds(self) -> bool:
        """Whether it was shown to the byte what it leads to."""
        return self.signal.encode() == self.shown


def read_journal(path: Path) -> list[Recorded]:
    """The entries of a journal, folded anew.

    The oldest one is taken as it stands if what came before it was forgotten.

    Raises:
        IntegrityLost: PARTIAL_CORRUPT if it is no journal that a controller wrote.
        Unavailable: STORE_UNAVAILABLE if a controller uses it.
    """
    with opened(path, VERSION, SCHEMA) as database:
        return list(_entries(database))


def _entries(database: SqliteFile) -> Iterator[Recorded]:
    try:
        rules = [
            (since, msgspec.json.decode(encoded, type=ControlRules))
            for since, encoded in database.rows("SELECT since, rules FROM rules ORDER BY since")
        ]
        state, last = State(), 0
        for number, at, event_bytes, state_bytes, shown in database.rows(_ENTRIES):
            event = msgspec.json.decode(event_bytes, type=Event)
            demand(not last or number == last + 1, "a signal of the journal is missing")
            demand(event.at == at, f"signal {number} has two times")
            forces = [found for since, found in rules if since <= number]
            demand(bool(forces), f"the rules of signal {number} are missing")
            stands = msgspec.json.decode(state_bytes, type=State)
            signal = msgspec.json.decode(shown, type=Signal)
            if last or number == 1:
                folded, signal = step(forces[-1], state, event)
                demand(folded == stands, f"signal {number} left another state than its event")
            yield Recorded(number, event, shown, signal, forces[-1])
            state, last = stands, number
    except (msgspec.DecodeError, MalformedInput):
        raise damaged("an entry of the journal is none that a controller writes") from None


def check(path: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a whole journal; see :class:`gridveil.fsck.Checker`."""
    with opened(path, VERSION, SCHEMA) as database:
        cities = list(database.rows("SELECT city_id FROM controller"))
        demand(len(cities) == 1 and len(cities[0][0]) == ID_BYTES, "it does not name one city")
        if trust is not None:
            demand(cities[0][0] == trust.city_id, "it is of another city")
        entries = list(_entries(database))
        for entry in entries:
            demand(entry.holds, f"signal {entry.number} is not what its event leads to")
        for state, kind, tried in database.rows("SELECT state, kind, tried FROM deliveries"):
            known = state in set(Delivery) and kind in set(Kind) and tried in (0, 1)
            demand(known, "an object for the VTN has no known state")
        windows = database.only("SELECT count(*) FROM windows")
        deliveries = database.only("SELECT count(*) FROM deliveries")
    return {"signals": len(entries), "windows": windows, "deliveries": deliveries}


CHECKER = Checker(
    "a controller's journal", lambda path: application_id(path) == APPLICATION_ID, check
)
