"""Opening a claimed release: the seals, the sums, and the equation that ties them together.

    S_1*G_1 + S_2*G_2 + ... + B*H  ==  sum of the commitments of the lane's meters

for every lane by itself, where each S holds the sums of four registers. A lane that does not open
is left out and never tried again. Whether a lane that was decrypted opens is an oracle on the
secret key: so a lane with a seal that does not open is left out before it is decrypted, and after
as many failures as the keys may bear nothing more is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import structlog

from gridveil.protocol.commitment import POINT_BYTES, Generators, add_points
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.release import ENTRY_BYTES, Entry, LaneSum, split_entries
from gridveil.protocol.slots import GROUP_ORDER
from gridveil_services.keyholder.cohort import NOTHING_KNOWN, THREADS, Known
from gridveil_services.keyholder.entries import cut
from gridveil_services.keyholder.epoch_keys import EpochKeys, OpeningFailed
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.seals import NOT_OPENED, open_seal
from gridveil_services.keyholder.spool import SpooledRelease

MACHINE_FAILURES = (OSError, MemoryError, RuntimeError)
"""Not the release's fault: RuntimeError as of a thread that cannot be started."""

_UNKNOWN = (b"", NOT_OPENED)

_log = structlog.get_logger()


@dataclass(frozen=True)
class Allowance:
    """How far an opening may go."""

    failures: int
    """Lanes that may be decrypted and not open; nothing is decrypted after the last of them."""
    all_or_nothing: bool
    """Whether one lane that does not open refuses the window."""
    is_cohort: Callable[[int], bool]
    """Whether so many meters are enough for a total."""

    @property
    def most_failures(self) -> int:
        """Failures after which no further lane is decrypted."""
        return min(self.failures, 1) if self.all_or_nothing else self.failures

    def permits(self, opened: Sequence[LaneSum], lanes: Sequence[LaneSum]) -> bool:
        """Whether a total over some lanes of a release may be released."""
        if self.all_or_nothing and len(opened) < len(lanes):
            return False
        return self.is_cohort(sum(lane.count for lane in opened))


@dataclass(frozen=True)
class Opening:
    """What the commitments of the lanes that opened open to, all together."""

    totals: tuple[int, ...]
    """Of each register, in its unit."""
    blinding: int
    """B mod the group order."""
    commitments: bytes
    """32 bytes an entry of these lanes, in the order of the entries."""
    count: int
    """Meters in these lanes."""
    left_out: tuple[int, ...]
    """The other lanes of the release."""


@dataclass(frozen=True)
class Outcome:
    """What became of a release. Without an opening it is refused; nobody outside learns why."""

    opening: Opening | None
    failed: tuple[int, ...] = ()
    """Lanes that were decrypted and did not open, each spent of the failure budget."""
    passed: tuple[int, ...] = ()
    """Lanes that opened, even if they are not enough for a total."""
    proven: tuple[bytes, ...] = ()
    """Meters whose own seal does not open, which they have signed."""


@dataclass(frozen=True)
class _SealedLane:
    """A lane whose seals were opened."""

    lane: LaneSum
    commitments: bytes
    """Of its entries; void if one could not be had."""
    proven: tuple[bytes, ...] = ()
    """Meters whose seal does not open."""
    point: bytes | None = None
    """The sum of the commitments, if it is known already."""


class _OpenedPart(NamedTuple):
    """The seals of some entries of a lane."""

    commitments: bytes
    fresh: list[bytes]
    """Those of the commitments that were not known before."""
    proven: list[bytes]


@dataclass(frozen=True)
class _OpenedLane:
    """A lane whose sum opens its meters' commitments."""

    sealed: _SealedLane
    totals: Sequence[int]
    blinding: int


def open_release(
    release: SpooledRelease,
    keys: EpochKeys,
    members: Membership,
    allowance: Allowance,
    pool: Executor,
    known: Known = NOTHING_KNOWN,
) -> Outcome:
    """Open what may be opened of a release that its window was claimed for.

    The seals of all lanes come first. The lanes whose seals open are decrypted in ascending
    order, if they are enough for a total. One that fails does not stop those after it, until
    ``allowance`` ends it: what opens clears its meters.

    Raises:
        OpeningFailed: an entry is of no meter that was ever enrolled; nothing was decrypted.
        OSError, MemoryError, RuntimeError: the machine failed.
    """
    if allowance.failures <= 0:
        return Outcome(None)
    seals = _Seals(release, keys, members, known)
    sealed = [seals.open(lane, pool) for lane in release.lanes]
    proven = tuple(chain.from_iterable(lane.proven for lane in sealed))
    sound = [lane for lane in sealed if not lane.proven]
    if not allowance.permits([lane.lane for lane in sound], release.lanes):
        return Outcome(None, proven=proven)
    opened, failed = _open_lanes(release, sound, keys, allowance.most_failures, pool)
    lanes = [lane.sealed.lane for lane in opened]
    return Outcome(
        opening=_join(opened, release) if allowance.permits(lanes, release.lanes) else None,
        failed=tuple(failed),
        passed=tuple(lane.lane for lane in lanes),
        proven=proven,
    )


