"""Raw CKKS decryptions give the secret key away; what the key-holder returns does not.

The attack of Li and Micciancio (ePrint 2020/1533): a decryption is m = c0 + c1*s. Who holds the
ciphertext and learns m solves for s. A decoded vector of floats *is* m, for its noise can be read
off; integers are not, for the noise is gone. The attacker here is an operator with the
aggregator's ciphertexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tenseal
from numpy.typing import NDArray

from gridveil.encryption import ciphertext_of_vector, seal_residues
from gridveil.protocol.parameter_sets import parameter_set
from tests.support.seal import SealKeys
from tests.vectors.reference import Polynomial, Ring

CRYPTO = parameter_set("ckks-2048")
RING = Ring(CRYPTO.degree, CRYPTO.modulus)
Q = CRYPTO.modulus
SLOTS = 64
READING = bytes([173, 2, 0, 0]) + bytes(range(60))


@dataclass(frozen=True)
class Sum:
    """What the attacker has of one window: the ciphertext, and what its decryption was told as."""

    c0: Polynomial
    c1: Polynomial
    told: NDArray[np.complex128]
    """N/2 slots."""

    @property
    def plaintext(self) -> Polynomial:
        """The polynomial whose slots were told, in SEAL's transformed form."""
        return RING.transform(encode(self.told))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SealKeys:
    return SealKeys(CRYPTO, tmp_path_factory.mktemp("keys"))


def windows(keys: SealKeys, count: int) -> list[tenseal.CKKSVector]:
    """Sums of three meters each."""
    meters = ([keys.encrypt(READING) for _ in range(3)] for _ in range(count))
    return [first + second + third for first, second, third in meters]


def seen(keys: SealKeys, vector: tenseal.CKKSVector, told: NDArray[np.complex128]) -> Sum:
    c0, c1 = seal_residues(ciphertext_of_vector(vector.serialize()), CRYPTO)
    return Sum([int(r) for r in c0], [int(r) for r in c1], told)


def encode(slots: NDArray[np.complex128]) -> list[int]:
    """Integer coefficients at the set's scale: the inverse of the canonical embedding."""
    degree = CRYPTO.degree
    turns = np.array([pow(3, k, 2 * degree) for k in range(degree // 2)])
    angles = np.outer(np.arange(degree), turns) % (2 * degree)
    values = (np.exp(-1j * np.pi * angles / degree) @ slots).real * 2 / degree
    return [round(float(value) * CRYPTO.scale) for value in values]


def key_from(window: Sum) -> Polynomial:
    """s = (m - c0) / c1, residue by residue."""
    return [
        (m - c0) * pow(c1, -1, Q) % Q
        for m, c0, c1 in zip(window.plaintext, window.c0, window.c1, strict=True)
    ]


def key_from_real_parts(first: Sum, second: Sum) -> Polynomial:
    """Twice the real parts are the slots of m(X) + m(1/X): an equation a pair of roots and window.

    Residue i belongs to psi^(2 brv(i) + 1), so the last residue but i to its inverse.
    """
    sums = [RING.transform(encode(2 * window.told)) for window in (first, second)]
    secret = [0] * CRYPTO.degree
    for at in range(CRYPTO.degree // 2):
        other = CRYPTO.degree - 1 - at
        (a, b), (c, d) = ((w.c1[at], w.c1[other]) for w in (first, second))
        e, f = (
            sums_[at] - w.c0[at] - w.c0[other]
            for sums_, w in zip(sums, (first, second), strict=True)
        )
        inverse = pow(a * d - b * c, -1, Q)
        secret[at] = (e * d - b * f) * inverse % Q
        secret[other] = (a * f - e * c) * inverse % Q
    return secret


def right(secret: Sequence[int], keys: SealKeys) -> int:
    """How many residues of a candidate are those of the key."""
    return sum(mine == true for mine, true in zip(secret, keys.secret, strict=True))


def test_one_window_of_raw_complex_slots_gives_the_secret_key_away(keys: SealKeys) -> None:
    (vector,) = windows(keys, 1)
    assert key_from(seen(keys, vector, keys.decode(vector))) == keys.secret


def test_two_windows_of_raw_real_slots_give_the_secret_key_away(keys: SealKeys) -> None:
    first, second = (
        seen(keys, vector, keys.decode(vector).real.astype(complex)) for vector in windows(keys, 2)
    )
    assert key_from_real_parts(first, second) == keys.secret


def test_even_the_integer_of_every_slot_gives_nothing_of_the_key(keys: SealKeys) -> None:
    """More than the key-holder tells: it gives out sums of whole registers, and B mod l."""
    (vector,) = windows(keys, 1)
    integers = np.rint(keys.decode(vector).real)
    assert [int(v) for v in integers[:SLOTS]] == [3 * byte for byte in READING]
    candidate = key_from(seen(keys, vector, integers.astype(complex)))
    assert right(candidate, keys) <= 2
    assert not set(RING.centred(candidate)) <= {-1, 0, 1}


def test_integers_of_two_windows_give_nothing_of_the_key_either(keys: SealKeys) -> None:
    first, second = (
        seen(keys, vector, np.rint(keys.decode(vector).real).astype(complex))
        for vector in windows(keys, 2)
    )
    assert right(key_from_real_parts(first, second), keys) <= 2


def test_a_recovered_key_reads_any_single_report(keys: SealKeys, tmp_path: Path) -> None:
    """What is at stake: the key of one window's raw decryption opens one household's report."""
    (vector,) = windows(keys, 1)
    stolen = key_from(seen(keys, vector, keys.decode(vector)))
    report = keys.encrypt(READING)
    c0, c1 = seal_residues(ciphertext_of_vector(report.serialize()), CRYPTO)
    opened = RING.centred(
        [(int(a) + int(b) * s) % Q for a, b, s in zip(c0, c1, stolen, strict=True)]
    )
    degree = CRYPTO.degree
    turns = [pow(3, k, 2 * degree) for k in range(SLOTS)]
    angles = np.outer(turns, np.arange(degree)) % (2 * degree)
    slots = (np.exp(1j * np.pi * angles / degree) @ np.array(opened, dtype=float)).real
    assert bytes(round(v / CRYPTO.scale) for v in slots) == READING
