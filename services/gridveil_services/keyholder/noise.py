"""Drawing the noise of a total: the only module that touches OpenDP.

OpenDP (https://docs.opendp.org) samples integers exactly from a system source of randomness, and
has a privacy map: what a measurement costs for inputs that differ by so much. It is asked for that
before anything is drawn, and its answer holds, not the formula that the scale comes from. What it
gives for an input of zero is the noise alone, which does not depend on the input.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gridveil.protocol.commitment import Generators
from gridveil.protocol.errors import InternalFault, MalformedInput, Reason
from gridveil.protocol.noise import LOSS_UNIT, Mechanism, Noise
from gridveil.protocol.release import TotalNoise
from gridveil.protocol.slots import GROUP_ORDER

_LARGEST = 2**51
"""Reached with a chance below e^-63 (gridveil.protocol.noise)."""
_ROUNDINGS = 8
"""By so many floats the scale may be raised until OpenDP finds its cost right."""


@dataclass(frozen=True)
class DrawnNoise:
    """The noise of one total. It is a secret for ever: who has it has the exact total."""

    noise: Noise
    values: tuple[int, ...]
    """Of each register, in its unit."""
    blinding: int
    """Uniform below the group order."""

    def added(self, generators: Generators) -> TotalNoise:
        """What the total says of it."""
        return TotalNoise(self.noise, generators.commit(self.values, self.blinding))

    def __repr__(self) -> str:
        return "DrawnNoise()"


def check_available(noise: Noise, bounds: Sequence[int]) -> None:
    """CONFIG_INVALID at start if noise cannot be drawn, or has no room in a total."""
    if not noise.fits(bounds):
        raise MalformedInput(
            Reason.CONFIG_INVALID, "the noise is larger than a total has room for", field="noise"
        )
    try:
        _measurements(noise, bounds)
    except ImportError:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "noise needs the package opendp", field="noise"
        ) from None


def draw(noise: Noise, bounds: Sequence[int]) -> DrawnNoise:
    """Fresh noise for registers with these bounds.

    Raises:
        InternalFault: it costs more than it may, or is larger than a total has room for.
    """
    values = tuple(int(measurement(0)) for measurement in _measurements(noise, bounds))
    if any(abs(value) >= _LARGEST for value in values):
        raise _unsound()
    return DrawnNoise(noise, values, secrets.randbelow(GROUP_ORDER))


def _measurements(noise: Noise, bounds: Sequence[int]) -> list[Any]:
    """One a register; each costs no more than its share of the loss."""
    share = Fraction(noise.loss_ppm, LOSS_UNIT * len(bounds))
    return [_measurement(noise, bound, len(bounds), share) for bound in bounds]


def _measurement(noise: Noise, bound: int, registers: int, share: Fraction) -> Any:
    scale = noise.scale(bound, registers)
    for _ in range(_ROUNDINGS):
        measurement = _make(noise.mechanism, scale)
        if Fraction(measurement.map(bound)) <= share:
            return measurement
        scale = math.nextafter(scale, math.inf)
    raise _unsound()


def _make(mechanism: Mechanism, scale: float) -> Any:
    """A measurement of one integer, of pure differential privacy or of zero-concentrated."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.atom_domain(T="i64"), dp.absolute_distance(T="i64")
    if mechanism is Mechanism.LAPLACE:
        return dp.m.make_laplace(*space, scale=scale)
    return dp.m.make_gaussian(*space, scale=scale)


def _unsound() -> InternalFault:
    return InternalFault(Reason.INTERNAL, "the noise is not what it must be")
