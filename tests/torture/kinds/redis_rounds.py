"""Two aggregators' stores on a replicated Redis Cluster, a window for each fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gridveil.protocol.ciphertext import add, to_bytes
from gridveil.protocol.errors import IntegrityLost, Unavailable
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    NotOpen,
    Phase,
    StoreFailed,
)
from tests.contract.stores import (
    CRYPTO,
    LENGTH,
    START,
    RedisHarness,
    batch,
    made_up_report,
    make_window,
)
from tests.support.redis_replicas import ReplicatedCluster
from tests.torture.tally import Tally

LANES = 6
PARTIES = 2
_LONGEST_S = 60.0
_BEFORE, _AFTER = 12, 12
"""Commits before and after a fault."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to one of the masters."""

    name: str
    begin: Callable[[ReplicatedCluster, Random], Callable[[], None]]
    """Does it; what is returned ends it."""
    lasts_s: float
    replicas: int = 1
    """How many replicas must have each write."""


@dataclass
class Round:
    """One window, and what its meters were told."""

    start: int
    parties: Sequence[RedisHarness]
    chance: Random
    tally: Tally
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    """Digests of the reports of the meters that were told."""
    unsure: list[int] = field(default_factory=list)
    """Meters that were told to try again."""
    poisoned: bool = False
    _next: int = 0

    def commit(self) -> bool:
        """One commit by one of the aggregators; whether anything was acknowledged."""
        party = self.chance.choice(self.parties)
        retried = self.unsure[:4] if self.chance.random() < 0.5 else []
        fresh = [self._next + n for n in range(self.chance.randint(1, 4))]
        self._next = fresh[-1] + 1
        self.unsure = [meter for meter in self.unsure if meter not in retried]
        meters = [*retried, *fresh]
        batches = [batch([meter], lane=meter % LANES, start=self.start) for meter in meters]
        before = len(self.acknowledged)
        try:
            outcomes = party.store.commit(batches, 1)
        except StoreFailed:
            self.tally.counts["aggregators restarted by a failed store"] += 1
            self.unsure += meters
            reopen(party)
            return False
        except Unavailable:
            self.tally.counts["commits refused as unavailable"] += 1
            self.unsure += meters
            return False
        for meter, outcome in zip(meters, outcomes, strict=True):
            self._take(party, meter, outcome)
        return len(self.acknowledged) > before

    def _take(self, party: RedisHarness, meter: int, outcome: object) -> None:
        report, _ = made_up_report(meter)
        match outcome:
            case Committed():
                self.acknowledged[meter] = report.digest
            case Known():
                self._ask(party, meter)
            case NotOpen(Phase.POISONED):
                self.poisoned = True
            case NotOpen():
                self.unsure.append(meter)
            case _:
                self.tally.violations.append(f"window {self.start}: {outcome}")

    def _ask(self, party: RedisHarness, meter: int) -> None:
        report, _ = made_up_report(meter)
        try:
            held = party.store.known(self.start, [report.meter_id])
        except (Unavailable, IntegrityLost):
            self.unsure.append(meter)
            return
        if held and held[report.meter_id].digest == report.digest:
            self.acknowledged[meter] = report.digest

    def end(self) -> None:
        """Retry what is not sure, seal, vouch, and compare with what meters were told."""
        end = time.monotonic() + _LONGEST_S
        while self.unsure and not self.poisoned and time.monotonic() < end:
            if not self.commit():
                time.sleep(0.1)
        leader = self._settled_by(end)
        if leader is None:
            self.tally.violations.append(f"window {self.start} came to no end")
        elif self.poisoned:
            self.tally.counts["windows poisoned"] += 1
        else:
            self.tally.counts["windows released"] += 1
            self._compare(leader)
            leader.store.settle(self.start, Phase.RELEASED)

    def _settled_by(self, end: float) -> RedisHarness | None:
        """Who may release the window, or has seen that it is poisoned."""
        while time.monotonic() < end:
            for party in self.parties:
                try:
                    if self._is_done(party):
                        return party
                except StoreFailed:
                    reopen(party)
                except Unavailable:
                    time.sleep(0.1)
        return None

    def _is_done(self, party: RedisHarness) -> bool:
        leads = party.store.follow()
        window = party.store.window(self.start)
        if window is None:
            return False
        if window.phase is Phase.POISONED:
            self.poisoned = True
            return True
        try:
            if leads:
                party.store.seal(self.start)
            vouched = party.store.vouched(self.start)
        except IntegrityLost:
            party.store.settle(self.start, Phase.POISONED)
            self.tally.counts["losses of acknowledged reports noticed"] += 1
            self.poisoned = True
            return True
        return leads and vouched

    def _compare(self, leader: RedisHarness) -> None:
        entries = b"".join(leader.store.entries(self.start))
        counted = [entries[at : at + 16] for at in range(0, len(entries), ENTRY_BYTES)]
        by_id = {made_up_report(meter)[0].meter_id: meter for meter in range(self._next)}
        lost = [m for m in self.acknowledged if made_up_report(m)[0].meter_id not in counted]
        if lost or len(set(counted)) != len(counted):
            self.tally.violations.append(f"window {self.start}: lost {lost} of the acknowledged")
        sums = {lane.lane: lane.ciphertext for lane in leader.store.lane_sums(self.start)}
        for lane in range(LANES):
            meters = [by_id[entry] for entry in counted if by_id[entry] % LANES == lane]
            expected = [made_up_report(meter)[1] for meter in meters]
            if meters and sums.get(lane) != to_bytes(add(expected, CRYPTO)):
                self.tally.violations.append(f"window {self.start}: wrong sum of lane {lane}")
        self.tally.counts["acknowledged reports counted"] += len(self.acknowledged)


