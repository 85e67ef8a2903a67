"""Recomputing a released total from its opened entries: trust in arithmetic, not in a service.

Needs no homomorphic library. What is checked::

    the total's parameters are the signed ones, its registers and bounds those of the policy
    the entries are those the total names: Merkle root, number
    the meters are distinct and each in its lane, in ascending order, no lane one left out
    each h is the hash of the commitment shown
    each report was signed by its meter               (only with the window's roster)
    sum of commitments == M_1*G_1 + ... + M_R*G_R + B*H

A total with noise shows M_j + eta_j and B + r instead, and a commitment N to (eta, r), which is
added to those of the meters. It is taken only where the signed parameters name such noise. That
eta was drawn as it should be is the key-holder's word: nothing here shows it.

Pedersen commitments bind classically: see docs/threat-model.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gridveil.protocol.city import PPM, CityParameters, CityPolicy
from gridveil.protocol.commitment import (
    IDENTITY,
    Generators,
    add_points,
    commitment_hash,
    parse_commitment,
)
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.merkle import TreeHasher, leaf_hash, verify_inclusion
from gridveil.protocol.noise import MOST_SCALES, SUM_LIMIT, satisfies
from gridveil.protocol.release import ENTRY_BYTES, OPENED_ENTRY_BYTES, Entry, Total
from gridveil.protocol.report import Claim
from gridveil.protocol.roster import Member
from gridveil.protocol.signing import verify
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.windows import lane_count, lane_of


@dataclass(frozen=True)
class Verification:
    """What held; there is none of a total that does not verify."""

    meters: int
    """Distinct meters whose commitments were added."""
    lanes: int
    signatures_checked: bool
    """Whether a roster was given, and every meter's signature checked with it."""
    noisy: bool = False
    """Whether the total has noise, which is the key-holder's word."""


class Verifier:
    """Checks one total while its opened entries arrive; memory does not grow with them."""

    def __init__(
        self,
        total: Total,
        parameters: CityParameters,
        roster: Mapping[bytes, Member] | None = None,
    ) -> None:
        """Check what needs no entries.

        Args:
            total: opened with the pinned identity key.
            parameters: of the total's window, opened with the pinned identity key.
            roster: members by meter id of the roster version in force for the window.

        Raises:
            MalformedInput: DIGEST_MISMATCH for other parameters than the total's; COHORT_INVALID
                or OPENING_FAILED for a total outside the policy.
        """
        check_policy(total, parameters)
        self._total = total
        self._parameters = parameters
        self._roster = roster
        self._tree = TreeHasher()
        self._sum = IDENTITY
        self._meters = 0
        self._last = (-1, b"")
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        """The next opened entries, ascending by (lane, meter); a chunk may end within one.

        Raises:
            MalformedInput: COHORT_INVALID, DIGEST_MISMATCH or FIELD_FORMAT.
            NotAuthentic: SIGNATURE_INVALID.
        """
        data = self._rest + chunk
        whole = len(data) // OPENED_ENTRY_BYTES * OPENED_ENTRY_BYTES
        for at in range(0, whole, OPENED_ENTRY_BYTES):
            self._add_entry(data[at : at + OPENED_ENTRY_BYTES])
        self._rest = data[whole:]

    def finish(self) -> Verification:
        """The result, after all entries.

        Raises:
            MalformedInput: DIGEST_MISMATCH, COHORT_INVALID, or OPENING_FAILED if the total is
                not what the meters committed to.
        """
        total = self._total
        if self._rest or self._tree.root() != total.entries_root:
            raise MalformedInput(Reason.DIGEST_MISMATCH, "these are not the entries of the total")
        if self._meters != total.count:
            raise MalformedInput(Reason.COHORT_INVALID, "the total counts other than its entries")
        generators = Generators.derive(
            total.city_id,
            total.epoch_id,
            total.window_start,
            self._parameters.policy.register_names,
        )
        sums = [register.sum for register in total.registers]
        committed = add_points([self._sum, *([total.added.commitment] if total.added else [])])
        if generators.commit(sums, int.from_bytes(total.blinding, "little")) != committed:
            raise MalformedInput(
                Reason.OPENING_FAILED, "the total does not open the meters' commitments"
            )
        return Verification(
            self._meters, total.lanes, self._roster is not None, total.noise is not None
        )

    def _add_entry(self, data: bytes) -> None:
        entry, commitment, lane = _open_entry(data, self._total)
        place = lane, entry.claim.meter_id
        if place <= self._last:
            raise MalformedInput(Reason.COHORT_INVALID, "the meters are not distinct and in order")
        self._check_signature(entry)
        self._tree.append(leaf_hash(data))
        self._sum = add_points((self._sum, commitment))
        self._last = place
        self._meters += 1

    def _check_signature(self, entry: Entry) -> None:
        if self._roster is None:
            return
        member = self._roster.get(entry.claim.meter_id)
        if member is None:
            raise MalformedInput(Reason.COHORT_INVALID, "a meter was not enrolled")
        verify(member.signing_key, entry.claim.transcript(), entry.signature)


