"""Pedersen commitments on ristretto255 (RFC 9496), through libsodium.

C = s_1*G_1 + ... + b*H, with generators hashed from labels that name city, epoch, window and
registers, so that nobody knows a relation between them and no commitment is of use in another
window. Pedersen, "Non-Interactive and Information-Theoretic Secure Verifiable Secret Sharing"
(CRYPTO 1991): hiding is unconditional, binding rests on discrete logarithms.

A scalar s holds four registers as digits of 60 bits: s = v_1 + 2^60*v_2 + 2^120*v_3 + 2^180*v_4.
A total is below 2^52 a register in absolute value, so digits never meet, and two totals in range
with the same scalar are the same: their difference is below 2^240, hence zero if it is a multiple
of the group order, and then zero in every digit. Negative digits, which only noise makes, change
nothing of that (docs/adr/0006).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import rbcl

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import sha256, text, u64
from gridveil.protocol.slots import GROUP_ORDER

POINT_BYTES = 32
IDENTITY = bytes(POINT_BYTES)
_T = TypeVar("_T")

DIGIT_BITS = 60
REGISTERS_A_GENERATOR = 4

_REGISTER_DOMAIN = "gridveil/v1/generator"
_BLINDING_DOMAIN = "gridveil/v1/blinding-generator"
_HASH_DOMAIN = "gridveil/v1/commitment"


@dataclass(frozen=True)
class Generators:
    """The generators of one window: one for each four registers, one for the blinding."""

    registers: tuple[bytes, ...]
    blinding: bytes

    @classmethod
    def derive(
        cls, city_id: bytes, epoch_id: bytes, window_start: int, names: Sequence[str]
    ) -> Generators:
        """SHA-512 of each label, mapped to the group (RFC 9496, section 4.3.4)."""
        scope = city_id + epoch_id + u64(window_start)
        groups = (b"".join(map(text, group)) for group in _grouped(names))
        return cls(
            tuple(_hash_to_group(text(_REGISTER_DOMAIN) + scope + group) for group in groups),
            _hash_to_group(text(_BLINDING_DOMAIN) + scope),
        )

    def commit(self, values: Sequence[int], blinding: int) -> bytes:
        """The commitment to register values (or totals) under a blinding: 32 bytes."""
        terms = [
            _multiply(_packed(group), generator)
            for group, generator in zip(_grouped(values), self.registers, strict=True)
        ]
        commitment = _multiply(blinding % GROUP_ORDER, self.blinding)
        for term in terms:
            commitment = add(commitment, term)
        return commitment


def _grouped(of_registers: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for at in range(0, len(of_registers), REGISTERS_A_GENERATOR):
        yield of_registers[at : at + REGISTERS_A_GENERATOR]


def _packed(values: Sequence[int]) -> int:
    return sum(value << (DIGIT_BITS * digit) for digit, value in enumerate(values)) % GROUP_ORDER


def add_points(points: Iterable[bytes]) -> bytes:
    """The sum of points; the identity for none, FIELD_FORMAT if one is no canonical point."""
    total = IDENTITY
    for point in points:
        total = rbcl.crypto_core_ristretto255_add(total, point)
        # The binding drops libsodium's return code: a failed addition looks like the identity.
        if total == IDENTITY and not rbcl.crypto_core_ristretto255_is_valid_point(point):
            raise _not_a_commitment()
    return total


def parse_commitment(data: bytes) -> bytes:
    """A commitment from a meter: a canonical point that is not the identity, or FIELD_FORMAT."""
    if (
        len(data) != POINT_BYTES
        or data == IDENTITY
        or not rbcl.crypto_core_ristretto255_is_valid_point(data)
    ):
        raise _not_a_commitment()
    return data


def commitment_hash(
    city_id: bytes, epoch_id: bytes, window_start: int, meter_id: bytes, commitment: bytes
) -> bytes:
    """h: what a report shows of its commitment, 32 bytes."""
    return sha256(
        text(_HASH_DOMAIN) + city_id + epoch_id + u64(window_start) + meter_id + commitment
    )


def _not_a_commitment() -> MalformedInput:
    return MalformedInput(Reason.FIELD_FORMAT, "not a commitment", field="commitment")


def _hash_to_group(label: bytes) -> bytes:
    point: bytes = rbcl.crypto_core_ristretto255_from_hash(hashlib.sha512(label).digest())
    return point


def add(one: bytes, other: bytes) -> bytes:
    """The sum of two points that are known to be valid."""
    if IDENTITY in (one, other):
        return one if other == IDENTITY else other
    total: bytes = rbcl.crypto_core_ristretto255_add(one, other)
    return total


def _multiply(scalar: int, point: bytes) -> bytes:
    if scalar == 0:
        return IDENTITY
    product: bytes = rbcl.crypto_scalarmult_ristretto255(scalar.to_bytes(32, "little"), point)
    return product
