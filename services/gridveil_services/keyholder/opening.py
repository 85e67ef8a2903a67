"""Opening a claimed release: the seals, the sums, and the equation that ties them together.

    S_1*G_1 + S_2*G_2 + ... + B*H  ==  sum of the commitments of the lane's meters

for every lane, where each S holds the sums of four registers. All of it or nothing: one lane that
does not open refuses its window.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, pairwise

from gridveil.protocol.commitment import (
    POINT_BYTES,
    Generators,
    add_points,
    commitment_hash,
    parse_commitment,
)
from gridveil.protocol.release import Entry, LaneSum, split_entries
from gridveil.protocol.sealing import open_sealed
from gridveil.protocol.slots import GROUP_ORDER
from gridveil_services.keyholder.cohort import THREADS, cut
from gridveil_services.keyholder.epoch_keys import EpochKeys, OpeningFailed
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.spool import SpooledRelease


@dataclass(frozen=True)
class Opening:
    """What the commitments of a release open to."""

    totals: tuple[int, ...]
    """Of each register, in its unit."""
    blinding: int
    """B mod the group order."""
    commitments: bytes
    """32 bytes an entry, in the order of the entries."""


def open_release(
    release: SpooledRelease, keys: EpochKeys, members: Membership, pool: Executor
) -> Opening:
    """The totals of a release that its window was claimed for.

    The seals come first: one that does not open refuses the release before any decryption.

    Raises:
        OpeningFailed, or a GridveilError of the protocol: it does not open. The cause is for
            nobody outside.
    """
    commitments = _open_seals(release, keys, members, pool)
    sums = _lane_points(release.lanes, commitments, pool)
    opened = keys.slot_sums(release.header.window_start, release.lanes)
    parameters = keys.parameters
    policy = parameters.policy
    generators = Generators.derive(
        policy.city_id,
        parameters.epoch.epoch_id,
        release.header.window_start,
        policy.register_names,
    )
    lanes = [policy.layout.from_slot_sums(slots) for slots in opened]
    holds = [generators.commit(*lane) == sum_ for lane, sum_ in zip(lanes, sums, strict=True)]
    if not all(holds):
        raise OpeningFailed
    totals = tuple(map(sum, zip(*(totals for totals, _ in lanes), strict=True)))
    bounds = (register.bound * release.header.count for register in policy.registers)
    if not all(0 <= total <= bound for total, bound in zip(totals, bounds, strict=True)):
        raise OpeningFailed
    return Opening(totals, sum(blinding for _, blinding in lanes) % GROUP_ORDER, commitments)


def _open_seals(
    release: SpooledRelease, keys: EpochKeys, members: Membership, pool: Executor
) -> bytes:
    def open_entries(entries: bytes) -> bytes:
        return b"".join(
            _open_seal(Entry.decode(data, *named), keys, members) for data in split_entries(entries)
        )

    named = release.header.parameters_digest, release.header.window_start
    found = bytearray()
    for chunk in release.chunks():
        for commitments in pool.map(open_entries, cut(chunk, THREADS)):
            found += commitments
    return bytes(found)


def _open_seal(entry: Entry, keys: EpochKeys, members: Membership) -> bytes:
    claim, parameters = entry.claim, keys.parameters
    place = members.place(claim.meter_id)
    if place is None:
        raise OpeningFailed
    commitment = open_sealed(
        keys.shared_key(place, members.at(place)),
        claim.sealed_commitment,
        claim.commitment_hash,
        claim.seal_data(),
    )
    shown = commitment_hash(
        parameters.policy.city_id,
        parameters.epoch.epoch_id,
        claim.window_start,
        claim.meter_id,
        commitment,
    )
    if shown != claim.commitment_hash:
        raise OpeningFailed
    return parse_commitment(commitment)


def _lane_points(lanes: list[LaneSum], commitments: bytes, pool: Executor) -> list[bytes]:
    """The sum of each lane's commitments; entries ascend by lane."""
    ends = accumulate((lane.count for lane in lanes), initial=0)
    spans = [commitments[a * POINT_BYTES : b * POINT_BYTES] for a, b in pairwise(ends)]
    return list(pool.map(_add_all, spans))


def _add_all(points: bytes) -> bytes:
    return add_points(points[at : at + POINT_BYTES] for at in range(0, len(points), POINT_BYTES))
