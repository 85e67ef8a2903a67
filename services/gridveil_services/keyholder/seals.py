"""Opening what a meter sealed, and sealing its own entry for it."""

from __future__ import annotations

from gridveil.protocol.commitment import POINT_BYTES, commitment_hash, parse_commitment
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.own_entry import SEALED_ENTRY_BYTES, TAG_BYTES, OwnEntryKey
from gridveil.protocol.release import Entry
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import open_sealed
from gridveil_services.keyholder.epoch_keys import EpochKeys

OWN_ROW_BYTES = TAG_BYTES + SEALED_ENTRY_BYTES

NOT_OPENED = bytes(POINT_BYTES)
"""In the place of a commitment that is not there; a meter's is never this point."""


def open_seal(entry: Entry, place: int, member: Member, keys: EpochKeys) -> bytes | None:
    """The commitment that a meter sealed, 32 bytes, or None if it sealed none that its h names.

    Args:
        entry: signed by its meter.
        place: the meter's among all that were ever enrolled.
        member: the meter.
        keys: of the entry's epoch.

    Raises:
        OpeningFailed: the epoch was destroyed.
    """
    claim, parameters = entry.claim, keys.parameters
    key = keys.shared_key(place, member)
    try:
        commitment = parse_commitment(
            open_sealed(key, claim.sealed_commitment, claim.commitment_hash, claim.seal_data())
        )
    except GridveilError:
        return None
    shown = commitment_hash(
        parameters.policy.city_id,
        parameters.epoch.epoch_id,
        claim.window_start,
        claim.meter_id,
        commitment,
    )
    return commitment if shown == claim.commitment_hash else None


def seal_own(
    opened_entry: bytes,
    leaf: bytes,
    place: int,
    member: Member,
    window_start: int,
    keys: EpochKeys,
) -> bytes:
    """A meter's own entry for that meter alone: its tag and the sealed entry, 260 bytes.

    Args:
        opened_entry: its entry and commitment, 228 bytes.
        leaf: their leaf hash.
        place: the meter's among all that were ever enrolled.
        member: the meter.
        window_start: of the entry's window.
        keys: of the entry's epoch.

    Raises:
        OpeningFailed: the epoch was destroyed.
    """
    own = OwnEntryKey.derive(keys.shared_key(place, member), window_start)
    return own.tag + own.seal(opened_entry, leaf)
