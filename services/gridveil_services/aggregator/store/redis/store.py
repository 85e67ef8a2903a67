"""The store in Redis, which several aggregators may share.

What decides is in Redis, and changes in one script a lane. Memory holds the windows' facts and
phases as they were last seen, and what this process adds to each lane. Signed documents
(parameters, rosters) stay in the process's own SQLite file: they are the key-holder's, and each
aggregator fetches its own. The same file pins which windows were opened (:mod:`.pins`), and has
this aggregator's journal of what it acknowledged (:mod:`.journal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import Reason, Unavailable, WrongState
from gridveil.protocol.release import LaneSum
from gridveil_services.aggregator.config import RedisConfig
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import (
    Equivocation,
    LaneBatch,
    Outcome,
    Phase,
    StoredReceipt,
    StoreFailed,
    Window,
)
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.checks import check_server
from gridveil_services.aggregator.store.redis.clocks import MOST_SKEW_S
from gridveil_services.aggregator.store.redis.commits import Commits
from gridveil_services.aggregator.store.redis.contradictions import Contradictions
from gridveil_services.aggregator.store.redis.failures import unavailable
from gridveil_services.aggregator.store.redis.freshness import Freshness, now
from gridveil_services.aggregator.store.redis.journal import Journal
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.lanes import Lanes, Marker
from gridveil_services.aggregator.store.redis.pins import Pins, Record, phase_of
from gridveil_services.aggregator.store.redis.replica import AcknowledgementLost, Replica
from gridveil_services.aggregator.store.redis.servers import Servers, script
from gridveil_services.aggregator.store.redis.windows import Windows

_log = structlog.get_logger()


class RedisStore:
    """``Store`` on Redis servers, with a :class:`Database` for what a server may forget."""

    def __init__(self, servers: Servers, database: Database, city_id: bytes, clock: Clock) -> None:
        """Compare Redis with the file: a window that is not whole in it is poisoned."""
        self._servers = servers
        self._keys = CityKeys(city_id.hex())
        self._lanes = Lanes(servers, self._keys)
        self._remote = Windows(servers, self._keys, self._lanes)
        self._contradictions = Contradictions(servers, self._keys, self._lanes)
        self._pins = Pins(database)
        self._journal = Journal(database)
        self._windows: dict[int, Window] = {}
        self._joined: set[int] = set()
        """Windows whose reports this process may acknowledge."""
        self._sealed: dict[int, int] = {}
        self._whole: dict[int, Sequence[Marker]] = {}
        """Lanes of sealed windows as all have vouched for them."""
        self._why: dict[int, str] = {}
        """What is wrong with a window that is about to be poisoned."""
        self._seen: dict[int, set[str]] = {}
        """Who takes part in each window, as the file has it."""
        self._unclean: set[int] = set()
        self._took_over = False
        self._clock = clock
        name = self._pins.name()
        self._freshness = Freshness(name, servers, self._remote, self._pins)
        self._commits = Commits(
            servers,
            self._keys,
            self._windows,
            self.window,
            self._journal,
            self._freshness.may_acknowledge,
            self._give_up,
            self._realign,
        )
        self._replica = Replica(
            name,
            servers,
            self._keys,
            self._lanes,
            self._remote,
            self._pins,
            self._journal,
            clock,
        )
        self._replica.unchanged_since()
        self._forgotten = max(self._pins.forgotten(), self._remote.forgotten())
        self._load()
        self.follow()

    @classmethod
    def open(
        cls, config: RedisConfig, database: Database, city_id: bytes, clock: Clock
    ) -> RedisStore:
        """A store on servers that were looked at first.

        Raises:
            StoreFailed: a server could lose data, holds something else, or cannot be reached.
        """
        try:
            servers = Servers(config, database.fail)
            try:
                check_server(servers, CityKeys(city_id.hex()))
                return cls(servers, database, city_id, clock)
            except BaseException:
                servers.close()
                raise
        except StoreFailed:
            raise
        except Unavailable as error:
            raise StoreFailed(error.message) from None

    def close(self) -> None:
        """Let somebody else lead, and close all connections."""
        self._replica.resign()
        self._servers.close()

    @property
    def leads(self) -> bool:
        return self._replica.leads

    def open_window(self, window: Window, opens: int | None = None) -> Window:
        start = window.start
        if (known := self.window(start)) is not None:
            return known
        if start <= self._forgotten:
            raise WrongState(Reason.WINDOW_CLOSED, "the window is closed")
        self._clean()
        lineage, since = self._replica.unchanged_since()
        late = (start if opens is None else opens) <= since
        doubt = "it may have taken reports before the servers were changed" if late else ""
        held = self._remote.open(window, lineage, doubt)
        if held.phase not in (Phase.OPEN, Phase.POISONED):
            self._adopt(start, self._windows.get(start), self._remote.record(start))
            return self._windows[start]
        self._keep(held)
        if held.phase is Phase.POISONED:
            return self._poison(start, doubt)
        if not self._remote.align(held):
            return self._poison(start, "a lane is gone")
        self._join(start)
        self._freshness.resolve()
        return self._windows[start]

    def move_window(self, window: Window) -> bool:
        held = self._windows.get(window.start)
        if held is None or held.phase is not Phase.OPEN or not self.leads:
            return False
        moved = replace(window, phase=held.phase)
        if not self._remote.move(held, moved):
            return False
        self._commits.drop_writers(window.start)
        self._keep(moved)
        return True

    def probe(self) -> None:
        self._servers.write([script(scripts.PROBE, [self._keys.windows])])

    def window(self, start: int) -> Window | None:
        window = self._windows.get(start)
        foreign = window is not None and window.phase is Phase.OPEN and start not in self._joined
        return None if foreign else window

    def windows(self) -> Sequence[Window]:
        return sorted(self._windows.values(), key=lambda window: window.start)

    def count(self, start: int) -> int:
        window = self._windows.get(start)
        if window is None:
            return 0
        markers = self._lanes.markers(window)
        return sum(marker.reports for marker in markers if marker is not None)

    def known(
        self,
        start: int,
        meter_ids: Sequence[bytes],
        lane_of: Callable[[bytes], int] | None = None,
    ) -> Mapping[bytes, StoredReceipt]:
        window = self._windows.get(start)
        if window is None or not meter_ids:
            return {}
        found = self._lanes.known(window, meter_ids, lane_of)
        if found and start not in self._joined and not window.phase.settled:
            raise unavailable("this aggregator does not take part in the window yet")
        if not window.phase.settled:
            # They are acknowledged again, perhaps by another aggregator than the first time.
            again = {
                (start, lane): {meter: held.digest for meter, held in of_lane.items()}
                for lane, of_lane in found.items()
            }
            self._commits.confirm(self._journal.lacking(again))
            self._journal.add(again)
        return {meter: held for of_lane in found.values() for meter, held in of_lane.items()}

    def commit(self, batches: Sequence[LaneBatch], accepted_at_ms: int) -> Sequence[Outcome]:
        if self._replica.clock_differs:
            raise unavailable("the clocks of the aggregators differ")
        if self._freshness.soon_stale:
            self.follow()
        return self._commits.commit(batches, accepted_at_ms)

    def record_equivocation(
        self, start: int, lane: int, meter_id: bytes, parameters_digest: bytes, entry: bytes
    ) -> None:
        window = self._windows.get(start)
        if window is not None and not window.phase.settled:
            self._contradictions.record(window, lane, meter_id, parameters_digest + entry)

    def equivocations(self, start: int) -> Sequence[Equivocation]:
        window = self._windows.get(start)
        return [] if window is None else self._contradictions.of(window)

    def seal(self, start: int) -> bool:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.OPEN:
            return False
        if start not in self._joined:
            self._join(start)
        epoch = self._remote.seal(window, self._commits.writers_of(start))
        if epoch is None:
            self._give_up(start, "a lane is gone, or less far than it was")
        if not epoch:
            self._look_again(start, self._remote.record(start))
            return False
        self._sealed[start] = epoch
        self._commits.drop_writers(start)
        self._keep(replace(window, phase=Phase.SEALED))
        return True

    def vouched(self, start: int) -> bool:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.SEALED:
            return False
        record = self._remote.record(start)
        if record is None or (record.window.phase, record.sealed) != (
            Phase.SEALED,
            self._sealed[start],
        ):
            return False  # ``follow`` finds out what has happened.
        try:
            markers = self._replica.vouched(window, record)
        except AcknowledgementLost as error:
            self._why[start] = error.message
            raise
        if markers is not None:
            self._whole[start] = markers
        return markers is not None

    def lane_sums(self, start: int) -> Sequence[LaneSum]:
        window = self._windows.get(start)
        if window is None or window.phase not in (Phase.SEALED, Phase.RELEASED):
            return []
        sealed = window.phase is Phase.SEALED
        whole = self._whole.get(start)
        return self._lanes.sums(window, self._sealed[start], whole, entries=sealed)

    def entries(self, start: int) -> Iterator[bytes]:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.SEALED:
            return
        whole = self._whole.get(start)
        for lane in range(window.lanes):
            yield self._lanes.entries(window, lane, self._sealed[start], whole)

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
            self._give_up(start, self._why.get(start, "what is stored is not whole"))
            return self._windows[start].phase is Phase.POISONED
        settled = replace(window, phase=phase)
        if not self._remote.settle(settled, before):
            self._look_again(start, self._remote.record(start))
            return False
        self._keep(settled)
        self._clean()
        return True

    def why_poisoned(self, start: int) -> str:
        return self._pins.why(start)

    def forget(self, ended_before: int) -> int:
        self._clean()
        gone = [w for w in self.windows() if w.phase.settled and w.end < ended_before]
        if not gone:
            return 0
        self._forgotten = max(self._forgotten, *(window.start for window in gone))
        self._remote.forget(gone, self._forgotten)
        self._drop(gone)
        return len(gone)

    def follow(self) -> bool:
        began = now()
        self._clean()
        leads = self._replica.lead()
        forgotten, starts = self._remote.forgotten(), self._remote.starts()
        self._forgotten = max(self._forgotten, forgotten)
        wanted = [s for s in starts - self._windows.keys() if s > self._forgotten]
        # One that was away may take reports yet where a failover forgot that all is settled.
        late = self._clock.now() - MOST_SKEW_S
        unsure = {w.start for w in self.windows() if not w.phase.settled or w.closes > late}
        wanted += sorted(unsure | {w.start for w in self.windows() if w.phase is Phase.POISONED})
        records = self._remote.records(wanted)
        for start, record in records.items():
            if start in self._windows:
                self._look_again(start, record)
            else:
                self._adopt(start, None, record)
        self._drop([w for w in self.windows() if w.start <= forgotten and w.start not in starts])
        if leads and not self._took_over:
            self._finish_moves()
        self._took_over = leads
        takes_part = [s for s in self._joined if self._windows[s].phase is Phase.OPEN]
        self._freshness.looked(began, records, takes_part)
        return leads

    def _finish_moves(self) -> None:
        """Whoever led before may have stopped while a window came under other parameters."""
        for window in self.windows():
            if window.phase is Phase.OPEN and not self._remote.take_over(window):
                self._give_up(window.start, "a lane is gone")

    def _keep(self, window: Window) -> None:
        if self._windows.get(window.start) != window:
            self._pins.put(window)
            self._windows[window.start] = window
        if window.phase.settled:
            self._commits.drop_writers(window.start)
            self._whole.pop(window.start, None)
            self._replica.forget(window.start)
            self._freshness.forget(window.start)
            self._journal.forget([window.start])
            self._unclean.add(window.start)

    def _drop(self, gone: Sequence[Window]) -> None:
        """Forget windows."""
        if not gone:
            return
        self._pins.forget([window.start for window in gone], self._forgotten)
        self._journal.forget([window.start for window in gone])
        for window in gone:
            start = window.start
            del self._windows[start]
            for held in (self._sealed, self._whole, self._why, self._seen):
                held.pop(start, None)
            self._joined.discard(start)
            self._unclean.discard(start)
            self._commits.drop_writers(start)
            self._replica.forget(start)
            self._freshness.forget(start)

    def _poison(self, start: int, why: str) -> Window:
        """Never release the window: the file says so even if Redis cannot be told now."""
        window = replace(self._windows[start], phase=Phase.POISONED)
        if self._windows[start] != window:
            _log.error("what is stored of a window is not whole", window=start, why=why)
        self._pins.poison(window, why)
        self._keep(window)
        with suppress(Unavailable):
            self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True, why=why)
        self._clean()
        return window

    def _give_up(self, start: int, why: str) -> Window:
        """Poison a window of which something is gone, unless that is because others settled it.

        Raises:
            Unavailable: it cannot be asked just now.
        """
        self._look_again(start, self._remote.record(start))
        window = self._windows[start]
        return window if window.phase.settled else self._poison(start, why)

    def _join(self, start: int) -> None:
        """Take part in a window, unless it is settled meanwhile."""
        if self._remote.join(start, self._replica.name):
            self._saw(start, {self._replica.name})
            self._pins.put(self._windows[start])
            self._joined.add(start)
            self._freshness.doubt(start)

    def _saw(self, start: int, participants: Set[str]) -> None:
        if new := participants - self._seen.setdefault(start, set()):
            self._pins.saw(start, new)
            self._seen[start] |= new

    def _look_again(self, start: int, record: Record | None) -> None:
        """Take over what others did to a window."""
        window = self._windows[start]
        if record is None and start <= self._forgotten:
            return
        if window.phase.settled:
            if record is None or not record.window.phase.settled:
                self._settle_again(window)
            return
        phase = phase_of(window, record)
        if record is None or phase is None or phase is Phase.POISONED:
            lost = "its record is gone, or less far than it was"
            self._poison(start, record.why if record and record.why else lost)
            return
        self._saw(start, record.participants)
        found = replace(record.window, phase=phase)
        if found != window:
            self._sealed[start] = record.sealed
            self._commits.drop_writers(start)
            if start in self._joined or phase is not Phase.OPEN:
                self._keep(found)
            else:
                self._windows[start] = found
        takes_part = start in self._joined or phase is Phase.SEALED
        if takes_part and not phase.settled and self._replica.name not in record.participants:
            self._join(start)

    def _settle_again(self, window: Window) -> None:
        """Redis has lost that a window is settled."""
        why = self._pins.why(window.start)
        self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True, why=why)
        self._unclean.add(window.start)

    def _realign(self, window: Window) -> bool | None:
        self._look_again(window.start, self._remote.record(window.start))
        found = self._windows[window.start]
        if found.phase is Phase.POISONED:
            return None
        if found.phase is not Phase.OPEN or found.parameters_digest != window.parameters_digest:
            return False
        if not self.leads:
            raise unavailable("the window comes under other parameters just now")
        return True if self._remote.align(found) else None

    def _clean(self) -> None:
        """Delete what settled windows hold too much; later if Redis cannot be reached."""
        with suppress(Unavailable):
            for start in list(self._unclean):
                self._remote.clean(self._windows[start])
                self._unclean.discard(start)

    def _load(self) -> None:
        pinned = self._pins.windows()
        held = {start for start in self._remote.starts() if start > self._forgotten}
        starts = held | pinned.keys()
        for start, record in sorted(self._remote.records(starts).items()):
            pin = pinned.get(start)
            if pin is not None and record is None and start <= self._forgotten:
                self._windows[start] = pin  # ``follow`` drops it.
            else:
                self._adopt(start, pin, record)

    def _adopt(self, start: int, pin: Window | None, record: Record | None) -> None:
        """Take up a window that others, or an earlier run, have opened."""
        phase = phase_of(pin, record)
        known = pin if record is None or (pin and pin.phase.settled) else record.window
        if known is None or phase is None:
            return
        window = replace(known, phase=phase)
        self._windows[start] = window
        if record is not None:
            self._sealed[start] = record.sealed
            self._saw(start, record.participants)
        if phase is Phase.POISONED or not self._lanes.whole(window, self._sealed.get(start, 0)):
            lost = "its record or a lane is gone, or less far than it was"
            why = self._pins.why(start) or (record.why if record else "") or lost
            self._poison(start, why)
            return
        self._make_good(window, pin, record)

    def _make_good(self, window: Window, pin: Window | None, record: Record | None) -> None:
        """Have the file and Redis say of a window what holds."""
        if pin != window and (pin is not None or window.phase is not Phase.OPEN):
            self._pins.put(window)
        if window.phase.settled:
            self._keep(window)
            if record is not None and not record.window.phase.settled:
                self._settle_again(window)
            self._clean()
        elif pin is not None or window.phase is Phase.SEALED:
            self._join(window.start)