class _Seals:
    """The seals of one release; those that were opened before are not opened again."""

    def __init__(
        self, release: SpooledRelease, keys: EpochKeys, members: Membership, known: Known
    ) -> None:
        self._release = release
        self._keys = keys
        self._members = members
        self._known = known

    def open(self, lane: LaneSum, pool: Executor) -> _SealedLane:
        """Every seal of a lane."""
        before = sum(other.count for other in self._release.lanes if other.lane < lane.lane)
        first, last = (POINT_BYTES * at for at in (before, before + lane.count))
        known, point = self._known.commitments[first:last], self._known.sums.get(lane.lane)
        pieces: list[tuple[bytes, bytes]] = []
        for chunk in self._release.chunks_of(lane.lane):
            for entries in cut(chunk, THREADS):
                size = len(entries) // ENTRY_BYTES * POINT_BYTES
                pieces.append((entries, known[:size]))
                known = known[size:]
        parts = list(pool.map(lambda piece: self._open_entries(*piece), pieces))
        proven = tuple(chain.from_iterable(part.proven for part in parts))
        commitments = b"".join(part.commitments for part in parts)
        if point is not None:
            point = add_points([point, *chain.from_iterable(part.fresh for part in parts)])
        return _SealedLane(lane, commitments, proven, point)

    def _open_entries(self, entries: bytes, known: bytes) -> _OpenedPart:
        commitments, fresh, proven = bytearray(), list[bytes](), list[bytes]()
        for at, data in enumerate(split_entries(entries)):
            commitment = known[POINT_BYTES * at : POINT_BYTES * (at + 1)]
            if commitment in _UNKNOWN:
                opened = self._open(data)
                if opened is None:
                    proven.append(data[:ID_BYTES])
                    continue
                fresh.append(opened)
                commitment = opened
            commitments += commitment
        return _OpenedPart(bytes(commitments), fresh, proven)

    def _open(self, data: bytes) -> bytes | None:
        header = self._release.header
        place = self._members.place(data[:ID_BYTES])
        if place is None:
            raise OpeningFailed
        entry = Entry.decode(data, header.parameters_digest, header.window_start)
        return open_seal(entry, place, self._members.at(place), self._keys)


def _open_lanes(
    release: SpooledRelease,
    sealed: Sequence[_SealedLane],
    keys: EpochKeys,
    most_failures: int,
    pool: Executor,
) -> tuple[list[_OpenedLane], list[int]]:
    """The lanes that open and the numbers of those that do not, in ascending order."""
    policy, epoch = keys.parameters.policy, keys.parameters.epoch
    window_start = release.header.window_start
    generators = Generators.derive(
        policy.city_id, epoch.epoch_id, window_start, policy.register_names
    )
    points = list(pool.map(_point, sealed))
    opened: list[_OpenedLane] = []
    failed: list[int] = []
    for lane, point in zip(sealed, points, strict=True):
        if len(failed) >= most_failures:
            break
        found = _open_lane(lane, point, generators, keys, window_start)
        if found is None:
            failed.append(lane.lane.lane)
        else:
            opened.append(found)
    return opened, failed


def _open_lane(
    sealed: _SealedLane, point: bytes, generators: Generators, keys: EpochKeys, window_start: int
) -> _OpenedLane | None:
    """A lane opened, or None.

    Every check is made whatever the others found, so that the time it takes tells no more than
    that the lane failed.
    """
    policy, lane = keys.parameters.policy, sealed.lane
    try:
        slots, whole = keys.slot_sums(window_start, lane), True
    except MACHINE_FAILURES:
        raise
    except Exception as error:
        if not isinstance(error, OpeningFailed):
            _log.error("a lane cannot be decrypted", exc_info=error)
        slots, whole = [0] * policy.layout.slots, False
    totals, blinding = policy.layout.from_slot_sums(slots)
    holds = generators.commit(totals, blinding) == point
    bounds = [register.bound * lane.count for register in policy.registers]
    within = all(0 <= total <= bound for total, bound in zip(totals, bounds, strict=True))
    return _OpenedLane(sealed, totals, blinding) if whole and holds and within else None


def _join(opened: Sequence[_OpenedLane], release: SpooledRelease) -> Opening:
    kept = {lane.sealed.lane.lane for lane in opened}
    return Opening(
        totals=tuple(map(sum, zip(*(lane.totals for lane in opened), strict=True))),
        blinding=sum(lane.blinding for lane in opened) % GROUP_ORDER,
        commitments=b"".join(lane.sealed.commitments for lane in opened),
        count=sum(lane.sealed.lane.count for lane in opened),
        left_out=tuple(lane.lane for lane in release.lanes if lane.lane not in kept),
    )


def meters_of(release: SpooledRelease, lanes: Iterable[int]) -> list[list[bytes]]:
    """The meter ids in each of some lanes."""
    return [
        [data[:ID_BYTES] for chunk in release.chunks_of(lane) for data in split_entries(chunk)]
        for lane in lanes
    ]


def _point(lane: _SealedLane) -> bytes:
    if lane.point is not None:
        return lane.point
    points = lane.commitments
    return add_points(points[at : at + POINT_BYTES] for at in range(0, len(points), POINT_BYTES))
