"""What this process adds to each lane: its own running sum, under numbers that go up.

A running sum has one writer. The script replaces it only if the number before is the one that the
writer believes to be stored: a call that comes twice, or late, changes nothing. When it is not
known what became of a call, the writer begins anew beside its old sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from gridveil.protocol.ciphertext import Residues, add
from gridveil.protocol.parameter_sets import parameter_set
from gridveil_services.aggregator.store.interface import StoredReport, Window
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.admission import Step
from gridveil_services.aggregator.store.redis.keys import CityKeys, bucket_of, buckets
from gridveil_services.aggregator.store.redis.layout import (
    encode_element,
    encode_partial,
    encode_receipt,
)
from gridveil_services.aggregator.store.redis.servers import Call, script


def _new_name() -> str:
    return secrets.token_hex(8)


@dataclass
class LaneWriter:
    """One lane of a window as this process writes it."""

    window: Window
    lane: int
    name: str = field(default_factory=_new_name)
    sequence: int = 0
    count: int = 0
    total: Residues | None = None
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The last number, by name, that must be found in the lane as long as it exists."""
    _next: tuple[int, Residues] | None = None

    def call(self, keys: CityKeys, step: Step) -> Call:
        """The call that stores a step."""
        reports = [report for batch in step.taken for report in batch.reports]
        sums = [batch.sum for batch in step.taken]
        held = [] if self.total is None else [self.total]
        total = add([*held, *sums], parameter_set(self.window.parameter_set))
        self._next = self.count + len(reports), total
        of_lane = keys.lane(self.window.start, self.lane)
        used, values = self._values(reports, step)
        return script(
            scripts.COMMIT,
            [of_lane.lane, of_lane.journal, of_lane.partials, *map(of_lane.receipts, used)],
            self.name,
            str(self.sequence + 1),
            str(self.sequence),
            step.taken[0].parameters_digest,
            encode_partial(self.window.start, self.lane, *self._next),
            values,
        )

    def stored(self) -> None:
        """The last call was carried out."""
        assert self._next is not None
        self.count, self.total = self._next
        self.sequence += 1
        self.acknowledged[self.name] = self.sequence

    def begin_anew(self) -> None:
        """Nobody knows whether the last call was, or will be, carried out."""
        self.name, self.sequence, self.count, self.total = _new_name(), 0, 0, None

    def _values(self, reports: Sequence[StoredReport], step: Step) -> tuple[list[int], bytes]:
        """The buckets that receipts go to, and the reports as the script takes them apart."""
        split = buckets(self.window)
        places: dict[int, int] = {}
        values: list[bytes] = []
        for report in reports:
            # The first three keys are others, and Lua counts from 1.
            place = places.setdefault(bucket_of(report.meter_id, split), len(places) + 4)
            receipt = encode_receipt(*step.receipts[report.meter_id])
            element = encode_element(self.window.start, self.lane, report)
            values += (place.to_bytes(2, "big"), receipt, element)
        return list(places), b"".join(values)
