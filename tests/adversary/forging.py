"""What an attacker can do with ciphertexts, commitments and the keys of the meters it corrupted.

Everything here is public knowledge: the epoch's public key, the city's parameters, the layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rbcl

from gridveil.protocol.ciphertext import add, to_bytes
from gridveil.protocol.city import CityParameters
from gridveil.protocol.commitment import IDENTITY, add_points, commitment_hash
from gridveil.protocol.layout import sha256
from gridveil.protocol.release import ENTRY_BYTES, LaneSum
from gridveil.protocol.report import Claim, Report, seal_data, sign_report
from gridveil.protocol.sealing import open_sealed, seal, shared_key
from gridveil.protocol.slots import GROUP_ORDER
from tests.support.reports import BuiltRelease, MeterKeys, encryptor

WORD = np.dtype("<u8")


def combined(parameters: CityParameters, *ciphertexts: bytes) -> bytes:
    """The sum of ciphertexts."""
    residues = (np.frombuffer(ciphertext, dtype=WORD) for ciphertext in ciphertexts)
    return to_bytes(add(residues, parameters.policy.crypto))


def scaled(parameters: CityParameters, ciphertext: bytes, factor: int) -> bytes:
    """A ciphertext times an integer, which may be negative."""
    q = parameters.policy.crypto.modulus
    return _words(int(residue) * factor % q for residue in np.frombuffer(ciphertext, dtype=WORD))


def turned(parameters: CityParameters, ciphertext: bytes) -> bytes:
    """A ciphertext times X^(N/2): every slot times i or -i, so that real becomes imaginary."""
    crypto, slots = parameters.policy.crypto, parameters.policy.layout.slots
    q = crypto.modulus
    quarter = pow(crypto.root, crypto.degree // 2, q)
    residues = [int(residue) for residue in np.frombuffer(ciphertext, dtype=WORD)]
    c0, c1 = residues[: 2 * slots], residues[2 * slots :]
    return _words(
        residue * (quarter if at < len(half) // 2 else q - quarter) % q
        for half in (c0, c1)
        for at, residue in enumerate(half)
    )


def lifted_by(parameters: CityParameters, ciphertext: bytes, constant: int) -> bytes:
    """A ciphertext plus an integer in the clear: every slot grows by constant / scale, mod q."""
    policy = parameters.policy
    q, slots = policy.crypto.modulus, policy.layout.slots
    lift = constant * policy.crypto.block(slots)  # folding adds that many equal residues
    residues = [int(residue) for residue in np.frombuffer(ciphertext, dtype=WORD)]
    return _words([(c0 + lift) % q for c0 in residues[: 2 * slots]] + residues[2 * slots :])


def flipped(ciphertext: bytes, bit: int) -> bytes:
    """A ciphertext with one bit changed; bits count from the first byte's lowest."""
    changed = bytearray(ciphertext)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def encrypted(parameters: CityParameters, slots: Sequence[float]) -> bytes:
    """Any slot values at all under the city's key, not only bytes."""
    return encryptor(parameters).encrypt(slots)  # type: ignore[arg-type]


def zero(parameters: CityParameters) -> bytes:
    """A fresh encryption of zero."""
    return encrypted(parameters, [0.0] * parameters.policy.layout.slots)


def slots_of(parameters: CityParameters, values: Sequence[int], blinding: int = 0) -> list[float]:
    """The slots of register values, ready to be tampered with."""
    return [float(byte) for byte in parameters.policy.layout.to_slots(values, blinding)]


def with_sums(release: BuiltRelease, sums: dict[int, bytes]) -> BuiltRelease:
    """The release with other lane ciphertexts, its digest right again."""
    lanes = tuple(
        LaneSum(lane.lane, lane.count, sums.get(lane.lane, lane.ciphertext))
        for lane in release.lanes
    )
    return release.resigned(lanes=lanes)


def sums_of(release: BuiltRelease) -> dict[int, bytes]:
    """The ciphertext of each lane."""
    return {lane.lane: lane.ciphertext for lane in release.lanes}


def split(release: BuiltRelease) -> list[bytes]:
    """The entries of a release."""
    entries = release.entries
    return [entries[at : at + ENTRY_BYTES] for at in range(0, len(entries), ENTRY_BYTES)]


def negated(point: bytes) -> bytes:
    """Minus a commitment."""
    negative: bytes = rbcl.crypto_core_ristretto255_sub(IDENTITY, point)
    return negative


def multiplied(point: bytes, factor: int) -> bytes:
    """A commitment times an integer."""
    scalar = (factor % GROUP_ORDER).to_bytes(32, "little")
    product: bytes = rbcl.crypto_scalarmult_ristretto255(scalar, point)
    return product


def total_of(points: Sequence[bytes]) -> bytes:
    """The sum of commitments."""
    return add_points(points)


def seal_key(parameters: CityParameters, meter: MeterKeys, to: bytes | None = None) -> bytes:
    """The key under which a meter seals: its own secret is enough.

    ``to``: another X25519 public key than the epoch's.
    """
    city, epoch = parameters.policy.city_id, parameters.epoch
    return shared_key(
        meter.sealing_secret, to or epoch.sealing_key, city, epoch.epoch_id, meter.meter_id
    )


def forged_report(
    parameters: CityParameters,
    meter: MeterKeys,
    window: int,
    commitment: bytes,
    ciphertext: bytes,
    *,
    shown: bytes | None = None,
) -> Report:
    """A corrupted meter's report: any commitment with any ciphertext, sealed and signed as it must.

    ``shown``: another h than the commitment's own.
    """
    city, epoch = parameters.policy.city_id, parameters.epoch.epoch_id
    h = shown or commitment_hash(city, epoch, window, meter.meter_id, commitment)
    stated = (parameters.digest, window, meter.meter_id, 0, h)
    digest = sha256(ciphertext)
    sealed = seal(seal_key(parameters, meter), commitment, h, seal_data(*stated, digest))
    return sign_report(Claim(*stated, sealed, digest), ciphertext, meter.signing_key)


def resigned(report: Report, meter: MeterKeys, **changes: object) -> Report:
    """A corrupted meter's report with parts of its claim changed, signed again."""
    claim = report.claim._replace(**changes)  # type: ignore[arg-type]
    return sign_report(claim, report.ciphertext, meter.signing_key)


def commitment_in(parameters: CityParameters, meter: MeterKeys, report: Report) -> bytes:
    """What a meter knows of its own report. No attacker has this of an honest one."""
    claim = report.claim
    return open_sealed(
        seal_key(parameters, meter),
        claim.sealed_commitment,
        claim.commitment_hash,
        claim.seal_data(),
    )


def readable_commitment(parameters: CityParameters, report: Report) -> bytes | None:
    """The commitment, if anybody who sees the report can read it: h tells a hit from a miss."""
    claim, city = report.claim, parameters.policy.city_id
    blob = claim.sealed_commitment
    for at in range(len(blob) - 31):
        guess = blob[at : at + 32]
        found = commitment_hash(
            city, parameters.epoch.epoch_id, claim.window_start, claim.meter_id, guess
        )
        if found == claim.commitment_hash:
            return guess
    return None


def _words(residues: object) -> bytes:
    return np.fromiter(residues, dtype=WORD).tobytes()  # type: ignore[call-overload, no-any-return]