def _open_entry(data: bytes, total: Total) -> tuple[Entry, bytes, int]:
    """An opened entry that a total may count: the entry, its commitment, its lane."""
    entry = Entry.decode(data[:ENTRY_BYTES], total.parameters_digest, total.window_start)
    meter_id = entry.claim.meter_id
    lane = lane_of(total.epoch_id, total.window_start, meter_id, total.lanes)
    if lane in total.left_out:
        raise MalformedInput(Reason.COHORT_INVALID, "an entry is of a lane that was left out")
    commitment = parse_commitment(data[ENTRY_BYTES:])
    shown = commitment_hash(total.city_id, total.epoch_id, total.window_start, meter_id, commitment)
    if shown != entry.claim.commitment_hash:
        raise MalformedInput(Reason.DIGEST_MISMATCH, "a commitment is not the one reported")
    return entry, commitment, lane


def verify_own_entry(
    total: Total, member: Member, opened_entry: bytes, index: int, proof: Sequence[bytes]
) -> Claim:
    """Check that a total counts a meter's own report; what was reported.

    The report is the meter's: only its key can have signed it. The total counts it: it is a leaf of
    the tree that the signed total names. It counts it once if the leaves ascend strictly, which
    the key-holder checks before it opens anything, and which anybody who holds all entries can
    check with :class:`Verifier`: both speak of the same tree.

    Args:
        total: opened with the pinned identity key.
        member: the meter's id and keys, its own knowledge.
        opened_entry: 228 bytes.
        index: its leaf in the tree under the entries root.
        proof: inclusion proof (RFC 9162).

    Raises:
        MalformedInput: the entry is another meter's or of a lane that was left out
            (COHORT_INVALID), malformed, or does not show its commitment (DIGEST_MISMATCH).
        NotAuthentic: SIGNATURE_INVALID if this meter did not sign it, PROOF_INVALID if the total
            does not count it.
    """
    entry, _, _ = _open_entry(opened_entry, total)
    if entry.claim.meter_id != member.meter_id:
        raise MalformedInput(Reason.COHORT_INVALID, "the entry is another meter's")
    verify(member.signing_key, entry.claim.transcript(), entry.signature)
    verify_inclusion(leaf_hash(opened_entry), index, total.count, proof, total.entries_root)
    return entry.claim


def check_policy(total: Total, parameters: CityParameters) -> None:
    """Refuse a total that its own city parameters rule out; see :class:`Verifier`."""
    policy, epoch = parameters.policy, parameters.epoch
    if total.parameters_digest != parameters.digest or total.city_id != policy.city_id:
        raise MalformedInput(Reason.DIGEST_MISMATCH, "these are not the total's parameters")
    named = tuple((register.name, register.unit) for register in policy.registers)
    checks = {
        "epoch": total.epoch_id == epoch.epoch_id and epoch.serves(total.window_start),
        "window": total.window_length == policy.window_length,
        "registers": tuple((r.name, r.unit) for r in total.registers) == named,
        "lanes": total.lanes == lane_count(total.enrolled, policy.crypto, policy.layout.slots),
        "cohort": total.count >= policy.min_cohort,
        "coverage": total.count * PPM >= policy.min_coverage_ppm * total.enrolled,
        "noise": satisfies(total.noise, policy.noise.window if policy.noise else None),
    }
    for what, holds in checks.items():
        if not holds:
            raise MalformedInput(Reason.COHORT_INVALID, f"the total's {what} breaks the policy")
    if not _is_within(total, policy) or int.from_bytes(total.blinding, "little") >= GROUP_ORDER:
        raise MalformedInput(Reason.OPENING_FAILED, "a sum is beyond what the meters can report")


def _is_within(total: Total, policy: CityPolicy) -> bool:
    """Whether each sum is one that the meters can report, or that noise can make of it."""
    noise, bounds = total.noise, policy.bounds
    for register, bound in zip(total.registers, bounds, strict=True):
        room = MOST_SCALES * noise.scale(bound, len(bounds)) if noise else 0
        if not -room <= register.sum <= bound * total.count + room:
            return False
    return all(abs(register.sum) < SUM_LIMIT for register in total.registers)


def verify_total(
    total: Total,
    opened_entries: Iterable[bytes],
    parameters: CityParameters,
    roster: Mapping[bytes, Member] | None = None,
) -> Verification:
    """Check a total against its opened entries, or raise what :class:`Verifier` raises."""
    verifier = Verifier(total, parameters, roster)
    for chunk in opened_entries:
        verifier.add(chunk)
    return verifier.finish()
