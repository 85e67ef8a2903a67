"""What an aggregator's SQLite store must hold, kept apart from it, and one at work at random.

A :class:`World` is never changed: each step makes another one, so that what is found after a fault
can be compared with what there was before the step in progress and what there is after it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

from gridveil.protocol.ciphertext import Residues, add, to_bytes
from gridveil.protocol.city import CityParameters, Epoch
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.documents import SqliteDocuments
from gridveil_services.aggregator.store.interface import Committed, Phase, Window
from gridveil_services.aggregator.store.redis.journal import Journal
from gridveil_services.aggregator.store.redis.pins import Pins
from gridveil_services.aggregator.store.schema import SCHEMA
from gridveil_services.aggregator.store.sqlite import SqliteStore
from tests.contract.stores import CRYPTO, LENGTH, START, batch, made_up_report, make_window
from tests.support.reports import CITY_ID, city_policy

METERS = 60
LANES = 2
Seen = dict[str, object]
"""All that a store says of itself, in values that can be compared."""


@dataclass(frozen=True)
class Held:
    """A window: what it counts, lane by lane."""

    window: Window
    batches: tuple[tuple[int, tuple[int, ...], int], ...] = ()
    """Lane, meters and time of each batch, in order."""
    sums: dict[int, Residues] = field(default_factory=dict)
    equivocated: tuple[int, ...] = ()

    @property
    def meters(self) -> dict[int, int]:
        """Counted meters and when each was accepted."""
        return {meter: at for _, meters, at in self.batches for meter in meters}

    @property
    def full(self) -> bool:
        return len(self.meters) == METERS


@dataclass(frozen=True)
class World:
    """What a store and its documents hold."""

    windows: dict[int, Held] = field(default_factory=dict)
    forgotten: int = 0
    parameters: tuple[bytes, ...] = ()
    members: tuple[Member, ...] = ()
    version: int = 0
    acknowledged: frozenset[tuple[int, int]] = frozenset()
    """Window and meter, in the journal of an aggregator that shares a Redis."""
    poisoned: frozenset[int] = frozenset()
    """Windows with a reason, of such an aggregator."""

    def put(self, held: Held) -> World:
        return replace(self, windows={**self.windows, held.window.start: held})

    def expected(self) -> Seen:
        """What the store must say."""
        roster = (self.version, roster_digest(self.members)) if self.version else None
        return {
            "forgotten": self.forgotten,
            "parameters": self.parameters,
            "roster": roster,
            "members": self.members,
            "acknowledged": {
                (start, meter % LANES, _id(meter), made_up_report(meter)[0].digest)
                for start, meter in self.acknowledged
            },
            "poisoned": self.poisoned,
            **{f"window {start}": _expected(held) for start, held in self.windows.items()},
        }


def _expected(held: Held) -> object:
    phase = held.window.phase
    has_sums = phase in (Phase.OPEN, Phase.SEALED, Phase.RELEASED)
    meters = held.meters
    return {
        "facts": astuple(held.window),
        "receipts": {_id(m): (made_up_report(m)[0].digest, at) for m, at in meters.items()},
        "lanes": {
            lane: (sum(len(ms) for at, ms, _ in held.batches if at == lane), _digest(residues))
            for lane, residues in held.sums.items()
            if has_sums
        },
        "entries": set() if phase.settled else {made_up_report(meter)[0].entry for meter in meters},
        "equivocations": {_id(meter) for meter in held.equivocated},
    }


def seen(store: SqliteStore, documents: SqliteDocuments, database: Database) -> Seen:
    """What a store says, asked as the aggregator asks, and its lanes as they lie in the file."""
    roster = documents.roster()
    forgotten = database.rows("SELECT start FROM forgotten")
    return {
        "forgotten": forgotten[0][0] if forgotten else 0,
        "parameters": tuple(document for document, _ in documents.parameters()),
        "roster": (roster[0].version, roster[0].digest) if roster else None,
        "members": tuple(documents.members()),
        "acknowledged": _acknowledged(database),
        "poisoned": frozenset(s for (s,) in database.rows("SELECT window FROM poisoned")),
        **{f"window {w.start}": _seen(store, database, w) for w in store.windows()},
    }


def _acknowledged(database: Database) -> set[tuple[int, int, bytes, bytes]]:
    journal = Journal(database)
    windows = [start for (start,) in database.rows("SELECT DISTINCT window FROM acknowledgements")]
    return {
        (start, lane, meter, digest)
        for start in windows
        for lane, reports in journal.of(start).items()
        for meter, digest in reports.items()
    }


def _seen(store: SqliteStore, database: Database, window: Window) -> object:
    start = window.start
    known = store.known(start, [_id(meter) for meter in range(METERS)])
    assert store.count(start) == len(known)
    lanes = {
        lane: (count, hashlib.sha256(data).digest())
        for lane, count, data in database.rows(
            "SELECT lane, count, sum FROM lanes WHERE window = ?", (start,)
        )
    }
    for lane in store.lane_sums(start):
        assert lanes[lane.lane] == (lane.count, hashlib.sha256(lane.ciphertext).digest())
    packed = b"".join(store.entries(start))
    return {
        "facts": astuple(window),
        "receipts": {meter: tuple(receipt) for meter, receipt in known.items()},
        "lanes": lanes,
        "entries": {packed[at : at + 196] for at in range(0, len(packed), 196)},
        "equivocations": {found.meter_id for found in store.equivocations(start)},
    }


@lru_cache(maxsize=METERS)
def _id(meter: int) -> bytes:
    return made_up_report(meter)[0].meter_id


def _digest(residues: Residues) -> bytes:
    return hashlib.sha256(to_bytes(residues)).digest()


class Opened:
    """A store on a file, opened as the aggregator opens it."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "aggregator.db", SCHEMA)
        self.store = SqliteStore(self.database)
        self.documents = SqliteDocuments(self.database)
        self.journal = Journal(self.database)
        self.pins = Pins(self.database)

    def seen(self) -> Seen:
        """All that it says of itself."""
        return seen(self.store, self.documents, self.database)

    def close(self) -> None:
        self.database.close()


