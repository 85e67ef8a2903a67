"""Differential privacy of totals: what noise costs, how large it is, what a day has left.

Neighbouring cities differ in the readings of one meter in one window, each register anywhere in
[0, bound]; who reported is told exactly. The privacy loss of a window is split evenly over its R
registers, and register j with the bound b_j gets

    discrete Laplace noise of scale b_j * R / epsilon               loss: epsilon
    discrete Gaussian noise of sigma b_j * sqrt(R / (2 * rho))      loss: rho

Sources: Ghosh, Roughgarden, Sundararajan, "Universally Utility-Maximizing Privacy Mechanisms"
(STOC 2009) and Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy"
(NeurIPS 2020) for the mechanisms; Bun, Steinke, "Concentrated Differential Privacy" (TCC 2016)
for rho and for composition: losses of one kind add up, and epsilon is also epsilon^2 / 2 of rho.

Losses are whole millionths, so that everybody who adds them up gets the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import IntEnum

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import Reader, u8, u32

LOSS_UNIT = 1_000_000
"""Privacy losses are counted in millionths."""

DAY_S = 86_400

SUM_LIMIT = 2**52
"""Every published sum is below this in absolute value (docs/adr/0006)."""

_LOSS_LIMIT = 2**32

MOST_SCALES = 64
"""Noise is further from zero than so many scales with a chance below e^-63, whatever its kind."""


class Mechanism(IntEnum):
    """What noise a total has."""

    NONE = 0
    LAPLACE = 1
    """Discrete Laplace; its loss is epsilon of pure differential privacy."""
    GAUSSIAN = 2
    """Discrete Gaussian; its loss is rho of zero-concentrated differential privacy."""


_LARGEST_SCALE = {Mechanism.LAPLACE: 2.0**45, Mechanism.GAUSSIAN: 2.0**47}
"""Noise reaches 2^51, half of what a sum has room for, with a chance below e^-63."""


@dataclass(frozen=True)
class Noise:
    """How much noise one total has, and so what it costs every meter."""

    mechanism: Mechanism
    loss_ppm: int
    """Millionths of epsilon (Laplace) or rho (Gaussian), for all registers together."""

    def __post_init__(self) -> None:
        if self.mechanism is Mechanism.NONE or not 0 < self.loss_ppm < _LOSS_LIMIT:
            raise MalformedInput(Reason.CONFIG_INVALID, "the noise is out of range", field="noise")

    @property
    def loss(self) -> float:
        """Epsilon or rho."""
        return self.loss_ppm / LOSS_UNIT

    @property
    def loss_name(self) -> str:
        """Which of the two."""
        return "epsilon" if self.mechanism is Mechanism.LAPLACE else "rho"

    def scale(self, bound: int, registers: int) -> float:
        """The mechanism's scale for a register, in its unit: b of Laplace, sigma of Gauss.

        Args:
            bound: largest value of one meter in one window.
            registers: how many share the loss.
        """
        if self.mechanism is Mechanism.LAPLACE:
            return bound * registers / self.loss
        return bound * math.sqrt(registers / (2 * self.loss))

    def deviation(self, bound: int, registers: int) -> float:
        """Standard deviation of a register's noise, in its unit; arguments as in :meth:`scale`."""
        scale = self.scale(bound, registers)
        if self.mechanism is Mechanism.GAUSSIAN:
            return scale
        return math.sqrt(2 * math.exp(-1 / scale)) / -math.expm1(-1 / scale)

    def fits(self, bounds: Sequence[int]) -> bool:
        """Whether a total has room for the noise of registers with these bounds."""
        largest = self.scale(max(bounds), len(bounds))
        return largest <= _LARGEST_SCALE[self.mechanism]


def loss_ppm(loss: float) -> int:
    """Millionths of a loss as it is written, never more; CONFIG_INVALID if it is none."""
    if not math.isfinite(loss):
        raise MalformedInput(Reason.CONFIG_INVALID, "a privacy loss is a number", field="noise")
    return math.floor(Decimal(repr(float(loss))) * LOSS_UNIT)


def satisfies(noise: Noise | None, demanded: Noise | None) -> bool:
    """Whether a total has the noise that is demanded: of that kind and no less, or none."""
    if noise is None or demanded is None:
        return noise is demanded
    return noise.mechanism is demanded.mechanism and noise.loss_ppm <= demanded.loss_ppm


