"""Who reported: the entries of a release, checked one after another as they arrive.

Distinct, enrolled, in their lane and signed: afterwards the count is proven, whatever the header
claimed. The signatures dominate (some 60 us each); libsodium releases the interpreter for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import pairwise

from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.release import (
    ENTRY_BYTES,
    EntriesDigest,
    Entry,
    LaneSum,
    ReleaseHeader,
    split_entries,
)
from gridveil.protocol.signing import verify
from gridveil.protocol.windows import lane_of
from gridveil_services.keyholder.membership import Membership

THREADS = 2
"""Threads for signatures, seals and point additions."""

Place = tuple[int, bytes]
"""Where an entry stands: its lane, then its meter."""


class Cohort:
    """The meters of one release so far."""

    def __init__(
        self,
        header: ReleaseHeader,
        parameters: CityParameters,
        members: Membership,
        pool: Executor,
    ) -> None:
        self.digest = EntriesDigest()
        self.count = 0
        self.lanes: Counter[int] = Counter()
        """Entries by lane."""
        self._header = header
        self._epoch_id = parameters.epoch.epoch_id
        self._members = members
        self._pool = pool
        self._last: Place = (-1, b"")

    def examine(self, chunk: bytes) -> list[Place]:
        """The places of the entries in a chunk; changes nothing.

        Raises:
            MalformedInput: COHORT_INVALID, FIELD_RANGE for flags, MALFORMED_MESSAGE.
            NotAuthentic: SIGNATURE_INVALID.
        """
        if self.count + len(chunk) // ENTRY_BYTES > self._header.count:
            raise invalid("there are more entries than the header counts")
        slices = cut(chunk, THREADS)
        places = [place for found in self._pool.map(self._examine, slices) for place in found]
        if not all(before < after for before, after in pairwise([self._last, *places])):
            raise invalid("the entries do not ascend by lane and meter")
        return places

    def accept(self, chunk: bytes, places: list[Place]) -> None:
        """Count a chunk that was examined and is kept."""
        self.digest.update(chunk)
        self.count += len(places)
        self.lanes.update(lane for lane, _ in places)
        self._last = places[-1]

    def check_complete(self, lanes: list[LaneSum]) -> None:
        """COHORT_INVALID unless the lanes hold just these entries."""
        stated = {lane.lane: lane.count for lane in lanes}
        if self.count != self._header.count or stated != dict(self.lanes):
            raise invalid("the lanes do not hold the entries")

    def _examine(self, entries: bytes) -> list[Place]:
        return [self._place(data) for data in split_entries(entries)]

    def _place(self, data: bytes) -> Place:
        header = self._header
        entry = Entry.decode(data, header.parameters_digest, header.window_start)
        meter_id = entry.claim.meter_id
        found = self._members.place_in(header.roster_version, meter_id)
        if found is None:
            raise invalid("an entry is of a meter that was not enrolled")
        signing_key = self._members.at(found).signing_key
        verify(signing_key, entry.claim.transcript(), entry.signature)
        return lane_of(self._epoch_id, header.window_start, meter_id, header.lanes), meter_id


def cut(entries: bytes, parts: int) -> Iterator[bytes]:
    """Whole entries in at most ``parts`` pieces of about the same size."""
    size = -(-(len(entries) // ENTRY_BYTES) // parts) * ENTRY_BYTES
    for at in range(0, len(entries), size):
        yield entries[at : at + size]


def invalid(how: str) -> MalformedInput:
    """COHORT_INVALID."""
    return MalformedInput(Reason.COHORT_INVALID, how)
