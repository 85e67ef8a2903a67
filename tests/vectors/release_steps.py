"""Vectors of a release: its opening, its total, each meter's own entry, and the same with noise."""

from __future__ import annotations

import base64
from dataclasses import replace

from gridveil.protocol.ciphertext import Residues, add, parse_ciphertext, to_bytes
from gridveil.protocol.commitment import add_points
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.merkle import inclusion_proof, leaf_hash
from gridveil.protocol.noise import Mechanism, Noise
from gridveil.protocol.own_entry import OwnEntryKey
from gridveil.protocol.release import (
    EntriesDigest,
    Entry,
    LaneSum,
    RegisterTotal,
    ReleaseHeader,
    Total,
    TotalNoise,
    entries_root,
    release_digest,
    split_opened,
)
from gridveil.protocol.report import Report
from gridveil.protocol.slots import GROUP_ORDER
from tests.vectors.material import (
    METERS,
    WINDOW,
    VectorCity,
    city,
    fixed,
)
from tests.vectors.steps import (
    ROSTER_VERSION,
    Json,
    seal_key,
    vector_report,
    window_generators,
)

ADDED = {
    "ckks-2048": (Noise(Mechanism.GAUSSIAN, 125_000), (-812_345, 3, 0, -(2**45))),
    "ckks-4096": (Noise(Mechanism.LAPLACE, 500_000), (-1_234_567, 42)),
}
"""Noise of each city's total: sums may be negative."""


def release(name: str) -> Json:
    """The three reports as a release, its opening and its total."""
    place = city(name)
    made = [vector_report(place, index) for index in range(len(METERS))]
    total_sum = _lane_sum(place, [report for report, _ in made])
    opened = _opened(place, total_sum, len(made))
    entries = sorted((Entry(r.claim, r.signature).encode(), c) for r, c in made)
    header = ReleaseHeader(
        place.parameters.policy.city_id,
        place.parameters.digest,
        WINDOW,
        ROSTER_VERSION,
        1,
        len(made),
    )
    running = EntriesDigest()
    running.update(b"".join(entry for entry, _ in entries))
    lane = LaneSum(0, len(made), to_bytes(total_sum))
    digest = release_digest(header, [lane], running.digest())
    opened_entries = b"".join(entry + point for entry, point in entries)
    total = _total(place, header, digest, entries_root([opened_entries]), opened)
    points = [point for _, point in entries]
    return {
        "about": "One lane with the three reports. A real release has at least 100 meters.",
        "sum_b64": base64.b64encode(lane.ciphertext).decode(),
        **opened,
        "commitments_sum": add_points(points).hex(),
        "opening": window_generators(place)
        .commit(opened["totals"], int(opened["blinding_mod_order"]))
        .hex(),
        "entries": b"".join(entry for entry, _ in entries).hex(),
        "entries_digest": running.digest().hex(),
        "release_digest": digest.hex(),
        "opened_entries": opened_entries.hex(),
        "entries_root": entries_root([opened_entries]).hex(),
        "own_entries": _own_entries(place, opened_entries),
        "total": total.encode().hex(),
        "total_signature": total.sign(place.identity).hex(),
        "noisy": _noisy(place, total),
    }


def _noisy(place: VectorCity, exact: Total) -> Json:
    """The total with written-down noise, which a key-holder draws afresh and tells nobody."""
    noise, values = ADDED[place.set_name]
    blinding = int.from_bytes(fixed(f"{place.set_name} noise", 64), "little") % GROUP_ORDER
    commitment = window_generators(place).commit(values, blinding)
    sums = [register.sum + value for register, value in zip(exact.registers, values, strict=True)]
    total = replace(
        exact,
        registers=tuple(
            replace(register, sum=value)
            for register, value in zip(exact.registers, sums, strict=True)
        ),
        blinding=((int.from_bytes(exact.blinding, "little") + blinding) % GROUP_ORDER).to_bytes(
            32, "little"
        ),
        added=TotalNoise(noise, commitment),
    )
    return {
        "mechanism": noise.mechanism,
        "loss_ppm": noise.loss_ppm,
        "scales": [
            noise.scale(bound, len(values)).hex() for bound in place.parameters.policy.bounds
        ],
        "values": list(values),
        "blinding": str(blinding),
        "commitment": commitment.hex(),
        "sums": sums,
        "blinding_sum": total.blinding.hex(),
        "total": total.encode().hex(),
        "total_signature": total.sign(place.identity).hex(),
    }


def _own_entries(place: VectorCity, opened: bytes) -> list[Json]:
    """Each meter's own entry, as it is published for that meter."""
    entries = list(split_opened(opened))
    leaves = [leaf_hash(entry) for entry in entries]
    found = []
    for meter in METERS:
        index = next(at for at, entry in enumerate(entries) if entry[:16] == meter.meter_id)
        own = OwnEntryKey.derive(seal_key(place, meter), WINDOW)
        found.append(
            {
                "meter_id": meter.meter_id.hex(),
                "index": index,
                "leaf_hash": leaves[index].hex(),
                "tag": own.tag.hex(),
                "key": own.key.hex(),
                "sealed_entry": own.seal(entries[index], leaves[index]).hex(),
                "proof": [node.hex() for node in inclusion_proof(leaves, index)],
            }
        )
    return found


def _lane_sum(place: VectorCity, reports_: list[Report]) -> Residues:
    slots_ = place.parameters.policy.layout.slots
    parsed = [parse_ciphertext(r.ciphertext, place.crypto, slots_) for r in reports_]
    return add(parsed, place.crypto)


def _opened(place: VectorCity, lane_sum: Residues, count: int) -> Json:
    layout = place.parameters.policy.layout
    coefficients = decrypt_folded(lane_sum, place.secret, place.crypto, layout.slots)
    sums = checked_slot_sums(slot_values(coefficients, place.crypto, layout.slots), count)
    totals, blinding = layout.from_slot_sums(sums)
    return {
        "coefficients": coefficients,
        "slot_sums": sums,
        "totals": totals,
        "blinding_mod_order": str(blinding),
    }


def _total(
    place: VectorCity, header: ReleaseHeader, digest: bytes, root: bytes, opened: Json
) -> Total:
    policy, epoch = place.parameters.policy, place.parameters.epoch
    return Total(
        city_id=policy.city_id,
        epoch_id=epoch.epoch_id,
        parameters_digest=header.parameters_digest,
        window_start=WINDOW,
        window_length=policy.window_length,
        roster_version=ROSTER_VERSION,
        enrolled=len(METERS),
        count=header.count,
        lanes=header.lanes,
        left_out=(),
        release_digest=digest,
        entries_root=root,
        registers=tuple(
            RegisterTotal(register.name, register.unit, value)
            for register, value in zip(policy.registers, opened["totals"], strict=True)
        ),
        blinding=int(opened["blinding_mod_order"]).to_bytes(32, "little"),
    )
