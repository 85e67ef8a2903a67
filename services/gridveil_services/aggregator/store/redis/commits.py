"""Group commits: one script a lane, then this aggregator's journal, then the outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gridveil.protocol.errors import IntegrityLost, Unavailable
from gridveil_services.aggregator.store.interface import (
    LaneBatch,
    Moved,
    NotOpen,
    Outcome,
    Phase,
    StoredReceipt,
    Window,
)
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.admission import Step, next_step
from gridveil_services.aggregator.store.redis.failures import catching_up
from gridveil_services.aggregator.store.redis.journal import Journal, Place
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.lanes import receipts_in
from gridveil_services.aggregator.store.redis.servers import Call, Servers, script
from gridveil_services.aggregator.store.redis.writer import LaneWriter


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

    def settle_all(self, answer: Outcome, outcomes: dict[int, Outcome]) -> None:
        """All of them have the same."""
        self.settle([answer] * len(self.batches), outcomes)


@dataclass
class Commits:
    """What this process adds to lanes. From one thread at a time; :meth:`confirm` from any."""

    servers: Servers
    keys: CityKeys
    windows: Mapping[int, Window]
    """All of them."""
    taking: Callable[[int], Window | None]
    """A window, if this process may acknowledge its reports or it takes none any more."""
    journal: Journal
    may_acknowledge: Callable[[int], bool]
    """Whether what is in a window's lanes by now will be counted."""
    poison: Callable[[int, str], Window]
    realign: Callable[[Window], bool | None]
    """Asked when a lane is under other parameters than its window is thought to be.

    None if the window is not whole; True if the lane is under the window's again, False if it is
    the window that has changed.
    """
    _writers: dict[Place, LaneWriter] = field(default_factory=dict)

    def commit(self, batches: Sequence[LaneBatch], accepted_at_ms: int) -> Sequence[Outcome]:
        """As :meth:`Store.commit`."""
        outcomes: dict[int, Outcome] = {}
        queues: dict[Place, _Queue] = {}
        for place, batch in enumerate(batches):
            window = self.taking(batch.window_start)
            if window is None or window.phase is not Phase.OPEN:
                outcomes[place] = NotOpen(None if window is None else window.phase)
            elif window.parameters_digest != batch.parameters_digest:
                outcomes[place] = Moved()
            else:
                lane = batch.window_start, batch.lane
                queue = queues.setdefault(lane, _Queue(window.lane_capacity))
                queue.batches.append((place, batch))
        self._check_may_acknowledge(queues)
        while queues:
            self._round(queues, accepted_at_ms, outcomes)
            queues = {lane: queue for lane, queue in queues.items() if queue.batches}
        return [outcomes[place] for place in range(len(batches))]

    def writers_of(self, start: int) -> list[LaneWriter]:
        """This process's writers in a window."""
        return [writer for (of, _), writer in self._writers.items() if of == start]

    def drop_writers(self, start: int) -> None:
        """Nothing more is added to a window, or under other parameters."""
        for place in [place for place in self._writers if place[0] == start]:
            del self._writers[place]

    def confirm(self, lanes: Iterable[Place]) -> None:
        """Wait until what was found in these lanes, by whomever, is where it must be."""
        lanes = list(lanes)
        self._check_may_acknowledge(lanes)
        # Even if there is nothing to wait for, the servers must be as they should.
        keys = [self.keys.lane(*lane).lane for lane in lanes]
        waits = self.servers.replicas > 0
        calls = [script(scripts.CONFIRM, [k]) if waits else Call(k, ("PING",)) for k in keys]
        if calls:
            self.servers.write(calls)

    def _round(
        self, queues: Mapping[Place, _Queue], at_ms: int, outcomes: dict[int, Outcome]
    ) -> None:
        """One script call a lane at the most."""
        steps = []
        for lane, queue in queues.items():
            window = self.windows[lane[0]]
            if window.phase is not Phase.OPEN:
                queue.settle_all(NotOpen(window.phase), outcomes)
                continue
            if queue.batches[0][1].parameters_digest != window.parameters_digest:
                queue.settle_all(Moved(), outcomes)
                continue
            step = next_step([batch for _, batch in queue.batches], queue.known, queue.room, at_ms)
            if step.taken:
                steps.append((lane, queue, step))
            else:
                queue.settle(step.outcomes, outcomes)
        if steps:
            self._store(steps, outcomes)

    def _store(
        self, steps: Sequence[tuple[Place, _Queue, Step]], outcomes: dict[int, Outcome]
    ) -> None:
        writers = [self._writer(lane) for lane, _, _ in steps]
        calls = [w.call(self.keys, s) for w, (_, _, s) in zip(writers, steps, strict=True)]
        try:
            answers = self.servers.write(calls)
        except Unavailable:
            for writer in writers:
                writer.begin_anew()
            raise
        # Whatever fails below, no writer may use a number again that is stored.
        acknowledged = {}
        for writer, (lane, _, step), answer in zip(writers, steps, answers, strict=True):
            if answer[0] == b"stored":
                writer.stored()
                acknowledged[lane] = {m: held.digest for m, held in step.receipts.items()}
        self._check_may_acknowledge(acknowledged)
        self.journal.add(acknowledged)
        for (lane, queue, step), answer in zip(steps, answers, strict=True):
            self._take(lane, queue, step, answer, outcomes)

    def _check_may_acknowledge(self, lanes: Iterable[Place]) -> None:
        if not all(map(self.may_acknowledge, {start for start, _ in lanes})):
            raise catching_up()

    def _take(
        self,
        lane: Place,
        queue: _Queue,
        step: Step,
        answer: Sequence[Any],
        outcomes: dict[int, Outcome],
    ) -> None:
        """What a lane's script answered to a step."""
        window = self.windows[lane[0]]
        match answer:
            case [b"stored"]:
                queue.settle(step.outcomes, outcomes)
                queue.known.update(step.receipts)
                queue.room -= len(step.receipts)
            case [b"refused", count, known] if (found := _receipts(known)) is not None:
                self.confirm([lane] if found else [])
                queue.known.update(found)
                queue.room = window.lane_capacity - int(count)
            case [b"sealed"]:
                queue.settle_all(NotOpen(Phase.SEALED), outcomes)
            case [b"moved"]:
                self._moved(lane, queue, outcomes)
            case [b"lost"] | [b"refused", *_]:
                self._lost(lane, queue, "what a lane held is gone", outcomes)
            case _:
                raise self.servers.fail("the store has failed")

    def _moved(self, lane: Place, queue: _Queue, outcomes: dict[int, Outcome]) -> None:
        window = self.windows[lane[0]]
        match self.realign(window):
            case None:
                self._lost(lane, queue, "a lane is under other parameters", outcomes)
            case False:
                queue.settle_all(Moved(), outcomes)
            case True:
                pass

    def _lost(self, lane: Place, queue: _Queue, why: str, outcomes: dict[int, Outcome]) -> None:
        self.poison(lane[0], why)
        queue.settle_all(NotOpen(Phase.POISONED), outcomes)

    def _writer(self, lane: Place) -> LaneWriter:
        if lane not in self._writers:
            self._writers[lane] = LaneWriter(self.windows[lane[0]], lane[1])
        return self._writers[lane]


def _receipts(flat: Sequence[bytes]) -> dict[bytes, StoredReceipt] | None:
    """What a script found; None if it is not what was written."""
    try:
        return receipts_in(flat)
    except IntegrityLost:
        return None
