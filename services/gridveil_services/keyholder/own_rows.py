"""Each counted meter's own entry, sealed to that meter: what is published under its tag."""

from __future__ import annotations

from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.keyholder.epoch_keys import EpochKeys
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.precheck import Precheck
from gridveil_services.keyholder.seals import seal_own


class OwnRows:
    """Of one window; those that were sealed ahead are not sealed again."""

    def __init__(
        self,
        keys: EpochKeys,
        members: Membership,
        window_start: int,
        precheck: Precheck | None = None,
    ) -> None:
        self._keys = keys
        self._members = members
        self._window_start = window_start
        self._precheck = precheck

    def row(self, opened_entry: bytes, leaf: bytes) -> bytes:
        """Tag and sealed entry, 260 bytes; ``leaf`` is the entry's leaf hash."""
        place = self._members.place(opened_entry[:ID_BYTES])
        assert place is not None
        if self._precheck is not None:
            found = self._precheck.find(place, opened_entry[:ENTRY_BYTES])
            if found is not None and found.commitment == opened_entry[ENTRY_BYTES:]:
                return found.own_row
        member = self._members.at(place)
        return seal_own(opened_entry, leaf, place, member, self._window_start, self._keys)
