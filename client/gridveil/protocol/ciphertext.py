"""Folded canonical ciphertexts: strict parsing, folding and exact sums mod q, in NumPy.

A ciphertext is c0' (2P residues: the projection of c0 to the subring of X^G, in SEAL's
bit-reversed NTT order) and then c1 (N residues), each an unsigned 64-bit little-endian integer
below q. Folding needs no inverse transform: the projection's residue is, up to the factor G that
the decoder takes out, the sum of a block of G neighbouring residues (docs/protocol.md, "Folding").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.parameter_sets import ParameterSet

Residues = NDArray[np.uint64]
_WIRE = np.dtype("<u8")


def parse_ciphertext(data: bytes, parameters: ParameterSet, slots: int) -> Residues:
    """The 2P + N residues of a canonical ciphertext from another party.

    Raises:
        MalformedInput: CIPHERTEXT_MALFORMED for no or broken residues, CIPHERTEXT_PARAMS for
            whole residues of another shape, CIPHERTEXT_NON_CANONICAL for one that is not below q,
            CIPHERTEXT_TRANSPARENT if c1 is zero.
    """
    residues = parse_sum(data, parameters, slots)
    if not residues[2 * slots :].any():
        raise MalformedInput(Reason.CIPHERTEXT_TRANSPARENT, "c1 is zero")
    return residues


def parse_sum(data: bytes, parameters: ParameterSet, slots: int) -> Residues:
    """The 2P + N residues of a sum of ciphertexts.

    Like :func:`parse_ciphertext`, but c1 may be zero: two meters can choose reports that cancel,
    and must not be able to make their lane's sum unreadable.
    """
    if not data or len(data) % 8:
        raise MalformedInput(Reason.CIPHERTEXT_MALFORMED, "not a sequence of 64-bit residues")
    if len(data) != parameters.ciphertext_bytes(slots):
        raise MalformedInput(
            Reason.CIPHERTEXT_PARAMS,
            "the ciphertext has another shape",
            expected_bytes=str(parameters.ciphertext_bytes(slots)),
        )
    residues: Residues = np.frombuffer(data, dtype=_WIRE)
    if int(residues.max()) >= parameters.modulus:
        raise MalformedInput(Reason.CIPHERTEXT_NON_CANONICAL, "a residue is not below q")
    return residues


def stored_sum(data: bytes, parameters: ParameterSet, slots: int) -> Residues:
    """Residues of a sum that this side stored itself; PARTIAL_CORRUPT if it is not one."""
    try:
        return parse_sum(data, parameters, slots)
    except MalformedInput:
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "a stored sum is not a ciphertext") from None


def to_bytes(residues: Residues) -> bytes:
    """The canonical bytes of residues."""
    return residues.astype(_WIRE, copy=False).tobytes()


def fold(residues: Residues, parameters: ParameterSet, slots: int) -> Residues:
    """Project N residues to the 2P of the subring: block sums mod q.

    A block has at most N / 128 = 32 residues of 60 bits, so it is added in halves of 15.
    """
    blocks = residues.reshape(2 * slots, parameters.block(slots))
    step = parameters.unreduced_terms
    folded = np.zeros(2 * slots, dtype=np.uint64)
    q = np.uint64(parameters.modulus)
    for at in range(0, blocks.shape[1], step - 1):
        part = blocks[:, at : at + step - 1].sum(axis=1, dtype=np.uint64)
        folded = (folded + part % q) % q
    return folded


def add(ciphertexts: Sequence[Residues] | Iterable[Residues], parameters: ParameterSet) -> Residues:
    """The sum mod q of one or more ciphertexts of the same shape; the same bytes in any order."""
    q = np.uint64(parameters.modulus)
    spare = parameters.unreduced_terms - 1
    total: Residues | None = None
    pending = 0
    for residues in ciphertexts:
        if total is None:
            total = residues.astype(np.uint64)
            continue
        if pending == spare:
            total %= q
            pending = 0
        total += residues
        pending += 1
    if total is None:
        raise ValueError("nothing to add")
    total %= q
    return total
