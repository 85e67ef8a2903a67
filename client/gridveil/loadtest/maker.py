"""A process that prepares reports: the pool once, then window after window, ahead of the sender."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from gridveil.loadtest.load import Kind, Load, Slot, places_of, share_of
from gridveil.loadtest.pool import Pooled, PoolPlan, commitments, make_pool
from gridveil.loadtest.tally import Prepared
from gridveil.loadtest.worker import Pipe, Progress, Ready
from gridveil.meter_identity import MeterKeys
from gridveil.protocol.city import CityParameters
from gridveil.protocol.report import sign_report
from gridveil.reporting import ReportBuilder

METERS, CIPHERTEXTS = "meters made ready", "ciphertexts made"
_STEP = 64


@dataclass(frozen=True)
class MakerJob:
    """What a maker is started with."""

    load: Load
    process: int
    parameters: bytes
    """Encoded city parameters, verified before."""
    meters: Sequence[MeterKeys]
    """Those of this process, in the order of their places."""
    neighbour: MeterKeys
    """Signs what must not pass for the report of any of them."""


@dataclass(frozen=True)
class WantWindow:
    """A sender asks for a window's reports."""

    number: int
    start: int


@dataclass(frozen=True)
class Batch:
    """Reports of one call."""

    number: int
    """Of the window."""
    late: bool
    reports: list[Prepared]


@dataclass(frozen=True)
class WindowMade:
    """All batches of a window were handed over."""

    number: int


def make(parent: Pipe, sender: Pipe, job: MakerJob) -> None:
    """Work until the sender hangs up."""
    maker = Maker(job)
    plan = PoolPlan.of(job.load, maker.parameters.policy)
    for count in maker.warm_up():
        parent.send(Progress(METERS, count))
    maker.pool = make_pool(
        maker.parameters, plan, job.process, lambda n: parent.send(Progress(CIPHERTEXTS, n))
    )
    sender.send([pooled.ciphertext for pooled in maker.pool])
    parent.send(Ready())
    while True:
        wanted: WantWindow = sender.recv()
        for batch in maker.batches(wanted):
            sender.send(batch)
        sender.send(WindowMade(wanted.number))


class Maker:
    """Makes the reports of one process's meters."""

    def __init__(self, job: MakerJob) -> None:
        self.parameters = CityParameters.decode(job.parameters)
        self.pool: Sequence[Pooled] = ()
        self._job = job
        self._plan = PoolPlan.of(job.load, self.parameters.policy)
        self._neighbour = job.neighbour.signing_key
        self._places = places_of(job.load, job.process)
        self._builders: dict[int, ReportBuilder] = {}

    def warm_up(self) -> Iterator[int]:
        """Agree on every meter's sealing key; how many are done since the last time."""
        paired = zip(self._places, self._job.meters, strict=True)
        while some := list(islice(paired, _STEP)):
            for place, keys in some:
                self._builders[place] = ReportBuilder(self.parameters, keys)
                self._builders[place].warm_up()
            yield len(some)

    def batches(self, window: WantWindow) -> Iterator[Batch]:
        """The calls of a window, in order; those that are late at the end."""
        share = share_of(self._job.load, window.number, self._job.process)
        committed = commitments(self.parameters, window.start, self.pool)
        for late, slots in ((False, share.timely), (True, share.late)):
            rest = iter(slots)
            while some := list(islice(rest, self._job.load.batch)):
                made = [self._prepare(slot, window, committed) for slot in some]
                yield Batch(window.number, late, made)

    def _prepare(self, slot: Slot, window: WantWindow, committed: Sequence[bytes]) -> Prepared:
        index = self._plan.index(slot.place, window.number)
        ciphertext = self.pool[index].ciphertext
        report = self._builders[slot.place].finish(window.start, committed[index], ciphertext)
        claim, signature = report.claim, report.signature
        hashed = claim.commitment_hash
        if slot.kind is Kind.FORGED:
            signature = bytes([signature[0] ^ 1]) + signature[1:]
        elif slot.kind is Kind.FOREIGN_KEY:
            signature = sign_report(claim, ciphertext, self._neighbour).signature
        elif slot.kind is Kind.MALFORMED:
            hashed = hashed[:-1]
        return Prepared(
            slot.kind,
            slot.place,
            index,
            claim.meter_id,
            hashed,
            claim.sealed_commitment,
            signature,
            claim.digest(),
        )
