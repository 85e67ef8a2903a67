"""One entry of a release, checked by itself: enrolled, in its lane, signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.release import ENTRY_BYTES, Entry, ReleaseHeader
from gridveil.protocol.roster import Member
from gridveil.protocol.signing import verify
from gridveil.protocol.windows import lane_of
from gridveil_services.keyholder.membership import Membership


class EntryScope(NamedTuple):
    """All that the judgement of an entry depends on beside the entry."""

    parameters_digest: bytes
    window_start: int
    roster_version: int
    lanes: int

    @classmethod
    def of(cls, header: ReleaseHeader) -> EntryScope:
        """What the entries of a release are judged by."""
        return cls(
            header.parameters_digest, header.window_start, header.roster_version, header.lanes
        )


class EntryCheck:
    """What an entry of one window must be. The same entry always gets the same answer."""

    def __init__(self, scope: EntryScope, epoch_id: bytes, members: Membership) -> None:
        self.scope = scope
        self._epoch_id = epoch_id
        self._members = members

    def enrolled(self, data: bytes) -> int:
        """The place among all meters of the one that an entry names, or COHORT_INVALID."""
        place = self._members.place_in(self.scope.roster_version, data[:ID_BYTES])
        if place is None:
            raise invalid("an entry is of a meter that was not enrolled")
        return place

    def signed(self, data: bytes, member: Member) -> Entry:
        """The entry, signed by the meter that it names.

        Raises:
            MalformedInput: FIELD_RANGE for flags, MALFORMED_MESSAGE.
            NotAuthentic: SIGNATURE_INVALID.
        """
        entry = Entry.decode(data, self.scope.parameters_digest, self.scope.window_start)
        verify(member.signing_key, entry.claim.transcript(), entry.signature)
        return entry

    def lane(self, meter_id: bytes) -> int:
        """The lane that a meter's entry stands in."""
        return lane_of(self._epoch_id, self.scope.window_start, meter_id, self.scope.lanes)


def cut(entries: bytes, parts: int) -> Iterator[bytes]:
    """Whole entries in at most ``parts`` pieces of about the same size."""
    size = -(-(len(entries) // ENTRY_BYTES) // parts) * ENTRY_BYTES
    for at in range(0, len(entries), size):
        yield entries[at : at + size]


def invalid(how: str) -> MalformedInput:
    """COHORT_INVALID."""
    return MalformedInput(Reason.COHORT_INVALID, how)
