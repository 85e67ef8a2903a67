"""Who was enrolled when, compactly: some 250 bytes a meter for all versions together."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.layout import ID_BYTES, KEY_BYTES
from gridveil.protocol.roster import Member

NEVER = 2**63 - 1
"""In the place of a version that has not come."""


class Membership:
    """Every meter that was ever enrolled, at a place that it keeps.

    One thread may change it while others read: what they read of versions that exist is final.
    """

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._keys = bytearray()
        self._ids = bytearray()
        self._enrolled = array("q")
        self._withdrawn = array("q")

    def __len__(self) -> int:
        return len(self._places)

    def add(self, member: Member, enrolled: int, withdrawn: int = NEVER) -> None:
        """A meter that is new, from one version to before another."""
        self._keys += member.signing_key + member.sealing_key
        self._ids += member.meter_id
        self._enrolled.append(enrolled)
        self._withdrawn.append(withdrawn)
        self._places[member.meter_id] = len(self._places)

    def withdraw(self, meter_id: bytes, version: int) -> None:
        """A meter is out from a version on."""
        self._withdrawn[self._places[meter_id]] = version

    def place(self, meter_id: bytes) -> int | None:
        """The place of a meter that was ever enrolled."""
        return self._places.get(meter_id)

    def place_in(self, version: int, meter_id: bytes) -> int | None:
        """The place of a meter that a version holds."""
        place = self._places.get(meter_id)
        if place is None or not self._enrolled[place] <= version < self._withdrawn[place]:
            return None
        return place

    def is_withdrawn(self, place: int) -> bool:
        """Whether some version took the meter out."""
        return self._withdrawn[place] != NEVER

    def is_enrolled(self, meter_id: bytes) -> bool:
        """Whether a meter was enrolled and no version took it out."""
        place = self._places.get(meter_id)
        return place is not None and not self.is_withdrawn(place)

    def at(self, place: int) -> Member:
        """The meter at a place."""
        keys = self._keys[2 * KEY_BYTES * place : 2 * KEY_BYTES * (place + 1)]
        return Member(
            bytes(self._ids[ID_BYTES * place : ID_BYTES * (place + 1)]),
            bytes(keys[:KEY_BYTES]),
            bytes(keys[KEY_BYTES:]),
        )

    def between(self, known: int, version: int) -> tuple[list[int], list[int]]:
        """Places of the meters that ``version`` adds to ``known`` and removes from it.

        Each ascending by meter id.
        """
        before, after = self._held_by(known), self._held_by(version)
        return self._in_order(after & ~before), self._in_order(before & ~after)

    def _held_by(self, version: int) -> NDArray[np.bool_]:
        size = len(self._places)
        enrolled = np.array(self._enrolled[:size])
        withdrawn = np.array(self._withdrawn[:size])
        held: NDArray[np.bool_] = (enrolled <= version) & (version < withdrawn)
        return held

    def _in_order(self, chosen: NDArray[np.bool_]) -> list[int]:
        places = np.flatnonzero(chosen).tolist()
        return sorted(places, key=lambda p: self._ids[ID_BYTES * p : ID_BYTES * (p + 1)])
