"""Who reported: the entries of a release, checked one after another as they arrive.

Distinct, enrolled, in their lane and signed: afterwards the count is proven, whatever the header
claimed. The signatures dominate (some 60 us each; libsodium releases the interpreter for them),
unless they were checked while the window was open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from gridveil.protocol.city import CityParameters
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.release import (
    ENTRY_BYTES,
    EntriesDigest,
    LaneSum,
    ReleaseHeader,
    split_entries,
)
from gridveil_services.keyholder.entries import EntryCheck, EntryScope, cut, invalid
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.precheck import Precheck
from gridveil_services.keyholder.seals import NOT_OPENED

THREADS = 2
"""Threads for signatures, seals and point additions."""

Place = tuple[int, bytes]
"""Where an entry stands: its lane, then its meter."""


class Examined(NamedTuple):
    """What was found out about the entries of a chunk, in their order."""

    places: list[Place]
    commitments: list[bytes]
    """Those that were opened before, and NOT_OPENED."""


@dataclass(frozen=True)
class Known:
    """What is known of a release's commitments before it is opened."""

    commitments: bytes = b""
    """32 bytes an entry, in order, NOT_OPENED among them; or none at all."""
    sums: Mapping[int, bytes] = field(default_factory=dict)
    """By lane, the sum of all commitments that are known of it; not of every lane."""
    precheck: Precheck | None = None
    """Where more is known of the entries."""


NOTHING_KNOWN = Known()


class Cohort:
    """The meters of one release so far."""

    def __init__(
        self,
        header: ReleaseHeader,
        parameters: CityParameters,
        members: Membership,
        pool: Executor,
        precheck: Precheck | None = None,
    ) -> None:
        """``precheck``: of this very window, parameters and roster."""
        self.digest = EntriesDigest()
        self.count = 0
        self.lanes: Counter[int] = Counter()
        """Entries by lane."""
        self._header = header
        self._check = EntryCheck(EntryScope.of(header), parameters.epoch.epoch_id, members)
        self._members = members
        self._pool = pool
        self._precheck = precheck
        self._commitments = bytearray()
        self._opened: Counter[int] = Counter()
        """Entries by lane whose commitments are known."""
        self._last: Place = (-1, b"")

    def examine(self, chunk: bytes) -> Examined:
        """What the entries in a chunk are; changes nothing.

        Raises:
            MalformedInput: COHORT_INVALID, FIELD_RANGE for flags, MALFORMED_MESSAGE.
            NotAuthentic: SIGNATURE_INVALID.
        """
        if self.count + len(chunk) // ENTRY_BYTES > self._header.count:
            raise invalid("there are more entries than the header counts")
        parts = list(self._pool.map(self._examine, cut(chunk, THREADS)))
        examined = Examined(
            [place for part in parts for place in part.places],
            [commitment for part in parts for commitment in part.commitments],
        )
        if not all(before < after for before, after in pairwise([self._last, *examined.places])):
            raise invalid("the entries do not ascend by lane and meter")
        return examined

    def accept(self, chunk: bytes, examined: Examined) -> None:
        """Count a chunk that was examined and is kept."""
        places, commitments = examined
        self.digest.update(chunk)
        self.count += len(places)
        self.lanes.update(lane for lane, _ in places)
        self._last = places[-1]
        if self._precheck is None:
            return
        self._opened.update(
            lane
            for (lane, _), commitment in zip(places, commitments, strict=True)
            if commitment != NOT_OPENED
        )
        self._commitments += b"".join(commitments)

    def check_complete(self, lanes: list[LaneSum]) -> None:
        """COHORT_INVALID unless the lanes hold just these entries."""
        stated = {lane.lane: lane.count for lane in lanes}
        if self.count != self._header.count or stated != dict(self.lanes):
            raise invalid("the lanes do not hold the entries")

    def known(self) -> Known:
        """What is known of the commitments of all entries so far."""
        if self._precheck is None:
            return NOTHING_KNOWN
        # Of as many meters as were found: of the same ones, for every one found was added before.
        found = ((lane, self._precheck.sum_of(lane, n)) for lane, n in self._opened.items())
        sums = {lane: point for lane, point in found if point is not None}
        return Known(bytes(self._commitments), sums, self._precheck)

    def _examine(self, entries: bytes) -> Examined:
        examined = Examined([], [])
        for data in split_entries(entries):
            place, commitment = self._judge(data)
            examined.places.append(place)
            examined.commitments.append(commitment)
        return examined

    def _judge(self, data: bytes) -> tuple[Place, bytes]:
        check, meter_id = self._check, data[:ID_BYTES]
        at = check.enrolled(data)
        found = self._precheck.find(at, data) if self._precheck is not None else None
        if found is not None:
            return (found.lane, meter_id), found.commitment
        check.signed(data, self._members.at(at))
        return (check.lane(meter_id), meter_id), NOT_OPENED
