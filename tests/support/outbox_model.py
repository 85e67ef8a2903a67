"""What a meter's outbox must hold, kept apart from it, and one at work at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from gridveil.outbox import Entry, NewEntry, Outbox, State, Verdict
from gridveil.protocol.errors import Reason

CITY = bytes(16)
FIRST = 1_700_000_100
LENGTH = 900
_METERS = [bytes([number]) * 16 for number in range(3)]
_FOREVER = 1e12
Key = tuple[int, bytes]


@dataclass(frozen=True)
class Contents:
    """All that an outbox holds; never changed."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    parameters: tuple[bytes, ...] = ()
    """Newest first."""

    def put(self, *entries: Entry) -> Contents:
        return replace(self, entries={**self.entries, **{e.key: e for e in entries}})


def contents(outbox: Outbox) -> Contents:
    """What an outbox says, the reports of what waits included."""
    found = {entry.key: entry for entry in outbox.entries()}
    waiting = {entry.key for entry in found.values() if entry.state is State.WAITING}
    # due() gives one window and epoch at a time; what it gave is not asked for again.
    for key in waiting:
        row = outbox._read("SELECT report FROM reports WHERE window = ? AND meter = ?", key)
        found[key] = replace(found[key], report=row[0][0] if row else None)
    reports = outbox._read("SELECT count(*) FROM reports", ())[0][0]
    assert reports == sum(entry.report is not None for entry in found.values())
    return Contents(found, tuple(encoded for encoded, _ in outbox.parameters()))


class Sender:
    """Works on an outbox at random, and knows after each step what must be there."""

    def __init__(self, outbox: Outbox, held: Contents, chance: Random, tick: int = 0) -> None:
        self.held = held
        self.tick = tick
        self._outbox = outbox
        self._chance = chance

    def step(self) -> Contents:
        """Do one thing that is possible now; what the outbox holds after it."""
        self.tick += 1
        possible = list(self._possible())
        _, action = self._chance.choices(possible, [weight for weight, _ in possible])[0]
        self.held = action()
        return self.held

    def _possible(self) -> Iterator[tuple[int, Callable[[], Contents]]]:
        waiting = [e for e in self.held.entries.values() if e.state is State.WAITING]
        if len(self.held.entries) < 40:
            yield 4, self._record
        if waiting:
            yield 3, lambda: self._begin(waiting)
            yield 3, lambda: self._conclude(waiting)
            yield 2, lambda: self._replace(waiting)
        yield 1, self._keep_parameters
        yield 1, self._purge

    def _record(self) -> Contents:
        window = FIRST + LENGTH * self.tick
        made = []
        for meter in _METERS[: self._chance.randint(1, 3)]:
            report = self._chance.randbytes(17_400) if self._chance.random() < 0.8 else None
            digest = bytes(32) if report else None
            made.append(NewEntry(window, meter, {"import_wh": self.tick}, 0.0, digest, report))
        assert self._outbox.record(made) == len(made)
        return self.held.put(
            *(
                Entry(
                    window_start=entry.window_start,
                    meter_id=entry.meter_id,
                    values=entry.values,
                    state=State.WAITING,
                    parameters_digest=entry.parameters_digest,
                    attempts=0,
                    due_at=0.0,
                    reason=None,
                    answered=False,
                    report=entry.report,
                )
                for entry in made
            )
        )

    def _begin(self, waiting: list[Entry]) -> Contents:
        chosen = self._some(waiting)
        self._outbox.begin(chosen, float(self.tick))
        return self.held.put(
            *(replace(e, attempts=e.attempts + 1, due_at=float(self.tick)) for e in chosen)
        )

    def _conclude(self, waiting: list[Entry]) -> Contents:
        verdicts, after = [], []
        for entry in self._some(waiting):
            state = self._chance.choice(list(State))
            reason = None if state is State.SETTLED else Reason.OVERLOADED
            verdicts.append(Verdict(*entry.key, state, reason, float(self.tick)))
            ended = state is not State.WAITING
            after.append(
                replace(
                    entry,
                    state=state,
                    reason=reason,
                    due_at=float(self.tick),
                    answered=ended,
                    report=None if ended else entry.report,
                )
            )
        self._outbox.conclude(verdicts)
        return self.held.put(*after)

    def _replace(self, waiting: list[Entry]) -> Contents:
        entry, report = self._chance.choice(waiting), self._chance.randbytes(17_400)
        digest = self._chance.randbytes(32)
        self._outbox.replace_report(entry, digest, report, 0.0)
        made = replace(entry, parameters_digest=digest, report=report, due_at=0.0)
        return self.held.put(made)

    def _keep_parameters(self) -> Contents:
        encoded = self._chance.randbytes(300)
        self._outbox.keep_parameters(encoded, bytes(64), int(_FOREVER))
        return replace(self.held, parameters=(encoded, *self.held.parameters))

    def _purge(self) -> Contents:
        before = FIRST + LENGTH * (self.tick - self._chance.randint(0, 20))
        self._outbox.purge(before)
        left = {
            key: entry
            for key, entry in self.held.entries.items()
            if entry.state is State.WAITING or entry.window_start >= before
        }
        return replace(self.held, entries=left)

    def _some(self, waiting: list[Entry]) -> list[Entry]:
        return self._chance.sample(waiting, self._chance.randint(1, len(waiting)))
