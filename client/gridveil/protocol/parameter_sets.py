"""The CKKS parameter sets, and every bound that follows from them.

Sources: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers"
(ASIACRYPT 2017) for the scheme; Homomorphic Encryption Standard (2018), tables of quantum
security, and Bossuat et al., ePrint 2024/463, table 5.2, for the largest modulus at 128 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from gridveil.protocol.errors import MalformedInput, Reason

SLOT_TOLERANCE = 0.125
"""Largest distance of a decrypted slot, real and imaginary part each, from its integer."""

BYTE_MAX = 255
ERROR_STD = 3.2
"""Standard deviation of SEAL's error distribution, per coefficient."""

WORST_SLOT_QUANTILE = 4.5
"""Normal quantile of how much noisier than the average a key's worst slot may be."""

NOISE_SIGMAS = 8
"""A lane is kept so small that the tolerance is this many sigma of the worst slot."""

# log2 of the largest whole modulus at 128 bits with a ternary secret: (classical, quantum)
_SECURITY_LIMITS = {2048: (53, 51), 4096: (106, 101)}


@dataclass(frozen=True)
class ParameterSet:
    """One choice of ring, modulus and scale. Every bound is computed from these."""

    name: str
    degree: int
    """N: the ring is Z[X]/(X^N + 1)."""
    modulus: int
    """q: the one prime that ciphertexts are modulo."""
    prime_bits: tuple[int, ...]
    """Bit sizes that SEAL's prime generator is asked for, data prime first."""
    log2_scale: int

    @property
    def scale(self) -> int:
        """Delta: a slot of value 1 is encoded as this integer."""
        return 1 << self.log2_scale

    @property
    def modulus_bits(self) -> int:
        """log2 of the whole modulus, special prime included."""
        return sum(self.prime_bits)

    @property
    def security_limits(self) -> tuple[int, int]:
        """log2 of the largest modulus at 128 bits: classical and quantum."""
        return _SECURITY_LIMITS[self.degree]

    @property
    def unreduced_terms(self) -> int:
        """How many residues fit an unsigned 64-bit accumulator before it is reduced."""
        return (2**64 - 1) // (self.modulus - 1)

    def block(self, slots: int) -> int:
        """G: neighbouring residues that fold into one, for ``slots`` slots."""
        return self.degree // (2 * slots)

    def ciphertext_bytes(self, slots: int) -> int:
        """Length of a folded canonical ciphertext: 8 (2P + N)."""
        return 8 * (2 * slots + self.degree)

    def slot_noise_std(self, slots: int) -> float:
        """Standard deviation of one part of an average slot of one fresh report.

        Fresh public-key noise v*e + e0 + e1*s with ternary v, s, per coefficient, plus rounding;
        a slot adds 2P such coefficients turned by unit numbers, half of it to each part.
        """
        coefficient = ERROR_STD**2 * (4 * self.degree / 3 + 1) + 1 / 12
        return math.sqrt(slots * coefficient) / self.scale

    def worst_slot(self, slots: int) -> float:
        """Noise of a key's worst slot against the average slot: 1.42 for 64 slots of N = 2048.

        For a given key the variance of a slot is proportional to the mean of |s|^2 and |e|^2 over
        the slot's G roots, chi-square with 4G degrees of freedom; its quantile by Wilson and
        Hilferty, "The Distribution of Chi-Square" (PNAS 1931).
        """
        spread = 2 / (9 * 4 * self.block(slots))
        return float((1 - spread + WORST_SLOT_QUANTILE * math.sqrt(spread)) ** 1.5)

    def meters_by_noise(self, slots: int) -> int:
        """Reports after which the worst slot's tolerance falls below NOISE_SIGMAS sigma."""
        worst = NOISE_SIGMAS * self.worst_slot(slots) * self.slot_noise_std(slots)
        return math.floor((SLOT_TOLERANCE / worst) ** 2)

    @property
    def meters_by_wrap(self) -> int:
        """Reports whose slot sum stays below q / (4 * scale)."""
        return self.modulus // (4 * self.scale) // BYTE_MAX

    def meters_per_lane(self, slots: int) -> int:
        """Most reports in one lane: the smaller bound, rounded down to a power of two."""
        return 1 << (min(self.meters_by_noise(slots), self.meters_by_wrap).bit_length() - 1)

    @cached_property
    def root(self) -> int:
        """psi: the smallest primitive 2N-th root of unity mod q, which is SEAL's choice."""
        return _smallest_primitive_root(2 * self.degree, self.modulus)

    def check_security(self) -> None:
        """Refuse a modulus beyond either 128-bit limit."""
        if self.modulus_bits > min(self.security_limits):
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"parameter set {self.name} is below 128 bits of security"
            )


def _smallest_primitive_root(order: int, modulus: int) -> int:
    exponent = (modulus - 1) // order
    root = next(
        r for c in range(2, 1000) if pow(r := pow(c, exponent, modulus), order // 2, modulus) != 1
    )
    square = root * root % modulus
    smallest = current = root
    for _ in range(order // 2 - 1):
        current = current * square % modulus
        smallest = min(smallest, current)
    return smallest


_SETS = {
    s.name: s
    for s in (
        ParameterSet("ckks-2048", 2048, 1125899906826241, (50,), 24),
        ParameterSet("ckks-4096", 4096, 1152921504606830593, (60, 40), 30),
    )
}
PARAMETER_SETS = tuple(_SETS)
DEFAULT_PARAMETER_SET = "ckks-2048"


@lru_cache
def parameter_set(name: str) -> ParameterSet:
    """The set with this id, its security checked; CONFIG_INVALID if there is none."""
    if name not in _SETS:
        raise MalformedInput(Reason.CONFIG_INVALID, "unknown parameter set")
    found = _SETS[name]
    found.check_security()
    return found
