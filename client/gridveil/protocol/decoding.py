"""Exact decryption of a folded sum, with the check of every slot (docs/protocol.md, "Opening").

Only the key-holder's epoch keys may import this module; an import contract holds that. Integers
throughout until the last step: clarity before speed, for a few lanes a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import mul

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.ciphertext import Residues
from gridveil.protocol.parameter_sets import BYTE_MAX, SLOT_TOLERANCE, ParameterSet


class SlotCheckFailed(Exception):
    """A decrypted slot is no sum of bytes. Never crosses the wire: the refusal is uniform."""


def decrypt_folded(
    ciphertext: Residues, secret: Sequence[int], parameters: ParameterSet, slots: int
) -> list[int]:
    """The 2P centred coefficients of the plaintext in the subring, at the scale of the set.

    Args:
        ciphertext: 2P + N residues of a folded ciphertext or sum.
        secret: N residues mod q of the secret key, in SEAL's NTT form.
        parameters: the parameter set.
        slots: P.
    """
    q, block = parameters.modulus, parameters.block(slots)
    values = [int(v) for v in ciphertext]
    c0, c1 = values[: 2 * slots], values[2 * slots :]
    products = list(map(mul, c1, secret))
    folded = [(c + sum(products[at * block : (at + 1) * block])) % q for at, c in enumerate(c0)]
    rows = _inverse_rows(parameters, slots)
    coefficients = (sum(map(mul, row, folded)) % q for row in rows)
    return [c - q if c > q // 2 else c for c in coefficients]


def slot_values(
    coefficients: Sequence[int], parameters: ParameterSet, slots: int
) -> NDArray[np.complex128]:
    """The P complex slots of a subring plaintext, in units of one."""
    scaled = np.array([c / parameters.scale for c in coefficients])
    values: NDArray[np.complex128] = _embedding(slots) @ scaled
    return values


def checked_slot_sums(values: NDArray[np.complex128], meters: int) -> list[int]:
    """The integer of every slot, or SlotCheckFailed.

    Real and imaginary part of every slot must lie within SLOT_TOLERANCE of an integer and of
    zero, and the integer in [0, 255 * meters].
    """
    whole = np.rint(values.real)
    near = np.abs(values.real - whole) <= SLOT_TOLERANCE
    plain = np.abs(values.imag) <= SLOT_TOLERANCE
    possible = (whole >= 0) & (whole <= BYTE_MAX * meters)
    if not bool((near & plain & possible).all()):
        raise SlotCheckFailed
    return [int(v) for v in whole]


@lru_cache
def _inverse_rows(parameters: ParameterSet, slots: int) -> list[list[int]]:
    """Row k holds y_b^-k / N for each block b: 1/2P of the transform and 1/G of the folding."""
    q, n, block = parameters.modulus, parameters.degree, parameters.block(slots)
    bits = n.bit_length() - 1
    exponents = [block * (2 * _reverse(b * block, bits) + 1) for b in range(2 * slots)]
    inverses = [pow(parameters.root, -e, q) for e in exponents]
    row = [pow(n, -1, q)] * (2 * slots)
    rows = []
    for _ in range(2 * slots):
        rows.append(row)
        row = [r * y % q for r, y in zip(row, inverses, strict=True)]
    return rows


@lru_cache
def _embedding(slots: int) -> NDArray[np.complex128]:
    """exp(i pi 3^k j / 2P) for slot k and coefficient j: the canonical embedding of the subring."""
    size = 2 * slots
    turns = np.array(
        [[pow(3, k, 2 * size) * j % (2 * size) for j in range(size)] for k in range(slots)]
    )
    return np.exp(1j * np.pi * turns / size)


def _reverse(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)
