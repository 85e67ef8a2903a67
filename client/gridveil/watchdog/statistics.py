"""Statistics that learn as they go, made of river's: the only module that touches it."""

from __future__ import annotations

import math

from river.drift import PageHinkley
from river.stats import Cov, EWMean, EWVar, Mean, Var


class Level:
    """How far a value is from what is usual, where what is usual may change slowly.

    Exponentially weighted mean and variance (Finch, "Incremental calculation of weighted mean and
    variance", 2009).
    """

    def __init__(self, half_life: float, learns: int) -> None:
        """Say how fast it forgets.

        Args:
            half_life: in values; what is so old counts half.
            learns: values before it judges any.
        """
        self._fading = 1 - 2 ** (-1 / half_life)
        self._learns = learns
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._mean, self._variance = EWMean(self._fading), EWVar(self._fading)
        self._seen = 0

    @property
    def ready(self) -> bool:
        """Whether it has seen enough to judge."""
        return self._seen >= self._learns

    @property
    def mean(self) -> float:
        """What is usual; 0 before the first value."""
        return self._mean.get() if self._seen else 0.0

    def score(self, value: float, least: float) -> float:
        """Deviations of a value from the mean; 0 until it is ready.

        Args:
            value: in the unit of what it learned.
            least: the deviation to go by if what was seen varied less.
        """
        if not self.ready:
            return 0.0
        deviation = max(least, math.sqrt(max(0.0, self._variance.get())))
        return (value - self.mean) / deviation

    def learn(self, value: float) -> None:
        """Take a value for usual."""
        self._mean.update(value)
        self._variance.update(value)
        self._seen += 1


class Usual(Level):
    """A level that does not take what is unusual for usual, unless that stays for long."""

    def __init__(self, half_life: float, learns: int, patience: int) -> None:
        """Say how fast it forgets, and how long it holds out.

        Args:
            half_life: in values.
            learns: values before it judges any.
            patience: unusual values one after another, after which it learns anew.
        """
        super().__init__(half_life, learns)
        self._patience = patience
        self._unusual = 0

    def see(self, value: float, *, unusual: bool) -> None:
        """Learn the value, or hold out against it."""
        self._unusual = self._unusual + 1 if unusual else 0
        if self._unusual > self._patience:
            self.restart()
        elif unusual:
            return
        self.learn(value)


class Drift:
    """Whether a series has left the mean it had, slowly or not: the test of Page and Hinkley.

    Values are counted in standard deviations from the mean of the first ones, so that limits mean
    the same in every city (Page, "Continuous Inspection Schemes", 1954).
    """

    def __init__(self, learns: int, slack: float, threshold: float) -> None:
        """Say how soon it judges.

        Args:
            learns: values before it judges any.
            slack: deviations from the mean that are nothing.
            threshold: deviations that must have gathered.
        """
        self._learns = learns
        self._test = PageHinkley(
            min_instances=1, delta=slack, threshold=threshold, alpha=1.0, mode="both"
        )
        self._mean, self._variance = Mean(), Var()

    @property
    def usual(self) -> float:
        """Mean of the values that it learned from; 0 before the first."""
        return float(self._mean.get())

    def learn(self, value: float, least: float) -> bool:
        """Take the next value; whether the series has drifted, after which to learn anew.

        Args:
            value: in any unit.
            least: the deviation to go by if the first values varied less.
        """
        if self._mean.n < self._learns:
            self._mean.update(value)
            self._variance.update(value)
            # The test judges by the mean of what it saw: as much of it as was learned from.
            self._test.update(0.0)  # type: ignore[no-untyped-call]
            return False
        deviation = max(least, math.sqrt(self._variance.get()))
        self._test.update((value - self.usual) / deviation)  # type: ignore[no-untyped-call]
        return bool(self._test.drift_detected)


class Line:
    """A straight line through points, by least squares, as they come."""

    def __init__(self) -> None:
        self._together, self._x, self._y, self._spread = Cov(), Mean(), Mean(), Var()

    def learn(self, x: float, y: float) -> None:
        """Take another point."""
        self._together.update(x, y)
        self._x.update(x)
        self._y.update(y)
        self._spread.update(x)

    def at(self, x: float) -> float:
        """The line at ``x``; level if all points have the same x."""
        spread = self._spread.get()
        slope = self._together.get() / spread if spread > 0 else 0.0
        return float(self._y.get() + slope * (x - self._x.get()))
