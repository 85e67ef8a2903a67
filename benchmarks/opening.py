"""The work of opening one lane, step by step and on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fleet import Fleet, batches
from benchmarks.local_city import WINDOW, local_epoch
from benchmarks.measure import ALL_CORES, SERVER_CORE, Spread, pinned, progress, seconds_each
from gridveil.protocol.ciphertext import Residues, add, parse_ciphertext, to_bytes
from gridveil.protocol.commitment import (
    Generators,
    add_points,
    commitment_hash,
    parse_commitment,
)
from gridveil.protocol.release import LaneSum
from gridveil.protocol.report import Claim, parse_report
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import open_sealed
from gridveil.protocol.signing import is_signed_by
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil_services.keyholder.epoch_keys import EpochKeys

REGISTERS = 4
CHECK = "decryption, slots and equation"
"""The opening check proper; the other steps grow with the number of entries."""
CHECKS = ("signatures", "seals", "point additions", CHECK)
"""What is done of every window."""


@dataclass(frozen=True)
class Signed:
    """One entry of a release and whose it is."""

    member: Member
    claim: Claim
    signature: bytes


class Lane:
    """One lane of real reports, and the steps of opening it."""

    def __init__(self, count: int) -> None:
        self.signed, self.secrets = local_epoch(REGISTERS)
        self.keys = EpochKeys(self.signed, self.secrets)
        self.entries: list[Signed] = []
        self.sum = LaneSum(0, count, self._collect(count))
        self.commitments = self.open_seals()
        self.point = add_points(self.commitments)

    def _collect(self, count: int) -> bytes:
        policy = self.keys.parameters.policy
        fleet, sums = Fleet(os.urandom(16)), list[Residues]()
        made = batches(fleet, self.keys.parameters, WINDOW, count, len(ALL_CORES))
        with progress(f"building a lane of {count:,}", count) as advance:
            for batch in made:
                reports = aggregator_pb2.SubmitReportsRequest.FromString(batch).reports
                first = len(self.entries)
                found = [
                    self._take(message, fleet.meter(first + at).member)
                    for at, message in enumerate(reports)
                ]
                sums.append(add(found, policy.crypto))
                advance(len(found))
        return to_bytes(add(sums, policy.crypto))

    def _take(self, message: report_pb2.Report, member: Member) -> Residues:
        report = parse_report(message)
        self.entries.append(Signed(member, report.claim, report.signature))
        policy = self.keys.parameters.policy
        return parse_ciphertext(report.ciphertext, policy.crypto, policy.layout.slots)

    def check_signatures(self) -> None:
        """Every claim's Ed25519 signature."""
        for entry in self.entries:
            signed = is_signed_by(
                entry.member.signing_key, entry.claim.transcript(), entry.signature
            )
            assert signed

    def agree_keys(self) -> None:
        """Every meter's sealing key by X25519 and HKDF: once an epoch, not once a window."""
        fresh = EpochKeys(self.signed, self.secrets)
        for place, entry in enumerate(self.entries):
            fresh.shared_key(place, entry.member)

    def open_seals(self) -> list[bytes]:
        """Every commitment, compared with its hash."""
        return [self._open(place, entry.claim) for place, entry in enumerate(self.entries)]

    def _open(self, place: int, claim: Claim) -> bytes:
        key = self.keys.shared_key(place, self.entries[place].member)
        sealed = claim.sealed_commitment
        opened = open_sealed(key, sealed, claim.commitment_hash, claim.seal_data())
        commitment = parse_commitment(opened)
        city_id = self.keys.parameters.policy.city_id
        epoch_id = self.keys.parameters.epoch.epoch_id
        named = commitment_hash(city_id, epoch_id, WINDOW, claim.meter_id, commitment)
        assert named == claim.commitment_hash
        return commitment

    def add_points(self) -> None:
        """The sum of all commitments."""
        assert add_points(self.commitments) == self.point

    def check_opening(self) -> None:
        """Decrypt the lane, check every slot, and compare with the sum of the commitments."""
        policy, epoch = self.keys.parameters.policy, self.keys.parameters.epoch
        slots = self.keys.slot_sums(WINDOW, self.sum)
        totals, blinding = policy.layout.from_slot_sums(slots)
        generators = Generators.derive(
            policy.city_id, epoch.epoch_id, WINDOW, policy.register_names
        )
        assert generators.commit(totals, blinding) == self.point


def measure(count: int, rounds: int) -> dict[str, Spread]:
    """Milliseconds by step for a lane of ``count`` reports."""
    lane = Lane(count)
    steps: dict[str, Callable[[], object]] = {
        "signatures": lane.check_signatures,
        "sealing keys, once an epoch": lane.agree_keys,
        "seals": lane.open_seals,
        "point additions": lane.add_points,
        CHECK: lane.check_opening,
    }
    with (
        pinned(SERVER_CORE),
        progress(f"opening a lane of {count:,}", rounds * len(steps)) as advance,
    ):
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                taken[name].append(seconds_each(step, 5 if name == CHECK else 1) * 1e3)
                advance(1)
    return {name: Spread.of(times) for name, times in taken.items()}
