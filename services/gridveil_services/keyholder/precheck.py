"""What was checked of a window before its release came: its entries, while meters report.

Checking an entry and opening its seal give the same result whenever it is done, so a release need
not have done again what was done for the same bytes under the same parameters and roster. Here
are results and nothing else: no window is settled by them, nobody is told of them, and if they are
lost the release takes longer.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import NamedTuple

from gridveil.clock import Clock
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.commitment import IDENTITY, POINT_BYTES, add_points
from gridveil.protocol.errors import Exhausted, Reason
from gridveil.protocol.layout import DIGEST_BYTES, sha256
from gridveil.protocol.merkle import leaf_hash
from gridveil.protocol.release import Entry, ReleaseHeader, split_entries
from gridveil.protocol.roster import Member
from gridveil.protocol.windows import lane_count
from gridveil_services.keyholder.entries import EntryCheck, EntryScope, cut
from gridveil_services.keyholder.epoch_keys import EpochKeys, EpochRing, OpeningFailed
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.policy import RETRY_S, Facts, check_precheck, wrong_epoch
from gridveil_services.keyholder.roster_store import RosterStore
from gridveil_services.keyholder.seals import NOT_OPENED, OWN_ROW_BYTES, open_seal, seal_own

MOST_WINDOWS = 2
"""Windows that entries are held of at a time: 328 bytes for each meter that was ever enrolled.

One is reported while the one before is released. The newest are held: those that cannot be settled
may be there for a day.
"""
THREADS = 2

_SLOT = struct.Struct(f"<{DIGEST_BYTES}s{POINT_BYTES}sI{OWN_ROW_BYTES}s")
"""Of a meter: SHA-256 of its entry, its commitment or NOT_OPENED, its lane, its own row."""
_NOTHING = bytes(DIGEST_BYTES)
"""In the place of the digest of a meter without an entry."""


class Found(NamedTuple):
    """What was found out about an entry."""

    commitment: bytes
    """NOT_OPENED if its seal does not open: that is for the release to find."""
    lane: int
    own_row: bytes = b""
    """What is published for the meter if the entry is counted."""


class Precheck:
    """The signed entries of one window; of each meter the first. Thread-safe."""

    def __init__(self, scope: EntryScope, keys: EpochKeys, members: Membership) -> None:
        self.scope = scope
        self._check = EntryCheck(scope, keys.parameters.epoch.epoch_id, members)
        self._keys = keys
        self._members = members
        self._slots = bytearray(_SLOT.size * len(members))
        self._opened: Counter[int] = Counter()
        """By lane, meters whose commitments are in its sum."""
        self._sums: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.held = 0
        """Meters with an entry."""

    def find(self, place: int, data: bytes) -> Found | None:
        """What was found out about this very entry of the meter at a place."""
        if len(self._slots) < _SLOT.size * (place + 1):
            return None
        digest, *found = _SLOT.unpack_from(self._slots, _SLOT.size * place)
        return Found(*found) if digest == sha256(data) else None

    def sum_of(self, lane: int, count: int) -> bytes | None:
        """The sum of a lane's commitments, if it is of just so many meters."""
        with self._lock:
            return self._sums[lane] if 0 < count == self._opened[lane] else None

    def add(self, entries: bytes, pool: Executor) -> None:
        """Check whole entries, in any order, and hold them; all of them or none.

        Raises:
            MalformedInput: COHORT_INVALID, FIELD_RANGE, MALFORMED_MESSAGE.
            NotAuthentic: SIGNATURE_INVALID.
            OpeningFailed: the epoch was destroyed.
        """
        parts = list(pool.map(self._examine, cut(entries, THREADS)))
        with self._lock:
            fresh: dict[int, list[bytes]] = {}
            for place, found, slot in (row for part in parts for row in part):
                if self._hold(place, slot) and found.commitment != NOT_OPENED:
                    fresh.setdefault(found.lane, []).append(found.commitment)
            for lane, commitments in fresh.items():
                before = self._sums.get(lane, IDENTITY)
                self._sums[lane] = add_points([before, *commitments])
                self._opened[lane] += len(commitments)

    def _hold(self, place: int, slot: bytes) -> bool:
        at = _SLOT.size * place
        if len(self._slots) < at + _SLOT.size or self._slots[at : at + DIGEST_BYTES] != _NOTHING:
            return False
        self._slots[at : at + _SLOT.size] = slot
        self.held += 1
        return True

    def _examine(self, entries: bytes) -> list[tuple[int, Found, bytes]]:
        return list(self._fresh(entries))

    def _fresh(self, entries: bytes) -> Iterator[tuple[int, Found, bytes]]:
        """The entries that are not held, each with its meter's place and its slot."""
        check = self._check
        for data in split_entries(entries):
            place = check.enrolled(data)
            if self.find(place, data) is None:
                member = self._members.at(place)
                found = self._open(check.signed(data, member), data, place, member)
                yield place, found, _SLOT.pack(sha256(data), *found)

    def _open(self, entry: Entry, data: bytes, place: int, member: Member) -> Found:
        lane = self._check.lane(member.meter_id)
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
        pool: Executor,
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._ring = ring
        self._roster = roster
        self._clock = clock
        self._pool = pool
        self._windows: dict[int, Precheck] = {}
        self._lock = threading.Lock()

    def add(
        self, window_start: int, parameters_digest: bytes, roster_version: int, entries: bytes
    ) -> int:
        """Check entries of a window; how many of its meters have one now.

        Raises:
            MalformedInput, NotAuthentic: as :meth:`Precheck.add`; or WINDOW_MISALIGNED.
            WrongState, Conflict: see :func:`gridveil_services.keyholder.policy.check_precheck`.
            Exhausted: OVERLOADED while as many newer windows as can be are held.
        """
        keys = self._ring.by_digest(parameters_digest)
        version = self._roster.in_force(window_start)
        facts = Facts(
            now=self._clock.now(),
            state=self._ledger.state(window_start),
            parameters=keys.parameters if keys else None,
            roster=version,
            policy=self._policy,
        )
        check_precheck(window_start, roster_version, facts)
        assert keys is not None
        assert version is not None
        crypto, slots = keys.parameters.policy.crypto, keys.parameters.policy.layout.slots
        lanes = lane_count(version.count, crypto, slots)
        scope = EntryScope(parameters_digest, window_start, roster_version, lanes)
        precheck = self._window(scope, keys)
        try:
            precheck.add(entries, self._pool)
        except OpeningFailed:
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
            self._windows.pop(window_start, None)

    def windows(self) -> list[int]:
        """Windows that entries are held of."""
        with self._lock:
            return list(self._windows)

    def _window(self, scope: EntryScope, keys: EpochKeys) -> Precheck:
        with self._lock:
            held = self._windows.get(scope.window_start)
            if held is not None and held.scope == scope:
                return held
            if held is None and len(self._windows) >= MOST_WINDOWS:
                self._make_room(scope.window_start)
            made = Precheck(scope, keys, self._roster.members)
            self._windows[scope.window_start] = made
            return made

    def _make_room(self, window_start: int) -> None:
        oldest = min(self._windows)
        if window_start < oldest:
            raise Exhausted(
                Reason.OVERLOADED, "newer windows are checked ahead", retry_after_s=RETRY_S
            )
        del self._windows[oldest]
