"""The store in Redis, for one aggregator process.

What decides is in Redis, and changes in one script a lane. Memory holds the windows' facts and
phases, and what this process adds to each lane. Signed documents (parameters, rosters) stay in
the process's own SQLite file: they are the key-holder's, and each aggregator fetches its own. The
same file pins which windows were opened (:mod:`.pins`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable, WrongState
from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.release import ENTRY_BYTES, LaneSum
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import (
    Equivocation,
    LaneBatch,
    Moved,
    NotOpen,
    Outcome,
    Phase,
    StoredReceipt,
    StoreFailed,
    Window,
)
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.admission import Step, next_step
from gridveil_services.aggregator.store.redis.checks import check_server
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.lanes import Lanes, receipts_in
from gridveil_services.aggregator.store.redis.layout import corrupt
from gridveil_services.aggregator.store.redis.pins import Pins, phase_of
from gridveil_services.aggregator.store.redis.servers import Call, Servers, script
from gridveil_services.aggregator.store.redis.windows import Windows
from gridveil_services.aggregator.store.redis.writer import LaneWriter

_Place = tuple[int, int]
"""Start of a window, and one of its lanes."""


@dataclass
class _Queue:
    """Batches of one lane that wait for their outcome, and what is known of the lane."""

    room: int
    batches: list[tuple[int, LaneBatch]] = field(default_factory=list)
    """With their place in the call."""
    known: dict[bytes, StoredReceipt] = field(default_factory=dict)

    def settle(self, answers: Sequence[Outcome], outcomes: dict[int, Outcome]) -> None:
        """The first batches have their outcomes."""
        for (place, _), outcome in zip(self.batches, answers, strict=False):
            outcomes[place] = outcome
        del self.batches[: len(answers)]


class RedisStore:
    """``Store`` on Redis servers, with a :class:`Database` for what a server may forget."""

    def __init__(self, servers: Servers, database: Database, city_id: bytes) -> None:
        """Compare Redis with the file: a window that is not whole in it is poisoned."""
        self._servers = servers
        self._keys = CityKeys(city_id.hex())
        self._lanes = Lanes(servers, self._keys)
        self._remote = Windows(servers, self._keys, self._lanes)
        self._pins = Pins(database)
        self._windows: dict[int, Window] = {}
        self._sealed: dict[int, int] = {}
        self._writers: dict[_Place, LaneWriter] = {}
        self._unclean: set[int] = set()
        self._doubtful: set[_Place] = set()
        """Lanes that may hold what not enough replicas have."""
        self._forgotten = max(self._pins.forgotten(), self._remote.forgotten())
        self._load()

    @classmethod
    def open(cls, config: RedisConfig, database: Database, city_id: bytes) -> RedisStore:
        """A store on servers that were looked at first.

        Raises:
            StoreFailed: a server could lose data, holds something else, or cannot be reached.
        """
        try:
            servers = Servers(config, database.fail)
            try:
                check_server(servers, CityKeys(city_id.hex()))
                return cls(servers, database, city_id)
            except BaseException:
                servers.close()
                raise
        except StoreFailed:
            raise
        except Unavailable as error:
            raise StoreFailed(error.message) from None

    def close(self) -> None:
        """Close all connections."""
        self._servers.close()

    def open_window(self, window: Window) -> Window:
        if (held := self._windows.get(window.start)) is not None:
            return held
        if window.start <= self._forgotten:
            raise WrongState(Reason.WINDOW_CLOSED, "the window is closed")
        self._clean()
        held = self._remote.open(window)
        if held.phase is Phase.OPEN and not self._remote.align(held):
            self._windows[held.start] = held
            return self._poison(held.start)
        self._keep(held)
        return held

    def move_window(self, window: Window) -> bool:
        held = self._windows.get(window.start)
        if held is None or held.phase is not Phase.OPEN:
            return False
        moved = replace(window, phase=held.phase)
        if not self._remote.move(held, moved):
            return False
        self._drop_writers(window.start)
        self._keep(moved)
        return True

    def probe(self) -> None:
        self._servers.write([script(scripts.PROBE, [self._keys.windows])])

    def window(self, start: int) -> Window | None:
        return self._windows.get(start)

    def windows(self) -> Sequence[Window]:
        return sorted(self._windows.values(), key=lambda window: window.start)

    def count(self, start: int) -> int:
        window = self._windows.get(start)
        if window is None:
            return 0
        markers = self._lanes.markers(window)
        return sum(marker.reports for marker in markers if marker is not None)

    def known(self, start: int, meter_ids: Sequence[bytes]) -> Mapping[bytes, StoredReceipt]:
        window = self._windows.get(start)
        if window is None or not meter_ids:
            return {}
        found = self._lanes.known(window, meter_ids)
        self._confirm((start, lane) for lane in found)
        return {meter: held for of_lane in found.values() for meter, held in of_lane.items()}

    def commit(self, batches: Sequence[LaneBatch], accepted_at_ms: int) -> Sequence[Outcome]:
        outcomes: dict[int, Outcome] = {}
        queues: dict[_Place, _Queue] = {}
        for place, batch in enumerate(batches):
            window = self._windows.get(batch.window_start)
            if window is None or window.phase is not Phase.OPEN:
                outcomes[place] = NotOpen(None if window is None else window.phase)
            elif window.parameters_digest != batch.parameters_digest:
                outcomes[place] = Moved()
            else:
                lane = batch.window_start, batch.lane
                queue = queues.setdefault(lane, _Queue(window.lane_capacity))
                queue.batches.append((place, batch))
        while queues:
            self._round(queues, accepted_at_ms, outcomes)
            queues = {lane: queue for lane, queue in queues.items() if queue.batches}
        return [outcomes[place] for place in range(len(batches))]

    def record_equivocation(
        self, start: int, lane: int, meter_id: bytes, parameters_digest: bytes, entry: bytes
    ) -> None:
        window = self._windows.get(start)
        if window is None or window.phase.settled:
            return
        first = self._lanes.entry_of(window, lane, meter_id)
        if first is None:
            return
        key = self._keys.lane(start, lane).equivocations
        both = first + parameters_digest + entry
        self._servers.write([Call(key, ("HSETNX", key, meter_id, both))])

    def equivocations(self, start: int) -> Sequence[Equivocation]:
        window = self._windows.get(start)
        if window is None:
            return []
        keys = [self._keys.lane(start, lane).equivocations for lane in range(window.lanes)]
        answers = self._servers.read([Call(key, ("HGETALL", key)) for key in keys])
        found = [pair for answer in answers for pair in answer.items()]
        return [_equivocation(start, meter, both) for meter, both in sorted(found)]

    def seal(self, start: int) -> bool:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.OPEN:
            return False
        writers = [writer for (of, _), writer in self._writers.items() if of == start]
        epoch = self._remote.seal(window, writers)
        if epoch is None:
            self._poison(start)
        if not epoch:
            self._look_again(start)
            return False
        self._sealed[start] = epoch
        self._drop_writers(start)
        self._keep(replace(window, phase=Phase.SEALED))
        return True

    def lane_sums(self, start: int) -> Sequence[LaneSum]:
        window = self._windows.get(start)
        if window is None or window.phase not in (Phase.SEALED, Phase.RELEASED):
            return []
        sealed = window.phase is Phase.SEALED
        return self._lanes.sums(window, self._sealed[start], entries=sealed)

    def entries(self, start: int) -> Iterator[bytes]:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.SEALED:
            return
        for lane in range(window.lanes):
            yield self._lanes.entries(window, lane, self._sealed[start])

    def entries_after(self, start: int, after: int) -> tuple[bytes, int]:
        window = self._windows.get(start)
        if window is None or window.phase.settled:
            return b"", after
        return self._lanes.entries_after(window, after)

    def settle(self, start: int, phase: Phase) -> bool:
        if not phase.settled:
            raise ValueError("not a final phase")
        window = self._windows.get(start)
        poisons = phase is Phase.POISONED
        before = (Phase.OPEN, Phase.SEALED) if poisons else (Phase.SEALED,)
        if window is None or window.phase not in before:
            return False
        if poisons:
            self._poison(start)
            return True
        settled = replace(window, phase=phase)
        if not self._remote.settle(settled, before):
            self._look_again(start)
            return False
        self._keep(settled)
        self._unclean.add(start)
        self._clean()
        return True

    def forget(self, ended_before: int) -> int:
        self._clean()
        gone = [w for w in self.windows() if w.phase.settled and w.end < ended_before]
        if not gone:
            return 0
        forgotten = max(self._forgotten, *(window.start for window in gone))
        self._remote.forget(gone, forgotten)
        self._forgotten = forgotten
        self._pins.forget([window.start for window in gone], forgotten)
        for window in gone:
            del self._windows[window.start]
            self._sealed.pop(window.start, None)
            self._unclean.discard(window.start)
            self._doubtful -= {(window.start, lane) for lane in range(window.lanes)}
        return len(gone)

    def _round(
        self, queues: Mapping[_Place, _Queue], at_ms: int, outcomes: dict[int, Outcome]
    ) -> None:
        """One script call a lane at the most."""
        steps = []
        for lane, queue in queues.items():
            phase = self._windows[lane[0]].phase
            if phase is not Phase.OPEN:
                queue.settle([NotOpen(phase)] * len(queue.batches), outcomes)
                continue
            step = next_step([batch for _, batch in queue.batches], queue.known, queue.room, at_ms)
            if step.taken:
                steps.append((lane, queue, step))
            else:
                queue.settle(step.outcomes, outcomes)
        if not steps:
            return
        writers = [self._writer(lane) for lane, _, _ in steps]
        calls = [w.call(self._keys, s) for w, (_, _, s) in zip(writers, steps, strict=True)]
        try:
            answers = self._servers.write(calls)
        except Unavailable:
            for writer, (lane, _, _) in zip(writers, steps, strict=True):
                writer.begin_anew()
                self._doubtful.add(lane)
            raise
        # Whatever fails below, no writer may use a number again that is stored.
        for writer, answer in zip(writers, answers, strict=True):
            if answer[0] == b"stored":
                writer.stored()
        for (lane, queue, step), answer in zip(steps, answers, strict=True):
            self._take(lane, queue, step, answer, outcomes)

    def _take(
        self,
        lane: _Place,
        queue: _Queue,
        step: Step,
        answer: Sequence[Any],
        outcomes: dict[int, Outcome],
    ) -> None:
        """What a lane's script answered to a step."""
        window = self._windows[lane[0]]
        match answer:
            case [b"stored"]:
                queue.settle(step.outcomes, outcomes)
                queue.known.update(step.receipts)
                queue.room -= len(step.receipts)
            case [b"refused", count, known] if (found := _receipts(known)) is not None:
                self._confirm([lane] if found else [])
                queue.known.update(found)
                queue.room = window.lane_capacity - int(count)
            case [b"sealed"]:
                queue.settle([NotOpen(Phase.SEALED)] * len(queue.batches), outcomes)
            case [b"moved"] if self._remote.align(window):
                pass
            case [b"lost"] | [b"moved"] | [b"refused", *_]:
                self._poison(lane[0])
                queue.settle([NotOpen(Phase.POISONED)] * len(queue.batches), outcomes)
            case _:
                raise self._servers.fail("the store has failed")

    def _writer(self, lane: _Place) -> LaneWriter:
        if lane not in self._writers:
            self._writers[lane] = LaneWriter(self._windows[lane[0]], lane[1])
        return self._writers[lane]

    def _drop_writers(self, start: int) -> None:
        for place in [place for place in self._writers if place[0] == start]:
            del self._writers[place]

    def _confirm(self, lanes: Iterable[_Place]) -> None:
        """Wait until what was found in these lanes is where it must be."""
        if not self._servers.replicas:
            return
        doubtful = [lane for lane in lanes if lane in self._doubtful]
        if doubtful:
            keys = [self._keys.lane(*lane).lane for lane in doubtful]
            self._servers.write([script(scripts.CONFIRM, [key]) for key in keys])
            self._doubtful.difference_update(doubtful)

    def _keep(self, window: Window) -> None:
        self._pins.put(window)
        self._windows[window.start] = window

    def _poison(self, start: int) -> Window:
        """Never release the window: the file says so even if Redis cannot be told now."""
        window = replace(self._windows[start], phase=Phase.POISONED)
        self._keep(window)
        self._drop_writers(start)
        self._unclean.add(start)
        with suppress(Unavailable):
            self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True)
        self._clean()
        return window

    def _look_again(self, start: int) -> None:
        """Somebody else has changed a window's phase."""
        record, window = self._remote.record(start), self._windows[start]
        phase = phase_of(window, record)
        if phase is Phase.POISONED and not window.phase.settled:
            self._poison(start)
        elif record is not None and phase is not None and phase is not window.phase:
            self._sealed[start] = record.sealed
            self._keep(replace(window, phase=phase))

    def _clean(self) -> None:
        """Delete what settled windows hold too much; later if Redis cannot be reached."""
        with suppress(Unavailable):
            for start in list(self._unclean):
                self._remote.clean(self._windows[start])
                self._unclean.discard(start)

    def _load(self) -> None:
        pinned = self._pins.windows()
        for start in sorted(self._remote.starts() | pinned.keys()):
            pin, record = pinned.get(start), self._remote.record(start)
            phase = phase_of(pin, record)
            known = pin if record is None or (pin and pin.phase.settled) else record.window
            if known is None or phase is None:
                continue
            if record is not None:
                self._sealed[start] = record.sealed
            self._windows[start] = replace(known, phase=phase)
            self._doubtful.update((start, lane) for lane in range(known.lanes))
            self._make_good(start, pin, None if record is None else record.window)

    def _make_good(self, start: int, pin: Window | None, stored: Window | None) -> None:
        """Have the file and Redis say of a window what holds."""
        window = self._windows[start]
        if window.phase is Phase.POISONED or not self._is_whole(window):
            if stored is None or stored.phase is not Phase.POISONED or pin is None:
                self._poison(start)
            return
        if pin != window:
            self._keep(window)
        if window.phase.settled:
            self._unclean.add(start)
            if stored is not None and stored.phase is not window.phase:
                self._remote.settle(window, (Phase.OPEN, Phase.SEALED))
            self._clean()

    def _is_whole(self, window: Window) -> bool:
        if window.phase is Phase.OPEN:
            return self._remote.align(window)
        if window.phase is not Phase.SEALED:
            return True
        sealed = self._sealed[window.start]
        return all(m is not None and m.sealed == sealed for m in self._lanes.markers(window))


def _receipts(flat: Sequence[bytes]) -> dict[bytes, StoredReceipt] | None:
    """What a script found; None if it is not what was written."""
    try:
        return receipts_in(flat)
    except IntegrityLost:
        return None


def _equivocation(start: int, meter_id: bytes, both: bytes) -> Equivocation:
    if len(both) != 2 * ENTRY_BYTES + DIGEST_BYTES:
        raise corrupt()
    first, rest = both[:ENTRY_BYTES], both[ENTRY_BYTES:]
    return Equivocation(start, meter_id, first, rest[:DIGEST_BYTES], rest[DIGEST_BYTES:])
