"""Whether a window that this aggregator takes for open may have been released without it.

A window is released without the voucher of an aggregator that takes part only when it has been
sealed for :data:`.vouching.PATIENCE_S`, on servers that are the same since it was opened. One that
looked at the record within :data:`FRESH_S` would have seen it sealed. One that did not look for
longer cannot know: the servers may have forgotten the seal and the release meanwhile, by a
failover to a replica that was behind. Then it asks the others before it acknowledges anything.

What makes an answer enough: whoever seals a window has that in its file before it is released. And
once the servers have changed, nobody releases without this aggregator's voucher.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.aggregator.store.redis.pins import Pins, Record
from gridveil_services.aggregator.store.redis.servers import Servers
from gridveil_services.aggregator.store.redis.windows import Windows

FRESH_S = 4.0
"""Real seconds; well below the time that others wait for this aggregator."""


@dataclass
class Freshness:
    """Changes come from the committer's thread; questions from any."""

    name: str
    servers: Servers
    remote: Windows
    pins: Pins
    _looked_at: tuple[float, float] | None = None
    """When the last look at all records began, on the monotonic clock and on the system's."""
    _doubts: dict[int, str] = field(default_factory=dict)
    """Open windows that may be released already, and what the others were asked; '' before."""

    @property
    def soon_stale(self) -> bool:
        """Whether a commit that begins now may end too late."""
        return self._age() > FRESH_S / 2

    def may_acknowledge(self, start: int) -> bool:
        """Whether a report that is in this open window's lanes by now will be in its total."""
        return self._age() <= FRESH_S and start not in self._doubts

    def doubt(self, start: int) -> None:
        """Nothing is known of how far a window had come before now."""
        self._doubts[start] = ""

    def forget(self, start: int) -> None:
        """A window is settled or gone."""
        self._doubts.pop(start, None)

    def looked(
        self,
        began: tuple[float, float],
        records: Mapping[int, Record | None],
        open_now: Collection[int],
    ) -> None:
        """All records were read since ``began``: answer the others, and find out about doubts.

        Args:
            began: of :func:`now`.
            records: of windows that are not settled, at least.
            open_now: windows in which this aggregator takes part, and which they say are open.
        """
        away = self._looked_at is None or _between(self._looked_at, began) > FRESH_S
        held = set(open_now)
        doubted = held if away else held & self._doubts.keys()
        # A question stands: when it was put, the servers had changed already.
        self._doubts = {start: self._doubts.get(start, "") for start in doubted}
        self._looked_at = began
        self._answer(records, held)
        self.resolve()

    def resolve(self) -> None:
        """Find out about windows in doubt, as far as the servers or the others can tell.

        Raises:
            Unavailable: the servers cannot be asked; the doubts stay.
        """
        if not self._doubts:
            return
        # In this order: that the servers are the same then vouches for what was read.
        records = self.remote.records(list(self._doubts))
        lineage = self.servers.lineage()
        for start, held in list(self._doubts.items()):
            record = records[start]
            if record is None or record.window.phase is not Phase.OPEN:
                continue
            if self._is_open(start, record, lineage):
                del self._doubts[start]
            elif record.lineage != lineage and record.inquiries.get(self.name) != held:
                self._ask(start)

    def _answer(self, records: Mapping[int, Record | None], open_here: set[int]) -> None:
        """Tell others that, as far as this aggregator's file says, windows were not sealed."""
        for start, record in records.items():
            if record is None or start not in open_here:
                continue
            for asker, asked in record.inquiries.items():
                if asker != self.name and record.answers.get((asker, self.name)) != asked:
                    self.remote.answer(start, asker, self.name, asked)

    def _age(self) -> float:
        return math.inf if self._looked_at is None else _between(self._looked_at, now())

    def _ask(self, start: int) -> None:
        question = secrets.token_hex(8)
        if self.remote.inquire(start, self.name, question):
            self._doubts[start] = question

    def _is_open(self, start: int, record: Record, lineage: str) -> bool:
        """Whether it was when this was asked or, if the servers changed, when that was put."""
        if self.name not in record.participants or record.lineage == lineage:
            return self.name in record.participants
        asked, said = self._doubts[start], record.answers
        answered = {by for asker, by in said if asker == self.name and said[asker, by] == asked}
        others = (record.participants | self.pins.participants(start)) - {self.name}
        return bool(asked or not others) and others <= answered


def now() -> tuple[float, float]:
    """On the monotonic clock, which a suspended machine may stop, and on the system's."""
    return time.monotonic(), time.time()


def _between(then: tuple[float, float], later: tuple[float, float]) -> float:
    return max(at - before for at, before in zip(later, then, strict=True))
