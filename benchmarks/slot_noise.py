"""Measure the noise of decrypted slots beside what the parameter sets compute.

    python benchmarks/slot_noise.py [--keys 3] [--reports 2000]

For each set and each of several fresh keys: random reports, each decrypted by itself, and their
sum. docs/protocol.md states the result.
"""

from __future__ import annotations

import argparse
import math
import secrets

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi

from gridveil.encryption import Encryptor, saved, seal_array, seal_payload
from gridveil.protocol.ciphertext import Residues, add, parse_ciphertext
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.parameter_sets import (
    PARAMETER_SETS,
    SLOT_TOLERANCE,
    ParameterSet,
    parameter_set,
)

SLOTS = 64
_SECRET_HEAD_BYTES = 32 + 8 + 8


def fresh_key(parameters: ParameterSet) -> tuple[bytes, list[int]]:
    """SEAL's public key, and the residues of the secret key modulo q."""
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(parameters.degree)
    primes = sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    made.set_coeff_modulus(primes)
    keys = sealapi.KeyGenerator(sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128))
    public = sealapi.PublicKey()
    keys.create_public_key(public)
    body = seal_payload(saved(keys.secret_key()))[_SECRET_HEAD_BYTES:]
    residues = seal_array(body, len(primes) * parameters.degree)[: parameters.degree]
    return saved(public), [int(residue) for residue in residues]


def deviations(
    ciphertext: Residues, truth: NDArray[np.int64], secret: list[int], parameters: ParameterSet
) -> NDArray[np.complex128]:
    """What each slot is off by, real and imaginary part."""
    coefficients = decrypt_folded(ciphertext, secret, parameters, SLOTS)
    return slot_values(coefficients, parameters, SLOTS) - truth


def measure(parameters: ParameterSet, reports: int) -> tuple[float, float, float]:
    """One key: worst deviation of the sum, std of a part of an average slot, worst to average."""
    public, secret = fresh_key(parameters)
    encryptor = Encryptor(parameters, SLOTS, public)
    truth = np.zeros(SLOTS, dtype=np.int64)
    ciphertexts, errors = [], []
    for _ in range(reports):
        slot_bytes = secrets.token_bytes(SLOTS)
        values = np.frombuffer(slot_bytes, dtype=np.uint8).astype(np.int64)
        ciphertexts.append(parse_ciphertext(encryptor.encrypt(slot_bytes), parameters, SLOTS))
        errors.append(deviations(ciphertexts[-1], values, secret, parameters))
        truth += values
    total = add(ciphertexts, parameters)
    off = deviations(total, truth, secret, parameters)
    opened = slot_values(decrypt_folded(total, secret, parameters, SLOTS), parameters, SLOTS)
    assert checked_slot_sums(opened, reports) == list(truth)
    variance = np.mean(np.abs(np.array(errors)) ** 2, axis=0) / 2
    worst = max(np.abs(off.real).max(), np.abs(off.imag).max())
    spread = math.sqrt(variance.max() / variance.mean())
    return float(worst), math.sqrt(variance.mean()), spread


def main() -> None:
    """Print one block a set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument("--reports", type=int, default=2000)
    chosen = parser.parse_args()
    for name in PARAMETER_SETS:
        parameters = parameter_set(name)
        runs = [measure(parameters, chosen.reports) for _ in range(chosen.keys)]
        average = math.sqrt(sum(std**2 for _, std, _ in runs) / len(runs))
        full = parameters.meters_per_lane(SLOTS)
        worst_slot = average * parameters.worst_slot(SLOTS) * math.sqrt(full)
        print(f"{name}, {SLOTS} slots, {chosen.keys} keys, {chosen.reports} reports each")
        print(f"  sum of {chosen.reports}: worst deviation {max(w for w, _, _ in runs):.2g}")
        print(f"  one report, std of a slot's part: {average:.2g} measured,", end=" ")
        print(f"{parameters.slot_noise_std(SLOTS):.2g} computed")
        ratios = ", ".join(f"{ratio:.2f}" for _, _, ratio in runs)
        print(f"  worst slot to average: {ratios} measured,", end=" ")
        print(f"at most {parameters.worst_slot(SLOTS):.2f} computed")
        print(f"  {full} reports: std {average * math.sqrt(full):.2g}, worst slot", end=" ")
        print(f"{worst_slot:.2g}: the tolerance is {SLOT_TOLERANCE / worst_slot:.1f} sigma")


if __name__ == "__main__":
    main()
