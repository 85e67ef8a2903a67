"""What was checked of a window before its release came: its entries, while meters report.

Checking an entry and opening its seal give the same result whenever it is done, so a release need
not have done again what was done for the same bytes under the same parameters and roster. Here
are results and nothing else: no window is settled by them, nobody is told of them, and if they are
lost the release takes longer.
"""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

from gridveil.clock import Clock
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.commitment import IDENTITY, POINT_BYTES, add
from gridveil.protocol.errors import Exhausted, Reason
from gridveil.protocol.layout import DIGEST_BYTES, sha256
from gridveil.protocol.merkle import leaf_hash
from gridveil.protocol.release import ReleaseHeader, split_entries
from gridveil.protocol.roster import Member
from gridveil.protocol.windows import WindowRules, lane_count
from gridveil_services.keyholder.entries import EntryCheck, EntryScope
from gridveil_services.keyholder.epoch_keys import EpochKeys, EpochRing, OpeningFailed
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.policy import RETRY_S, Facts, check_precheck, wrong_epoch
from gridveil_services.keyholder.roster_store import RosterStore
from gridveil_services.keyholder.seals import NOT_OPENED, OWN_ROW_BYTES, open_seal, seal_own

MOST_WINDOWS = 8
"""Windows that entries are held of at a time, at the most; 328 bytes a meter ever enrolled."""

_SLOT = struct.Struct(f"<{DIGEST_BYTES}s{POINT_BYTES}sI{OWN_ROW_BYTES}s")
"""Of a meter: SHA-256 of its entry, its commitment or NOT_OPENED, its lane, its own row."""
_NOTHING = bytes(DIGEST_BYTES)
"""In the place of the digest of a meter without an entry."""
_BEYOND = (_NOTHING, NOT_OPENED, 0, b"")
"""In the place of the slot of a meter that has none."""


