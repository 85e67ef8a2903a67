"""Registers and blinding as byte slots (docs/protocol.md, "Slots").

A register is an unsigned 32-bit integer in its unit: four little-endian bytes in four slots,
registers first. All other slots carry the little-endian bytes of the blinding, so that no slot
is outside the opening equation.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from gridveil.protocol.errors import MalformedInput, Reason

REGISTER_BYTES = 4
REGISTER_MAX = 2**32 - 1
MIN_BLINDING_BYTES = 32
MIN_SLOTS = 64
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of ristretto255 (RFC 9496)."""


@dataclass(frozen=True)
class SlotLayout:
    """How ``registers`` registers share ``slots`` slots."""

    registers: int
    slots: int

    @classmethod
    def for_registers(cls, registers: int) -> SlotLayout:
        """The smallest power of two of at least 64 slots that leaves 32 for the blinding."""
        if not 1 <= registers <= 255:
            raise MalformedInput(Reason.CONFIG_INVALID, "a city has 1 to 255 registers")
        slots = MIN_SLOTS
        while slots - REGISTER_BYTES * registers < MIN_BLINDING_BYTES:
            slots *= 2
        return cls(registers, slots)

    @property
    def blinding_bytes(self) -> int:
        """Slots, and so bytes, of the blinding."""
        return self.slots - REGISTER_BYTES * self.registers

    def draw_blinding(self) -> int:
        """A fresh uniform integer below 256^blinding_bytes."""
        return secrets.randbits(8 * self.blinding_bytes)

    def to_slots(self, values: Sequence[int], blinding: int) -> bytes:
        """The slot values of one report, a byte each.

        Args:
            values: one integer in [0, 2^32) a register, in the register's unit.
            blinding: integer in [0, 256^blinding_bytes).
        """
        if len(values) != self.registers:
            raise MalformedInput(Reason.READING_INVALID, "one value a register is required")
        if any(not 0 <= value <= REGISTER_MAX for value in values):
            raise MalformedInput(Reason.READING_INVALID, "a register value is out of range")
        head = b"".join(value.to_bytes(REGISTER_BYTES, "little") for value in values)
        return head + blinding.to_bytes(self.blinding_bytes, "little")

    def from_slot_sums(self, sums: Sequence[int]) -> tuple[list[int], int]:
        """Register totals and blinding total from the sums of slots over many reports.

        Returns:
            the sum of each register in its unit, and the blinding's sum mod the group order.
        """
        head = REGISTER_BYTES * self.registers
        totals = [_weigh(sums[at : at + REGISTER_BYTES]) for at in range(0, head, REGISTER_BYTES)]
        return totals, _weigh(sums[head:]) % GROUP_ORDER


def _weigh(sums: Sequence[int]) -> int:
    return sum(value << (8 * place) for place, value in enumerate(sums))