@dataclass(frozen=True)
class NoisePolicy:
    """The noise of a city's totals, and how much privacy a day may cost a meter."""

    window: Noise
    """Of the total of each window."""
    day_ppm: int
    """Loss of all windows that start in one UTC day, at the most; of the window's kind."""

    def __post_init__(self) -> None:
        if not self.window.loss_ppm <= self.day_ppm < _LOSS_LIMIT:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                "the loss of a window is above 0 and not above that of a day",
                field="noise",
            )

    def stricter(self, other: NoisePolicy | None) -> NoisePolicy:
        """Of both the smaller losses; this policy if there is no other, or of another mechanism."""
        if other is None or other.window.mechanism is not self.window.mechanism:
            return self
        loss = min(self.window.loss_ppm, other.window.loss_ppm)
        window = replace(self.window, loss_ppm=loss)
        return NoisePolicy(window, min(self.day_ppm, other.day_ppm))


def encode_policy(policy: NoisePolicy | None) -> bytes:
    """Mechanism (u8), then the losses of a window and a day (u32 each) if there is one."""
    if policy is None:
        return u8(Mechanism.NONE)
    window = policy.window
    return u8(window.mechanism) + u32(window.loss_ppm) + u32(policy.day_ppm)


def read_policy(reader: Reader) -> NoisePolicy | None:
    """What :func:`encode_policy` wrote, at the reader's place."""
    mechanism = read_mechanism(reader)
    if mechanism is Mechanism.NONE:
        return None
    return NoisePolicy(Noise(mechanism, reader.uint(4)), reader.uint(4))


def read_mechanism(reader: Reader) -> Mechanism:
    """The mechanism at the reader's place; MALFORMED_MESSAGE if it is unknown."""
    try:
        return Mechanism(reader.uint(1))
    except ValueError:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "unknown noise mechanism") from None


@dataclass(frozen=True)
class NoiseClaim:
    """What the claim of a window says of the noise of its total, before anything is opened."""

    mechanism: Mechanism = Mechanism.NONE
    loss_ppm: int = 0
    """Spent by the claim. With a mechanism 0: the budget has no room, and nothing is opened."""

    @classmethod
    def read(cls, mechanism: int, loss_ppm: int) -> NoiseClaim:
        """The claim with these numbers; MALFORMED_MESSAGE if there is none."""
        known = mechanism in tuple(Mechanism) and 0 <= loss_ppm < _LOSS_LIMIT
        if not known or (loss_ppm and mechanism == Mechanism.NONE):
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "a claim has noise that is none")
        return cls(Mechanism(mechanism), loss_ppm)

    @property
    def noise(self) -> Noise | None:
        """Of the total, if there will be one; None: it will be exact."""
        return Noise(self.mechanism, self.loss_ppm) if self.loss_ppm else None

    @property
    def is_over_budget(self) -> bool:
        """Whether nothing may be opened for it."""
        return self.mechanism is not Mechanism.NONE and not self.loss_ppm


def day_of(window_start: int) -> int:
    """The UTC day that a window starts in, counted from 1970."""
    return window_start // DAY_S


@dataclass(frozen=True)
class Spent:
    """What the windows of one day have cost every meter so far; it only grows."""

    laplace_ppm: int = 0
    laplace_squares: int = 0
    """Sum of the squared losses, in squared millionths: as rho it is half of that."""
    gaussian_ppm: int = 0

    def plus(self, noise: Noise | NoiseClaim) -> Spent:
        """The cost with one window more."""
        loss = noise.loss_ppm
        if noise.mechanism is Mechanism.GAUSSIAN:
            return replace(self, gaussian_ppm=self.gaussian_ppm + loss)
        squares = self.laplace_squares + loss * loss
        return replace(self, laplace_ppm=self.laplace_ppm + loss, laplace_squares=squares)

    def affords(self, policy: NoisePolicy) -> bool:
        """Whether one window more stays within the day's budget.

        What was spent as rho is no finite epsilon: after a Gaussian window no budget in epsilon
        has room for another one.
        """
        then = self.plus(policy.window)
        if policy.window.mechanism is Mechanism.LAPLACE:
            return not then.gaussian_ppm and then.laplace_ppm <= policy.day_ppm
        as_rho = 2 * LOSS_UNIT * then.gaussian_ppm + then.laplace_squares
        return as_rho <= 2 * LOSS_UNIT * policy.day_ppm

    def left(self, policy: NoisePolicy) -> float:
        """The share of the day's budget that is not spent, 0 to 1."""
        if policy.window.mechanism is Mechanism.LAPLACE:
            spent = policy.day_ppm if self.gaussian_ppm else self.laplace_ppm
            return max(0.0, 1 - spent / policy.day_ppm)
        as_rho = 2 * LOSS_UNIT * self.gaussian_ppm + self.laplace_squares
        return max(0.0, 1 - as_rho / (2 * LOSS_UNIT * policy.day_ppm))

    def claim(self, policy: NoisePolicy | None) -> NoiseClaim:
        """What the next window of the day has to claim under a policy."""
        if policy is None:
            return NoiseClaim()
        loss_ppm = policy.window.loss_ppm if self.affords(policy) else 0
        return NoiseClaim(policy.window.mechanism, loss_ppm)