def reopen(party: RedisHarness) -> None:
    """Start an aggregator again, as often as it takes."""
    end = time.monotonic() + _LONGEST_S
    while True:
        try:
            party.reopen()
            return
        except StoreFailed:
            party.close_database()
            party.database = None
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def play(
    cluster: ReplicatedCluster, folder: Path, faults: Sequence[Fault], seed: int, budget: int
) -> Tally:
    """Inject so many faults, each into a window of its own."""
    chance, tally = Random(seed), Tally()
    cluster.insist_on(0)
    parties = [
        RedisHarness(folder / str(n), cluster, cluster.config(0), fresh=False)  # type: ignore[arg-type]
        for n in range(PARTIES)
    ]
    for n in range(budget):
        fault = faults[n % len(faults)]
        cluster.wait()
        for party in parties:
            party.close()
            party.database = None
        cluster.insist_on(fault.replicas)
        for party in parties:
            party.config = cluster.config(fault.replicas)
            reopen(party)
        one_round(cluster, parties, fault, START + n * LENGTH, chance, tally)
    for party in parties:
        party.close()
    return tally


def one_round(
    cluster: ReplicatedCluster,
    parties: Sequence[RedisHarness],
    fault: Fault,
    start: int,
    chance: Random,
    tally: Tally,
) -> None:
    for party in parties:
        party.store.open_window(make_window(start, lanes=LANES))
    played = Round(start, parties, chance, tally)
    for _ in range(_BEFORE):
        played.commit()
    over = fault.begin(cluster, chance)
    tally.injected += 1
    tally.counts[fault.name] += 1
    end = time.monotonic() + fault.lasts_s
    while time.monotonic() < end and not played.poisoned:
        played.commit()
    if chance.random() < 0.3:
        tally.counts["aggregators killed beside it"] += 1
        chance.choice(parties).redis._servers.close()
    over()
    began = time.monotonic()
    while not played.poisoned and not played.commit():
        if time.monotonic() - began > _LONGEST_S:
            tally.violations.append(f"window {start}: no acknowledgement after {fault.name}")
            break
        time.sleep(0.02)
    took = time.monotonic() - began
    within = next((limit for limit in (2, 15) if took <= limit), None)
    tally.counts[f"first acknowledgement within {within} s" if within else "later"] += 1
    for _ in range(_AFTER):
        if not played.poisoned:
            played.commit()
    played.end()
