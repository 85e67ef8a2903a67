"""Sums of ciphertexts as they arrived: checked and added many at a time, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gridveil.protocol.ciphertext import Residues, add
from gridveil.protocol.parameter_sets import ParameterSet


def canonical_sum(
    ciphertexts: Sequence[bytes], parameters: ParameterSet, slots: int
) -> Residues | None:
    """The sum mod q of ciphertexts, or None if there are none or one of them is not canonical.

    Accepts what ``parse_ciphertext`` accepts, which also says what is wrong with the others.
    """
    size = parameters.ciphertext_bytes(slots)
    if not ciphertexts or any(len(ciphertext) != size for ciphertext in ciphertexts):
        return None
    rows = np.frombuffer(b"".join(ciphertexts), dtype="<u8").reshape(len(ciphertexts), -1)
    if rows.max() >= parameters.modulus:
        return None
    # The last residue of c1 alone is zero in none of 2^50 honest reports.
    if not rows[:, -1].all() and not rows[:, 2 * slots :].any(axis=1).all():
        return None
    if len(ciphertexts) > parameters.unreduced_terms:
        return add(rows, parameters)
    total: Residues = np.add.reduce(rows, axis=0, dtype=np.uint64)
    total %= np.uint64(parameters.modulus)
    return total