class Worker:
    """Works on a store at random, and knows after each step what must be there."""

    def __init__(self, opened: Opened, world: World, chance: Random, tick: int = 0) -> None:
        self.world = world
        self.tick = tick
        self._opened = opened
        self._chance = chance

    def step(self) -> World:
        """Do one thing that is possible now; the world after it."""
        self.tick += 1
        possible = list(self._possible())
        weights = [weight for weight, _ in possible]
        _, action = self._chance.choices(possible, weights)[0]
        self.world = action()
        return self.world

    def _possible(self) -> Iterator[tuple[int, Callable[[], World]]]:
        held = list(self.world.windows.values())
        opened = [h for h in held if h.window.phase is Phase.OPEN]
        if len(held) < 4:
            yield 2, self._open
        for window in opened:
            if not window.full:
                yield 6, partial(self._commit, window)
            if window.batches:
                yield 1, partial(self._seal, window)
                yield 1, partial(self._equivocate, window)
            else:
                yield 1, partial(self._move, window)
        for window in held:
            if window.window.phase is Phase.SEALED:
                yield 2, partial(self._settle, window)
        if any(window.window.phase.settled for window in held):
            yield 1, self._forget
        yield 2, self._acknowledge
        if self.world.acknowledged:
            yield 1, self._forget_acknowledged
        yield 1, self._poison
        yield 1, self._parameters
        yield 1, self._roster

    def _open(self) -> World:
        starts = [*self.world.windows, self.world.forgotten, START]
        window = make_window(max(starts) + LENGTH, lanes=LANES)
        assert self._opened.store.open_window(window) == window
        return self.world.put(Held(window))

    def _move(self, held: Held) -> World:
        moved = replace(held.window, parameters_digest=self._chance.randbytes(32))
        assert self._opened.store.move_window(moved)
        return self.world.put(replace(held, window=moved))

    def _commit(self, held: Held) -> World:
        left = [meter for meter in range(METERS) if meter not in held.meters]
        chosen = self._chance.sample(left, min(len(left), self._chance.randint(1, 8)))
        window = held.window
        parts = {lane: tuple(m for m in chosen if m % LANES == lane) for lane in range(LANES)}
        made = [
            batch(meters, lane=lane, start=window.start, parameters_digest=window.parameters_digest)
            for lane, meters in parts.items()
            if meters
        ]
        outcomes = self._opened.store.commit(made, self.tick)
        assert outcomes == [Committed(self.tick)] * len(made)
        sums = dict(held.sums)
        for part in made:
            before = [sums[part.lane]] if part.lane in sums else []
            sums[part.lane] = add([*before, part.sum], CRYPTO)
        added = tuple((lane, meters, self.tick) for lane, meters in parts.items() if meters)
        return self.world.put(replace(held, batches=held.batches + added, sums=sums))

    def _equivocate(self, held: Held) -> World:
        left = [meter for meter in held.meters if meter not in held.equivocated]
        if not left:
            return self.world
        meter = self._chance.choice(left)
        other = made_up_report(meter, 1)[0].entry
        self._opened.store.record_equivocation(
            held.window.start, meter % LANES, _id(meter), bytes(32), other
        )
        return self.world.put(replace(held, equivocated=(*held.equivocated, meter)))

    def _seal(self, held: Held) -> World:
        assert self._opened.store.seal(held.window.start)
        return self.world.put(replace(held, window=replace(held.window, phase=Phase.SEALED)))

    def _settle(self, held: Held) -> World:
        phase = self._chance.choice((Phase.RELEASED, Phase.REFUSED, Phase.EXPIRED))
        assert self._opened.store.settle(held.window.start, phase)
        return self.world.put(replace(held, window=replace(held.window, phase=phase)))

    def _forget(self) -> World:
        settled = [h.window for h in self.world.windows.values() if h.window.phase.settled]
        before = self._chance.choice(settled).end + 1
        gone = {window.start for window in settled if window.end < before}
        assert self._opened.store.forget(before) == len(gone)
        left = {s: held for s, held in self.world.windows.items() if s not in gone}
        return replace(self.world, windows=left, forgotten=max(self.world.forgotten, *gone))

    def _acknowledge(self) -> World:
        start, meters = LENGTH * self._chance.randint(1, 3), self._chance.sample(range(METERS), 4)
        reports: dict[tuple[int, int], dict[bytes, bytes]] = {}
        for meter in meters:
            lane = reports.setdefault((start, meter % LANES), {})
            lane[_id(meter)] = made_up_report(meter)[0].digest
        self._opened.journal.add(reports)
        added = {(start, meter) for meter in meters}
        return replace(self.world, acknowledged=self.world.acknowledged | added)

    def _forget_acknowledged(self) -> World:
        start = self._chance.choice(sorted(self.world.acknowledged))[0]
        self._opened.journal.forget([start])
        left = frozenset(ack for ack in self.world.acknowledged if ack[0] != start)
        return replace(self.world, acknowledged=left)

    def _poison(self) -> World:
        window = make_window(LENGTH * self.tick)
        self._opened.pins.poison(window, "lost")
        return replace(self.world, poisoned=self.world.poisoned | {window.start})

    def _parameters(self) -> World:
        made = _city_parameters(self.tick)
        self._opened.documents.save_parameters(made, made.encode(), bytes(64))
        return replace(self.world, parameters=(*self.world.parameters, made.encode())[-50:])

    def _roster(self) -> World:
        source = random.Random(self.tick)
        added = [
            Member(source.randbytes(16), source.randbytes(32), source.randbytes(32))
            for _ in range(3)
        ]
        removed = [member.meter_id for member in self.world.members[:1]]
        members = tuple(sorted([*self.world.members[1:], *added]))
        version = self.world.version + 1
        head = RosterVersion(CITY_ID, version, START, len(members), roster_digest(members))
        self._opened.documents.save_roster(head, bytes(64), removed, added)
        return replace(self.world, members=members, version=version)


@lru_cache(maxsize=64)
def _city_parameters(number: int) -> CityParameters:
    source = random.Random(number)
    epoch = Epoch(
        source.randbytes(16), START, START + LENGTH, source.randbytes(32), source.randbytes(200)
    )
    return CityParameters(city_policy(), epoch)
