"""The store in one SQLite file, for one aggregator process.

Open windows are held in memory too: sums, counts and receipts, rebuilt from the file at the start.
Memory changes only after the commit, so it never runs ahead of the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import chain

import apsw

from gridveil.protocol.ciphertext import Residues, add, stored_sum, to_bytes
from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable, WrongState
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.release import LaneSum
from gridveil_services.aggregator.store.database import Database, Row
from gridveil_services.aggregator.store.interface import (
    Committed,
    Equivocation,
    Known,
    LaneBatch,
    LaneFull,
    Moved,
    NotOpen,
    Outcome,
    Phase,
    StoredReceipt,
    StoredReport,
    StoreFailed,
    Window,
)
from gridveil_services.aggregator.store.records import (
    entries_in,
    journal_checksum,
    pack,
    sum_checksum,
    unpack,
)

_SELECT_WINDOWS = (
    'SELECT start, "end", closes, parameters_digest, roster_version, enrolled, lanes,'
    " lane_capacity, parameter_set, slots, phase FROM windows"
)
_INSERT_WINDOW = "INSERT INTO windows VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_JOURNAL = (
    "INSERT INTO journal (window, lane, accepted_at_ms, reports, checksum) VALUES (?,?,?,?,?)"
)
_UPSERT_LANE = (
    "INSERT INTO lanes VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE"
    " SET count = excluded.count, sum = excluded.sum, checksum = excluded.checksum"
)
# By number, in the order of commits: an index by window would have all rows sorted each time.
_JOURNAL_AFTER = (
    "SELECT number, lane, accepted_at_ms, reports, checksum FROM journal"
    " WHERE number > ? AND +window = ? ORDER BY number LIMIT ?"
)
_MOST_BATCHES = 64
_FORGET = (
    "DELETE FROM receipts WHERE window = ?",
    "DELETE FROM lanes WHERE window = ?",
    "DELETE FROM equivocations WHERE window = ?",
    "DELETE FROM windows WHERE start = ?",
)


@dataclass(frozen=True)
class _Lane:
    count: int
    sum: Residues


@dataclass
class _Open:
    """What memory holds of an open window."""

    lanes: dict[int, _Lane] = field(default_factory=dict)
    receipts: dict[bytes, StoredReceipt] = field(default_factory=dict)


@dataclass
class _Step:
    """What one commit changes, before it is durable."""

    accepted_at_ms: int
    lanes: dict[tuple[int, int], _Lane] = field(default_factory=dict)
    receipts: dict[int, dict[bytes, StoredReceipt]] = field(default_factory=dict)
    batches: list[LaneBatch] = field(default_factory=list)


class SqliteStore:
    """``Store`` on a :class:`Database`, whose other user is ``SqliteDocuments``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._windows = {
            window.start: window for window in map(_window, database.rows(_SELECT_WINDOWS))
        }
        self._forgotten = max(
            (start for (start,) in database.rows("SELECT start FROM forgotten")), default=0
        )
        self._open: dict[int, _Open] = {}
        for window in self.windows():
            if window.phase is Phase.OPEN:
                self._load(window)

    @property
    def leads(self) -> bool:
        return True  # No other process opens the file.

    def follow(self) -> bool:
        return True

    def vouched(self, start: int) -> bool:
        return True  # A receipt is given when the transaction that is read here is durable.

    def why_poisoned(self, start: int) -> str:
        return ""

    def open_window(self, window: Window, opens: int | None = None) -> Window:
        if (held := self._windows.get(window.start)) is not None:
            return held
        if window.start <= self._forgotten:
            raise WrongState(Reason.WINDOW_CLOSED, "the window is closed")
        with self._database.transaction() as connection:
            connection.execute(_INSERT_WINDOW, (*astuple(window)[:-1], int(window.phase)))
        self._open[window.start] = _Open()
        self._windows[window.start] = window
        return window

    def move_window(self, window: Window) -> bool:
        held = self._windows.get(window.start)
        if held is None or held.phase is not Phase.OPEN or self._open[window.start].receipts:
            return False
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM windows WHERE start = ?", (window.start,))
            connection.execute(_INSERT_WINDOW, (*astuple(window)[:-1], int(held.phase)))
        self._windows[window.start] = replace(window, phase=held.phase)
        return True

    def probe(self) -> None:
        self._database.check_writable()

    def window(self, start: int) -> Window | None:
        return self._windows.get(start)

    def windows(self) -> Sequence[Window]:
        return sorted(self._windows.values(), key=lambda window: window.start)

    def count(self, start: int) -> int:
        if (held := self._open.get(start)) is not None:
            return len(held.receipts)
        rows = self._database.rows("SELECT count(*) FROM receipts WHERE window = ?", (start,))
        return int(rows[0][0])

    def known(
        self,
        start: int,
        meter_ids: Sequence[bytes],
        lane_of: Callable[[bytes], int] | None = None,
    ) -> Mapping[bytes, StoredReceipt]:
        held = self._open.get(start)
        if held is not None:
            receipts = held.receipts
            return {meter: receipts[meter] for meter in meter_ids if meter in receipts}
        if start not in self._windows:
            return {}
        rows = self._database.row_of_each(
            "SELECT meter_id, digest, accepted_at_ms FROM receipts"
            " WHERE window = ? AND meter_id = ?",
            [(start, meter) for meter in meter_ids],
        )
        return {meter: StoredReceipt(digest, at) for meter, digest, at in rows}

    def commit(self, batches: Sequence[LaneBatch], accepted_at_ms: int) -> Sequence[Outcome]:
        step = _Step(accepted_at_ms)
        outcomes = [self._admit(batch, step) for batch in batches]
        if step.batches:
            self._write(step)
            self._apply(step)
        return outcomes

    def record_equivocation(
        self, start: int, lane: int, meter_id: bytes, parameters_digest: bytes, entry: bytes
    ) -> None:
        window = self._windows.get(start)
        if window is None or window.phase.settled or self._has_equivocated(start, meter_id):
            return
        reports = self._journalled(start, lane)
        first = next((report.entry for report in reports if report.meter_id == meter_id), None)
        if first is None:
            return
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO equivocations VALUES (?,?,?,?,?)",
                (start, meter_id, first, parameters_digest, entry),
            )

    def equivocations(self, start: int) -> Sequence[Equivocation]:
        rows = self._database.rows(
            "SELECT window, meter_id, first, second_parameters_digest, second"
            " FROM equivocations WHERE window = ? ORDER BY meter_id",
            (start,),
        )
        return [Equivocation(*row) for row in rows]

    def seal(self, start: int) -> bool:
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.OPEN:
            return False
        receipts = sorted(self._open[start].receipts.items())
        with self._database.transaction() as connection:
            _set_phase(connection, start, Phase.SEALED)
            connection.executemany(
                "INSERT INTO receipts VALUES (?,?,?,?)",
                ((start, meter, r.digest, r.accepted_at_ms) for meter, r in receipts),
            )
        self._windows[start] = replace(window, phase=Phase.SEALED)
        del self._open[start]
        self._database.shrink_log()
        return True

    def lane_sums(self, start: int) -> Sequence[LaneSum]:
        window = self._windows.get(start)
        if window is None or window.phase not in (Phase.SEALED, Phase.RELEASED):
            return []
        return [
            LaneSum(lane, held.count, to_bytes(held.sum))
            for lane, held in sorted(self._stored_lanes(window).items())
        ]

    def entries(self, start: int) -> Iterator[bytes]:
        for lane in self._lanes_of(start):
            found = [entries_in(packed) for _, packed in self._journal_of(start, lane)]
            # An entry begins with its meter's id, of which a window holds one.
            yield b"".join(sorted(chain.from_iterable(found)))

    def entries_after(self, start: int, after: int) -> tuple[bytes, int]:
        rows = self._database.rows(_JOURNAL_AFTER, (after, start, _MOST_BATCHES))
        entries = []
        for number, lane, accepted_at_ms, packed, checksum in rows:
            _check_journal(start, lane, accepted_at_ms, packed, checksum)
            entries += entries_in(packed)
            after = number
        return b"".join(entries), after

    def settle(self, start: int, phase: Phase) -> bool:
        if not phase.settled:
            raise ValueError("not a final phase")
        window = self._windows.get(start)
        poisons = phase is Phase.POISONED
        if window is None or not (
            window.phase is Phase.SEALED or (poisons and window.phase is Phase.OPEN)
        ):
            return False
        with self._database.transaction() as connection:
            _set_phase(connection, start, phase)
            connection.execute("DELETE FROM journal WHERE window = ?", (start,))
            if phase is not Phase.RELEASED:
                connection.execute("DELETE FROM lanes WHERE window = ?", (start,))
        self._windows[start] = replace(window, phase=phase)
        self._open.pop(start, None)
        self._database.shrink_log()
        return True

    def forget(self, ended_before: int) -> int:
        gone = [w.start for w in self.windows() if w.phase.settled and w.end < ended_before]
        if not gone:
            return 0
        forgotten = max(self._forgotten, *gone)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (1, ?)", (forgotten,))
            for delete in _FORGET:
                connection.executemany(delete, ((start,) for start in gone))
        self._forgotten = forgotten
        for start in gone:
            del self._windows[start]
        self._database.shrink_log()
        return len(gone)

    def _has_equivocated(self, start: int, meter_id: bytes) -> bool:
        query = "SELECT 1 FROM equivocations WHERE window = ? AND meter_id = ?"
        return bool(self._database.rows(query, (start, meter_id)))

    def _admit(self, batch: LaneBatch, step: _Step) -> Outcome:
        start, lane, reports, batch_sum, parameters_digest = batch
        window = self._windows.get(start)
        if window is None or window.phase is not Phase.OPEN:
            return NotOpen(None if window is None else window.phase)
        if window.parameters_digest != parameters_digest:
            return Moved()
        meters = {report.meter_id for report in reports}
        if len(meters) != len(reports):
            raise ValueError("a batch holds one report a meter")
        held, fresh = self._open[start], step.receipts.setdefault(start, {})
        for receipts in (held.receipts, fresh):
            if known := receipts.keys() & meters:
                return Known({meter: receipts[meter] for meter in known})
        before = step.lanes.get((start, lane)) or held.lanes.get(lane)
        count = before.count if before else 0
        if len(reports) > window.lane_capacity - count:
            return LaneFull(window.lane_capacity - count)
        total = (
            add((before.sum, batch_sum), parameter_set(window.parameter_set))
            if before
            else batch_sum
        )
        step.lanes[start, lane] = _Lane(count + len(reports), total)
        fresh.update((r.meter_id, StoredReceipt(r.digest, step.accepted_at_ms)) for r in reports)
        step.batches.append(batch)
        return Committed(step.accepted_at_ms)

    def _write(self, step: _Step) -> None:
        self._database.check_room()
        at = step.accepted_at_ms
        journal, lanes = [], []
        for start, lane, reports, *_ in step.batches:
            packed = pack(reports)
            journal.append((start, lane, at, packed, journal_checksum(start, lane, at, packed)))
        for (start, lane), held in step.lanes.items():
            data = to_bytes(held.sum)
            lanes.append(
                (start, lane, held.count, data, sum_checksum(start, lane, held.count, data))
            )
        try:
            with self._database.transaction() as connection:
                connection.executemany(_INSERT_JOURNAL, journal)
                connection.executemany(_UPSERT_LANE, lanes)
        except Unavailable as error:
            if not isinstance(error, StoreFailed):
                self._check_undone({start for start, _ in step.lanes})
            raise

    def _apply(self, step: _Step) -> None:
        for (start, lane), held in step.lanes.items():
            self._open[start].lanes[lane] = held
        for start, receipts in step.receipts.items():
            if receipts:
                self._open[start].receipts.update(receipts)

    def _check_undone(self, windows: set[int]) -> None:
        """After a commit failed: what is on the disk is what memory has, or nothing is sure."""
        for start in windows:
            stored = {
                lane: (count, checksum)
                for lane, count, checksum in self._database.rows(
                    "SELECT lane, count, checksum FROM lanes WHERE window = ?", (start,)
                )
            }
            held = {
                lane: (held.count, sum_checksum(start, lane, held.count, to_bytes(held.sum)))
                for lane, held in self._open[start].lanes.items()
            }
            if stored != held:
                raise self._database.fail("a failed commit left a trace")

    def _load(self, window: Window) -> None:
        """Rebuild an open window from the file; poison it if its parts disagree."""
        try:
            self._open[window.start] = self._read_open(window)
        except IntegrityLost:
            self.settle(window.start, Phase.POISONED)

    def _read_open(self, window: Window) -> _Open:
        held = _Open(self._stored_lanes(window))
        counts: Counter[int] = Counter()
        for lane in self._lanes_of(window.start):
            for accepted_at_ms, packed in self._journal_of(window.start, lane):
                for report in unpack(packed):
                    held.receipts[report.meter_id] = StoredReceipt(report.digest, accepted_at_ms)
                    counts[lane] += 1
        stored = {lane: sum_.count for lane, sum_ in held.lanes.items()}
        if counts != stored or counts.total() != len(held.receipts):
            raise _corrupt()
        return held

    def _stored_lanes(self, window: Window) -> dict[int, _Lane]:
        rows = self._database.rows(
            "SELECT lane, count, sum, checksum FROM lanes WHERE window = ?", (window.start,)
        )
        lanes = {}
        crypto = parameter_set(window.parameter_set)
        for lane, count, data, checksum in rows:
            if sum_checksum(window.start, lane, count, data) != checksum:
                raise _corrupt()
            lanes[lane] = _Lane(count, stored_sum(data, crypto, window.slots))
        return lanes

    def _lanes_of(self, start: int) -> list[int]:
        rows = self._database.rows(
            "SELECT DISTINCT lane FROM journal WHERE window = ? ORDER BY lane", (start,)
        )
        return [lane for (lane,) in rows]

    def _journal_of(self, start: int, lane: int) -> Iterator[tuple[int, bytes]]:
        rows = self._database.rows(
            "SELECT accepted_at_ms, reports, checksum FROM journal"
            " WHERE window = ? AND lane = ? ORDER BY number",
            (start, lane),
        )
        for accepted_at_ms, packed, checksum in rows:
            _check_journal(start, lane, accepted_at_ms, packed, checksum)
            yield accepted_at_ms, packed

    def _journalled(self, start: int, lane: int) -> list[StoredReport]:
        return [report for _, packed in self._journal_of(start, lane) for report in unpack(packed)]


def _set_phase(connection: apsw.Connection, start: int, phase: Phase) -> None:
    connection.execute("UPDATE windows SET phase = ? WHERE start = ?", (int(phase), start))


def _check_journal(
    start: int, lane: int, accepted_at_ms: int, packed: bytes, checksum: bytes
) -> None:
    if journal_checksum(start, lane, accepted_at_ms, packed) != checksum:
        raise _corrupt()


def _corrupt() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "what was stored of the window is not whole")


def _window(row: Row) -> Window:
    return replace(Window(*row), phase=Phase(row[-1]))