def windows_held(rules: WindowRules) -> int:
    """How many windows entries are held of: those that may take reports at once, and one more.

    That one is being released. The newest are held, for those that cannot be settled may be there
    for a day.
    """
    open_at_once = 1 + -(-(rules.grace + rules.early_leeway) // rules.length)
    return min(MOST_WINDOWS, open_at_once + 1)


class Found(NamedTuple):
    """What was found out about an entry."""

    commitment: bytes
    """NOT_OPENED if its seal does not open: that is for the release to find."""
    lane: int
    own_row: bytes = b""
    """What is published for the meter if the entry is counted."""


class PointSum(NamedTuple):
    """The commitments of some meters of a lane, added up."""

    meters: int
    point: bytes


_EMPTY = PointSum(0, IDENTITY)


class Precheck:
    """The signed entries of one window; of each meter the first.

    One thread adds while others read. What they find of a meter is whole, and a lane's sum is of
    all its meters that were found before, or of more.
    """

    def __init__(self, scope: EntryScope, keys: EpochKeys, members: Membership) -> None:
        self.scope = scope
        self._check = EntryCheck(scope, keys.parameters.epoch.epoch_id, members)
        self._keys = keys
        self._members = members
        self._slots = bytearray(_SLOT.size * len(members))
        self._sums: dict[int, PointSum] = {}
        self.held = 0
        """Meters with an entry."""

    def find(self, place: int, data: bytes) -> Found | None:
        """What was found out about this very entry of the meter at a place."""
        digest, commitment, lane, own_row = self._slot(place)
        return Found(commitment, lane, own_row) if digest == sha256(data) else None

    def sum_of(self, lane: int, count: int) -> bytes | None:
        """The sum of a lane's commitments, if it is of just so many meters."""
        held = self._sums.get(lane)
        return held.point if held and held.meters == count else None

    def add(self, entries: bytes) -> None:
        """Check whole entries in their order and hold them; those before a bad one are held.

        Raises:
            MalformedInput: COHORT_INVALID, FIELD_RANGE, MALFORMED_MESSAGE.
            NotAuthentic: SIGNATURE_INVALID.
            OpeningFailed: the epoch was destroyed.
        """
        for data in split_entries(entries):
            place = self._check.enrolled(data)
            if self._slot(place)[0] == _NOTHING:
                member = self._members.at(place)
                self._hold(place, data, self._open(data, place, member))

    def drop(self) -> None:
        """Hold nothing any more, whoever still has this object."""
        self._slots, self._sums = bytearray(), {}

    def _slot(self, place: int) -> tuple[bytes, bytes, int, bytes]:
        slots, at = self._slots, _SLOT.size * place
        if at + _SLOT.size > len(slots):  # of a meter that was enrolled later, or all is dropped
            return _BEYOND
        digest, commitment, lane, own_row = _SLOT.unpack_from(slots, at)
        return digest, commitment, lane, own_row

    def _hold(self, place: int, data: bytes, found: Found) -> None:
        slots, at = self._slots, _SLOT.size * place
        if at + _SLOT.size > len(slots):
            return
        # The sum comes first: if all ends in between, it is of more than are found, and not used.
        if found.commitment != NOT_OPENED:
            meters, point = self._sums.get(found.lane, _EMPTY)
            self._sums[found.lane] = PointSum(meters + 1, add(point, found.commitment))
        slots[at : at + _SLOT.size] = _SLOT.pack(sha256(data), *found)
        self.held += 1

    def _open(self, data: bytes, place: int, member: Member) -> Found:
        entry, lane = self._check.signed(data, member), self._check.lane(member.meter_id)
        commitment = open_seal(entry, place, member, self._keys)
        if commitment is None:
            return Found(NOT_OPENED, lane)
        opened, window_start = data + commitment, self.scope.window_start
        row = seal_own(opened, leaf_hash(opened), place, member, window_start, self._keys)
        return Found(commitment, lane, row)


class Prechecks:
    """All windows with prechecked entries. Thread-safe."""

    def __init__(
        self,
        *,
        policy: CityPolicy,
        ledger: Ledger,
        ring: EpochRing,
        roster: RosterStore,
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._ring = ring
        self._roster = roster
        self._clock = clock
        self._most = windows_held(policy.rules)
        self._windows: dict[int, Precheck] = {}
        self._lock = threading.Lock()
        self._adding = threading.Lock()

    def add(
        self, window_start: int, parameters_digest: bytes, roster_version: int, entries: bytes
    ) -> int:
        """Check entries of a window; how many of its meters have one now.

        Raises:
            MalformedInput, NotAuthentic: as :meth:`Precheck.add`; or WINDOW_MISALIGNED.
            WrongState, Conflict: see :func:`gridveil_services.keyholder.policy.check_precheck`.
            Unavailable: KEYHOLDER_LOCKED
            Exhausted: OVERLOADED while others are checked, so that nobody else is kept waiting, or
                as many newer windows as can be are held.
        """
        if not self._adding.acquire(blocking=False):
            raise _overloaded("other entries are being checked")
        try:
            return self._add(window_start, parameters_digest, roster_version, entries)
        finally:
            self._adding.release()

    def _add(
        self, window_start: int, parameters_digest: bytes, roster_version: int, entries: bytes
    ) -> int:
        keys = self._ring.by_digest(parameters_digest)
        version = self._roster.in_force(window_start)
        facts = Facts(
            now=self._clock.now(),
            state=self._ledger.state(window_start),
            parameters=keys.parameters if keys else None,
            roster=version,
            policy=self._policy,
            locked=self._ledger.locked_at is not None,
        )
        check_precheck(window_start, roster_version, facts)
        assert keys is not None
        assert version is not None
        crypto, slots = keys.parameters.policy.crypto, keys.parameters.policy.layout.slots
        lanes = lane_count(version.count, crypto, slots)
        scope = EntryScope(parameters_digest, window_start, roster_version, lanes)
        precheck = self._window(scope, keys)
        try:
            precheck.add(entries)
        except OpeningFailed:
            self.forget(window_start)
            raise wrong_epoch() from None
        return precheck.held

    def of(self, header: ReleaseHeader) -> Precheck | None:
        """What is held for a release with this header."""
        precheck = self._windows.get(header.window_start)
        return precheck if precheck and precheck.scope == EntryScope.of(header) else None

    def held(self, window_start: int) -> int:
        """Meters of a window with an entry."""
        with self._lock:
            precheck = self._windows.get(window_start)
        return precheck.held if precheck else 0

    def forget(self, window_start: int) -> None:
        """Hold nothing of a window any more."""
        with self._lock:
            self._drop(window_start)

    def windows(self) -> list[int]:
        """Windows that entries are held of."""
        with self._lock:
            return list(self._windows)

    def _window(self, scope: EntryScope, keys: EpochKeys) -> Precheck:
        with self._lock:
            held = self._windows.get(scope.window_start)
            if held is not None and held.scope == scope:
                return held
            self._drop(scope.window_start)
            if len(self._windows) >= self._most:
                self._make_room(scope.window_start)
            made = Precheck(scope, keys, self._roster.members)
            self._windows[scope.window_start] = made
            return made

    def _make_room(self, window_start: int) -> None:
        oldest = min(self._windows)
        if window_start < oldest:
            raise _overloaded("newer windows are checked ahead")
        self._drop(oldest)

    def _drop(self, window_start: int) -> None:
        gone = self._windows.pop(window_start, None)
        if gone is not None:
            gone.drop()  # a release that began and cannot be settled may have it for a day


def _overloaded(how: str) -> Exhausted:
    return Exhausted(Reason.OVERLOADED, how, retry_after_s=RETRY_S)
