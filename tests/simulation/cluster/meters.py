"""Meters and their gateways: reports that come once, twice, late, in any order, and again.

Ciphertexts are made of residues that show whose they are; claims, signatures and messages are
real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gridveil.protocol.ciphertext import Residues, to_bytes
from gridveil.protocol.errors import GridveilError, Reason, WrongState
from gridveil.protocol.layout import sha256
from gridveil.protocol.release import Entry
from gridveil.protocol.report import Claim, sign_report
from gridveil.protocol.v1 import report_pb2
from gridveil_services.aggregator.ingest import Answer
from tests.support.reports import MeterKeys, make_members

if TYPE_CHECKING:
    from tests.simulation.cluster.process import Process
    from tests.simulation.cluster.world import World

METERS = 20
VERSIONS = 2
_AGAIN = {
    Reason.STORE_FULL,
    Reason.STORE_UNAVAILABLE,
    Reason.KEYHOLDER_UNAVAILABLE,
    Reason.OVERLOADED,
    Reason.WINDOW_TOO_EARLY,
}


@dataclass
class Sent:
    """One report on its way."""

    window: int
    meter: int
    version: int
    digest: bytes
    message: report_pb2.Report
    arrived: float = 0.0
    """By the clock of who judges it last."""
    skew: float = 0.0
    """Of that clock."""


@dataclass
class _Made:
    """What was signed for one window."""

    sent: dict[tuple[int, int], Sent] = field(default_factory=dict)
    entries: dict[bytes, tuple[int, int, bytes]] = field(default_factory=dict)


class Meters:
    """All of them, and what they do."""

    def __init__(self, world: World, enrolled: int) -> None:
        self._world = world
        self.keys = enrolled_meters(enrolled)
        self._made: dict[int, _Made] = {}
        self.on = True
        """Whether they report by themselves."""

    def plan(self, window: int) -> None:
        """Have a window's reports come, more or less in its time."""
        if not self.on:
            return
        source, rules = self._world.source, self._world.keyholder.parameters.policy.rules
        meters = list(range(METERS))
        source.shuffle(meters)
        while meters:
            size = min(len(meters), source.choice([1, 1, 2, 4, 8]))
            group, meters = meters[:size], meters[size:]
            at = rules.end(window) + source.uniform(-70, 200)
            if source.random() < self._world.profile.misbehaving:
                at += source.uniform(*self._world.profile.late_s)
                self._world.count("late submission")
            self._send_at(at, [(window, meter, 0) for meter in group])
            if source.random() < self._world.profile.misbehaving:
                self._world.count("equivocation")
                other = at + source.choice([0.0, 0.02, source.uniform(-60, 300)])
                self._send_at(other, [(window, group[0], 1)])
            if source.random() < self._world.profile.misbehaving:
                self._world.count("duplicate submission")
                pause = source.choice([0.0, 0.02, source.expovariate(1 / 300)])
                self._send_at(at + pause, [(window, m, 0) for m in group])

    def submit(
        self,
        names: Sequence[tuple[int, int, int]],
        attempts: int = 0,
        to: Process | None = None,
    ) -> None:
        """Send reports (window, meter, version) to a process, or to any, in one call."""
        source = self._world.source
        reports = [self.report(*name) for name in names]
        process = to or source.choice(self._world.processes)
        if not process.serves or (process.name, "clients") in self._world.network.cut:
            self._again(names, attempts)
            return
        self._world.scheduler.start(
            process, lambda: self._deliver(process, reports, names, attempts)
        )

    def report(self, window: int, meter: int, version: int) -> Sent:
        """The same report whenever it is asked for."""
        made = self._made.setdefault(window, _Made())
        if (held := made.sent.get((meter, version))) is not None:
            return held
        keys, parameters = self.keys[meter], self._world.keyholder.parameters
        ciphertext = ciphertext_of(meter, version)
        stated = bytes([version]) * 32, bytes([version]) * 48
        claim = Claim(
            parameters.digest, window, keys.meter_id, 0, *stated, _digest_of(meter, version)
        )
        report = sign_report(claim, ciphertext, keys.signing_key)
        sent = Sent(window, meter, version, claim.digest(), report.to_message())
        made.sent[meter, version] = sent
        entry = Entry(claim, report.signature).encode()
        made.entries[entry] = (meter, version, sent.digest)
        return sent

    def digests(self, window: int, meter: int) -> set[bytes]:
        """Of all reports that a meter signed for a window."""
        sent = self._made.setdefault(window, _Made()).sent
        return {held.digest for (of, _), held in sent.items() if of == meter}

    def entries(self, window: int) -> dict[bytes, tuple[int, int, bytes]]:
        """Meter, version and digest by entry, of all reports signed for a window."""
        return self._made.setdefault(window, _Made()).entries

    def residues(self, meter: int, version: int) -> Residues:
        return residues_of(meter, version)

    def forget(self, before: int) -> None:
        for window in [window for window in self._made if window < before]:
            del self._made[window]

    def _send_at(self, at: float, names: Sequence[tuple[int, int, int]]) -> None:
        self._world.scheduler.at(at, lambda: self.submit(names))

    def _again(self, names: Sequence[tuple[int, int, int]], attempts: int) -> None:
        if attempts < self._world.profile.attempts:
            delay = self._world.source.uniform(1, 30) * (1 + attempts / 2)
            at = self._world.now + delay
            self._world.scheduler.at(at, lambda: self.submit(names, attempts + 1))

    def _deliver(
        self,
        process: Process,
        reports: Sequence[Sent],
        names: Sequence[tuple[int, int, int]],
        attempts: int,
    ) -> None:
        """A call, in the process's own time."""
        world = self._world
        process.catch_up()
        arrived, skew = process.clock.now(), process.clock.skew
        try:
            answers: list[Answer] = process.ingest.submit([sent.message for sent in reports])
        except GridveilError as error:
            answers = [error] * len(reports)
        world.count("reports answered", len(reports))
        if not process.up:
            return
        if world.faults.on and world.source.random() < world.profile.losing_answers:
            world.count("answer to a client lost")
            self._again(names, attempts)
            return
        repeated = []
        for sent, answer, name in zip(reports, answers, names, strict=True):
            world.trace(process.name, name, answer)
            sent.arrived, sent.skew = arrived, skew
            world.oracle.answered(process, sent, answer)
            if isinstance(answer, GridveilError) and answer.reason in _AGAIN:
                repeated.append(name)
            elif not isinstance(answer, WrongState):
                world.count("receipts held by clients")
        if repeated:
            self._again(repeated, attempts)


@lru_cache(maxsize=4)
def enrolled_meters(count: int) -> list[MeterKeys]:
    return make_members(count)


@lru_cache(maxsize=METERS * VERSIONS)
def residues_of(meter: int, version: int) -> Residues:
    """One place is the report's own, and the last one counts."""
    residues: Residues = np.zeros(128 + 2048, dtype=np.uint64)
    residues[version * METERS + meter] = 1
    residues[-1] = 1
    return residues


@lru_cache(maxsize=METERS * VERSIONS)
def ciphertext_of(meter: int, version: int) -> bytes:
    return to_bytes(residues_of(meter, version))


@lru_cache(maxsize=METERS * VERSIONS)
def _digest_of(meter: int, version: int) -> bytes:
    return sha256(ciphertext_of(meter, version))
