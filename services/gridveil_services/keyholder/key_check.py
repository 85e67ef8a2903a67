"""How noisy a key pair makes the slots: known once it is made, and bad ones are not used.

A fresh ciphertext decrypts with the noise v*e + e0 + e1*s; s is the secret key, e the error in
the public key, and v, e0, e1 are drawn for the report. A slot sees the noise at the G roots of
X^N + 1 whose G-th power is the slot's own root. What the drawn polynomials are at different roots
is uncorrelated, so the variance of a slot is, exactly,

    N / G^2 * sum over its roots r of ( 2/3 |e(r)|^2 + sigma^2 (1 + |s(r)|^2) )

and half of it falls to the real, half to the imaginary part. ``ParameterSet.worst_slot`` is the
quantile of its largest value over random keys, and a lane's size is computed from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gridveil.encryption import seal_array, seal_payload
from gridveil.protocol.parameter_sets import ERROR_STD, ParameterSet

_PUBLIC_KEY_HEAD_BYTES = 32 + 1 + 8 + 8 + 8 + 8 + 8
"""Of SEAL's public key before its residues: parameters id, form, sizes, scale, correction."""

_BINARY_VARIANCE = 2 / 3
"""Of a coefficient that is -1, 0 or 1 with equal chances."""

_ROUNDING_VARIANCE = 1 / 12

Coefficients = Sequence[int]


def is_sound_key(public: bytes, secret: bytes, crypto: ParameterSet, slots: int) -> bool:
    """Whether the worst slot under a key pair is within what the set's bounds are computed for.

    Args:
        public: SEAL's serialized public key.
        secret: residues of the secret key mod q in SEAL's NTT form, 8 bytes each.
        crypto: the parameter set.
        slots: P.
    """
    error, key = key_coefficients(public, secret, crypto)
    worst = float(slot_stds(error, key, crypto, slots).max())
    return worst <= crypto.worst_slot(slots) * crypto.slot_noise_std(slots)


def slot_stds(
    error: Coefficients, secret: Coefficients, crypto: ParameterSet, slots: int
) -> NDArray[np.float64]:
    """Standard deviation of one part of each slot of one fresh report, in units of one.

    Each of the P slots is there twice, with its conjugate; N coefficients each are given.
    """
    block = crypto.block(slots)
    at_roots = _BINARY_VARIANCE * _powers(error, crypto) + ERROR_STD**2 * (
        1 + _powers(secret, crypto)
    )
    of_slots = at_roots.reshape(block, 2 * slots).sum(axis=0) * crypto.degree / block**2
    part = of_slots / 2 + slots * _ROUNDING_VARIANCE
    stds: NDArray[np.float64] = np.sqrt(part) / crypto.scale
    return stds


def key_coefficients(
    public: bytes, secret: bytes, crypto: ParameterSet
) -> tuple[list[int], list[int]]:
    """The error e in a public key (-(a s + e), a), up to its sign, and the secret key s."""
    q, n = crypto.modulus, crypto.degree
    residues = seal_array(
        seal_payload(public)[_PUBLIC_KEY_HEAD_BYTES:], 2 * n * len(crypto.prime_bits)
    )
    half = n * len(crypto.prime_bits)
    masked, uniform = _integers(residues[:n]), _integers(residues[half : half + n])
    key = _integers(np.frombuffer(secret, dtype="<u8"))
    return (
        _coefficients((masked + uniform * key) % q, crypto),
        _coefficients(key, crypto),
    )


def _powers(coefficients: Coefficients, crypto: ParameterSet) -> NDArray[np.float64]:
    """|p(r)|^2 at the N roots r = exp(i pi (1 - 2k) / N) of X^N + 1, in the order of k."""
    n = crypto.degree
    turned = np.array(coefficients, dtype=np.float64) * np.exp(1j * math.pi * np.arange(n) / n)
    powers: NDArray[np.float64] = np.abs(np.fft.fft(turned)) ** 2
    return powers


def _coefficients(values: NDArray[np.object_], crypto: ParameterSet) -> list[int]:
    """Centred coefficients of a polynomial in SEAL's NTT form: its value at psi^(2 brv(i) + 1)."""
    q, n = crypto.modulus, crypto.degree
    bits = n.bit_length() - 1
    natural = values[[int(f"{at:0{bits}b}"[::-1], 2) for at in range(n)]]
    inverse = pow(crypto.root, -1, q)
    turned = _transform(natural, inverse * inverse % q, q)
    scaled = turned * _geometric(inverse, n, q) % q * pow(n, -1, q) % q
    return [int(c) - q if c > q // 2 else int(c) for c in scaled]


def _transform(values: NDArray[np.object_], root: int, q: int) -> NDArray[np.object_]:
    """The sum over k of values[k] * root^(k t), for each t; the length is a power of two."""
    if len(values) == 1:
        return values
    square = root * root % q
    even, odd = _transform(values[::2], square, q), _transform(values[1::2], square, q)
    turned = odd * _geometric(root, len(odd), q) % q
    return np.concatenate(((even + turned) % q, (even - turned) % q))


def _geometric(ratio: int, count: int, q: int) -> NDArray[np.object_]:
    powers = [1]
    while len(powers) < count:
        powers.append(powers[-1] * ratio % q)
    return np.array(powers, dtype=object)


def _integers(residues: NDArray[np.uint64]) -> NDArray[np.object_]:
    return np.array([int(residue) for residue in residues], dtype=object)
