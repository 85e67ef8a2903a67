"""What must hold, whatever happens: judged by what clients hold and what was released.

A meter's report in a window has one residue that no other has, so that a sum says which reports
are in it, and how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.ingest import Accepted
from gridveil_services.aggregator.store.interface import Phase, Window
from gridveil_services.aggregator.store.redis.keys import CityKeys
from tests.support.reports import CITY_ID

if TYPE_CHECKING:
    from tests.simulation.cluster.keyholder import Released
    from tests.simulation.cluster.meters import Sent
    from tests.simulation.cluster.process import Process
    from tests.simulation.cluster.world import World

CHANGES = {
    "first start",
    "master restarted",
    "failover",
    "failover, replica behind",
    "flushed",
    "put back",
}
"""After these a window that was not settled may be given up."""
LOSSES = {"failover, replica behind", "flushed", "put back"}


_KEYS = CityKeys(CITY_ID.hex())


@lru_cache(maxsize=1 << 14)
def _lane_key(start: int, lane: int) -> tuple[str, bytes]:
    key = _KEYS.lane(start, lane).lane
    return key, key.encode()


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class History:
    """One window as the model has it."""

    acknowledged: dict[int, bytes] = field(default_factory=dict)
    """Digest of the report by meter, as its client was told."""
    first_at_ms: dict[int, int] = field(default_factory=dict)
    counted: dict[int, bytes] | None = None
    """Digests of the released reports by meter."""
    sealed: int | None = None
    """Reports in its lanes when it was first seen to be sealed."""
    torn: bool = False
    """Clients hold receipts of two reports of one meter."""
    poisoned: bool = False
    seen: set[Phase] = field(default_factory=set)
    began: float = 0.0
    """When it could be opened at the earliest."""


@dataclass
class Oracle:
    """All windows, for as long as anything may still be said of them."""

    world: World
    windows: dict[int, History] = field(default_factory=dict)
    changes: list[tuple[float, str]] = field(default_factory=list)

    def violated(self, what: str) -> None:
        raise Violation(what)

    def history(self, start: int) -> History:
        if start not in self.windows:
            self.windows[start] = History(began=start - 900.0)
        return self.windows[start]

    def changed(self, kind: str) -> None:
        """Something happened to the servers that a window may have to be given up for."""
        self.changes.append((self.world.now, kind))

    def changed_since(self, began: float, kinds: set[str]) -> bool:
        return any(at >= began and kind in kinds for at, kind in self.changes)

    def answered(self, process: Process, sent: Sent, answer: Accepted | GridveilError) -> None:
        """A client holds an answer."""
        start, meter = sent.window, sent.meter
        history = self.history(start)
        if isinstance(answer, GridveilError):
            if answer.reason is Reason.EQUIVOCATION:
                self._check_equivocation(sent, answer)
            elif answer.reason not in _REFUSALS:
                self.violated(f"an honest report of window {start} was refused: {answer.reason}")
            return
        if answer.digest != sent.digest:
            self.violated(f"C3: a receipt of another report, window {start}")
        lost = self.changed_since(history.began, LOSSES)
        held = history.acknowledged.setdefault(meter, answer.digest)
        if held != answer.digest:
            # What was lost cannot contradict: both were told that they stand, so neither may.
            history.torn = True
            if not lost:
                self.violated(f"C4: two different reports of meter {meter} in window {start} stand")
        at = history.first_at_ms.setdefault(meter, answer.accepted_at_ms)
        if at != answer.accepted_at_ms and not lost:
            self.violated(f"C3: another receipt for the same report, window {start}")
        self._check_time(process, sent, answer)
        if history.counted is not None and history.counted.get(meter) != answer.digest:
            self.violated(f"C1: acknowledged after the release, not counted: window {start}")

    def released(self, process: Process, released: Released) -> None:
        """The key-holder settles a window with a total."""
        start = released.header.window_start
        history = self.history(start)
        if history.counted is not None:
            self.violated(f"R1: window {start} released twice")
        if history.torn:
            self.violated(f"C1: released, though two reports of a meter stand: window {start}")
        window = process.store.window(start)
        if window is not None and window.phase is Phase.POISONED:
            self.violated(f"C13: window {start} released, though it is poisoned")
        counted = self._entries(start, bytes(released.entries))
        self._check_sums(start, released, counted)
        history.counted = {meter: digest for (meter, _), digest in counted.items()}
        for meter, digest in history.acknowledged.items():
            if history.counted.get(meter) != digest:
                self.violated(f"C1: acknowledged, not counted: meter {meter}, window {start}")
        self.world.count("windows released")
        self.world.count("reports counted", len(counted))
        self.world.trace("released", start, released.digest.hex())

    def looked_at(self, process: Process) -> None:
        """What a process says of its windows now."""
        for window in process.store.windows():
            history = self.history(window.start)
            history.seen.add(window.phase)
            if window.phase in (Phase.SEALED, Phase.RELEASED):
                self._check_lanes(window, history)
            if window.phase is Phase.POISONED and not history.poisoned:
                history.poisoned = True
                self._poisoned(process, window.start, history)

    def check_end(self, processes: Sequence[Process]) -> None:
        """Faults have ended long ago: every window is settled, and those without a fault released.

        V2.
        """
        for process in processes:
            for window in process.store.windows():
                over = self.world.now > window.end + 25 * 3600
                if over and not window.phase.settled:
                    self.violated(
                        f"V2: window {window.start} is {window.phase.name} for ever"
                        f" on {process.name}"
                    )
        for start, history in self.windows.items():
            enough = len(history.acknowledged) >= self.world.min_cohort
            due = self.world.now > start + 900 + 25 * 3600
            excused = history.poisoned or self.changed_since(history.began, CHANGES)
            if enough and due and history.counted is None and not excused:
                self.violated(f"V2: window {start} was never released")

    def forget(self, before: int) -> None:
        """Windows that nobody can say anything of any more."""
        for start in [start for start in self.windows if start < before]:
            del self.windows[start]
        self.changes = [change for change in self.changes if change[0] >= before - 900]

    def _check_equivocation(self, sent: Sent, answer: GridveilError) -> None:
        others = self.world.meters.digests(sent.window, sent.meter) - {sent.digest}
        if answer.metadata.get("resource") not in {other.hex() for other in others}:
            self.violated(f"C4: an equivocation that there was not, window {sent.window}")

    def _check_time(self, process: Process, sent: Sent, answer: Accepted) -> None:
        rules = self.world.keyholder.parameters.policy.rules
        if answer.duplicate or process.clock.skew != sent.skew:
            return
        now = process.clock.now()
        if now < rules.opens(sent.window) or sent.arrived >= rules.closes(sent.window):
            self.violated(f"C12: accepted outside its time, window {sent.window}")
        if answer.accepted_at_ms / 1000 >= rules.closes(sent.window):
            self.world.count("accepted late, by a pause after the check")

    def _entries(self, start: int, entries: bytes) -> dict[tuple[int, int], bytes]:
        """Digests by meter and version."""
        sent = self.world.meters.entries(start)
        found: dict[tuple[int, int], bytes] = {}
        for at in range(0, len(entries), ENTRY_BYTES):
            entry = entries[at : at + ENTRY_BYTES]
            if entry not in sent:
                self.violated(f"R4: an entry that no meter signed, window {start}")
            meter, version, digest = sent[entry]
            if any(meter == other for other, _ in found):
                self.violated(f"C2: meter {meter} twice in window {start}")
            found[meter, version] = digest
        return found

    def _check_sums(
        self, start: int, released: Released, counted: dict[tuple[int, int], bytes]
    ) -> None:
        total = np.sum(
            [np.frombuffer(lane.ciphertext, "<u8") for lane in released.lanes], axis=0, dtype="u8"
        )
        expected = np.zeros_like(total)
        for meter, version in counted:
            expected += self.world.meters.residues(meter, version)
        if not np.array_equal(total, expected):
            self.violated(f"C1/C2: the sum of window {start} is not that of its entries")
        counts = sum(lane.count for lane in released.lanes)
        if not counts == len(counted) == released.header.count:
            self.violated(f"C7: the counts of window {start} differ")

    def _check_lanes(self, window: Window, history: History) -> None:
        """Nothing is added to a window once a process has seen it sealed."""
        network, held = self.world.network, 0
        for lane in range(window.lanes):
            key, name = _lane_key(window.start, lane)
            marker = network.master_of(key).data.get(name, {})
            held += int(marker.get(b"count", b"0")) if isinstance(marker, dict) else 0
        if history.sealed is None:
            history.sealed = held
        elif held > history.sealed and not self.changed_since(history.began, LOSSES):
            self.violated(f"C9: reports were added to window {window.start} after its seal")

    def _poisoned(self, process: Process, start: int, history: History) -> None:
        why = process.why_poisoned(start)
        self.world.trace("poisoned", process.name, start, why)
        if not self.changed_since(history.began, CHANGES):
            self.violated(f"V4: window {start} is poisoned without a cause ({why})")
        after = [k for at, k in self.changes if at >= history.began and k in CHANGES]
        self.world.count("windows poisoned")
        self.world.count(f"poisoned after {after[-1]}: {why}")


_REFUSALS = {
    Reason.WINDOW_CLOSED,
    Reason.WINDOW_RELEASED,
    Reason.WINDOW_POISONED,
    Reason.WINDOW_TOO_EARLY,
    Reason.STORE_FULL,
    Reason.STORE_UNAVAILABLE,
    Reason.KEYHOLDER_UNAVAILABLE,
    Reason.OVERLOADED,
}
