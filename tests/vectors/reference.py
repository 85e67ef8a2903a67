"""CKKS encryption by the formulas of docs/protocol.md, with chosen randomness instead of fresh.

Plain Python integers throughout. A real meter draws its randomness from a secure source and lets
SEAL encrypt; here the same formulas make ciphertexts that can be written down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from gridveil.protocol.parameter_sets import ParameterSet

Polynomial = list[int]


@dataclass(frozen=True)
class Ring:
    """Z_q[X]/(X^N + 1) with SEAL's number-theoretic transform."""

    degree: int
    prime: int

    @cached_property
    def root(self) -> int:
        """The smallest primitive 2N-th root of unity."""
        exponent = (self.prime - 1) // (2 * self.degree)
        candidates = (pow(base, exponent, self.prime) for base in range(2, 1000))
        some = next(r for r in candidates if pow(r, self.degree, self.prime) == self.prime - 1)
        return min(pow(some, power, self.prime) for power in range(1, 2 * self.degree, 2))

    @cached_property
    def _powers(self) -> list[int]:
        bits = self.degree.bit_length() - 1
        return [pow(self.root, reverse(at, bits), self.prime) for at in range(self.degree)]

    def transform(self, coefficients: Sequence[int]) -> Polynomial:
        """Residue i is the value at psi^(2 brv(i) + 1)."""
        values, q = [c % self.prime for c in coefficients], self.prime
        half, groups = self.degree // 2, 1
        while half:
            for group in range(groups):
                twist = self._powers[groups + group]
                for at in range(2 * group * half, (2 * group + 1) * half):
                    low, high = values[at], values[at + half] * twist
                    values[at], values[at + half] = (low + high) % q, (low - high) % q
            half, groups = half // 2, 2 * groups
        return values

    def inverse(self, residues: Sequence[int]) -> Polynomial:
        """The coefficients in [0, q) whose transform ``residues`` is."""
        values, q = list(residues), self.prime
        half, groups = 1, self.degree // 2
        while groups:
            for group in range(groups):
                twist = pow(self._powers[groups + group], -1, q)
                for at in range(2 * group * half, (2 * group + 1) * half):
                    low, high = values[at], values[at + half]
                    values[at], values[at + half] = (low + high) % q, (low - high) * twist % q
            half, groups = 2 * half, groups // 2
        scale = pow(self.degree, -1, q)
        return [value * scale % q for value in values]

    def centred(self, residues: Sequence[int]) -> Polynomial:
        """Coefficients nearest to zero."""
        return [c - self.prime if c > self.prime // 2 else c for c in self.inverse(residues)]


@lru_cache
def rings(parameters: ParameterSet, primes: tuple[int, ...]) -> tuple[Ring, ...]:
    """One ring a prime, data prime first."""
    return tuple(Ring(parameters.degree, prime) for prime in primes)


def reverse(value: int, bits: int) -> int:
    """``value`` with its ``bits`` bits in reversed order."""
    return int(f"{value:0{bits}b}"[::-1], 2)


def ternary(label: str, count: int) -> Polynomial:
    """Coefficients in {-1, 0, 1}: bytes of SHAKE-256 below 255, modulo 3, minus 1."""
    stream = hashlib.shake_256(label.encode()).digest(2 * count)
    return [byte % 3 - 1 for byte in stream if byte < 255][:count]


def small(label: str, count: int) -> Polynomial:
    """Centred binomial coefficients, 21 bits against 21: six bytes of SHAKE-256 each."""
    stream = hashlib.shake_256(label.encode()).digest(6 * count)
    words = (int.from_bytes(stream[at : at + 6], "little") for at in range(0, 6 * count, 6))
    mask = (1 << 21) - 1
    return [(word & mask).bit_count() - (word >> 21 & mask).bit_count() for word in words]


def encode(slot_bytes: bytes, scale: int) -> Polynomial:
    """The 2P coefficients m_j of the plaintext, a coefficient of X^(Gj) each."""
    slots = len(slot_bytes)
    turns = [pow(3, slot, 4 * slots) for slot in range(slots)]
    return [
        round(
            scale
            / slots
            * math.fsum(
                value * math.cos(math.pi * (turn * j % (4 * slots)) / (2 * slots))
                for value, turn in zip(slot_bytes, turns, strict=True)
            )
        )
        for j in range(2 * slots)
    ]


def encrypt(
    coefficients: Sequence[int],
    public_key: Sequence[Sequence[Polynomial]],
    chain: Sequence[Ring],
    randomness: str,
) -> tuple[Polynomial, Polynomial]:
    """c0 and c1 in NTT form modulo the data prime.

    Args:
        coefficients: the 2P coefficients of the plaintext.
        public_key: [polynomial][prime] residues in NTT form.
        chain: the rings, data prime first; the last of several is the special prime.
        randomness: label of u, e0 and e1.
    """
    data = chain[0]
    mask = ternary(f"{randomness} u", data.degree)
    errors = [small(f"{randomness} e{part}", data.degree) for part in (0, 1)]
    parts = [
        _masked(key, chain, mask, error) for key, error in zip(public_key, errors, strict=True)
    ]
    block = data.degree // len(coefficients)
    spread = [0] * data.degree
    spread[::block] = coefficients
    plain = data.transform(spread)
    return [(c + m) % data.prime for c, m in zip(parts[0], plain, strict=True)], parts[1]


def _masked(
    key: Sequence[Polynomial], chain: Sequence[Ring], mask: Polynomial, error: Polynomial
) -> Polynomial:
    """key * u + e modulo every prime, then divided by the special prime if there is one."""
    residues = []
    for ring, half in zip(chain, key, strict=True):
        product = zip(half, ring.transform(mask), ring.transform(error), strict=True)
        residues.append([(k * u + e) % ring.prime for k, u, e in product])
    if len(chain) == 1:
        return residues[0]
    data, special = chain
    rest = data.transform(special.centred(residues[1]))
    inverse = pow(special.prime, -1, data.prime)
    return [(c - r) * inverse % data.prime for c, r in zip(residues[0], rest, strict=True)]
