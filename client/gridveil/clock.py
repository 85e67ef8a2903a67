"""Time, injected everywhere. Metering time is Unix seconds UTC."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from gridveil.protocol.errors import MalformedInput, Reason


class Clock(Protocol):
    """What the rest of Gridveil knows of time."""

    def now(self) -> float:
        """Metering time, Unix seconds UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for that much metering time."""
        ...

    def real(self, seconds: float) -> float:
        """That much metering time in real seconds, for timeouts of libraries."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))

    def real(self, seconds: float) -> float:
        """The same."""
        return seconds


@dataclass(frozen=True)
class ScaledClock:
    """Metering time that runs ``rate`` times as fast as real time; development cities only."""

    origin: float
    """Metering time at ``started``."""
    started: float
    """Unix seconds of the machine's clock."""
    rate: float

    def now(self) -> float:
        """Metering time."""
        return self.origin + (time.time() - self.started) * self.rate

    def sleep(self, seconds: float) -> None:
        """Wait for that much metering time."""
        time.sleep(max(0.0, self.real(seconds)))

    def real(self, seconds: float) -> float:
        """Metering seconds in real seconds."""
        return seconds / self.rate


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._moved = threading.Condition()

    def now(self) -> float:
        """Metering time, as last set."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Wait until the clock was moved that far."""
        until = self._now + seconds
        with self._moved:
            self._moved.wait_for(lambda: self._now >= until)

    def real(self, seconds: float) -> float:
        """A moment: nothing that runs on this clock should wait for real."""
        return min(seconds, 0.05)

    def move_to(self, now: float) -> None:
        """Set the time and wake who waits for it."""
        with self._moved:
            self._now = now
            self._moved.notify_all()


def make_clock(origin: str | None, rate: float, *, development: bool) -> Clock:
    """The clock that ``--clock-origin`` and ``--clock-rate`` ask for.

    Args:
        origin: ``METERING@REAL``, two Unix times that fall together, or None.
        rate: metering seconds per real second.
        development: whether the city is a development city; a scaled clock is refused elsewhere.
    """
    if origin is None and rate == 1:
        return SystemClock()
    if not development:
        raise MalformedInput(Reason.CONFIG_INVALID, "a scaled clock is for development cities only")
    try:
        metering, real = (float(part) for part in (origin or "").split("@"))
    except ValueError:
        metering = real = math.nan
    if not (math.isfinite(metering) and math.isfinite(real)):
        raise MalformedInput(
            Reason.CONFIG_INVALID, "--clock-origin is METERING@REAL, two Unix times"
        )
    if not 0 < rate <= 10_000:
        raise MalformedInput(Reason.CONFIG_INVALID, "--clock-rate is above 0 and at most 10000")
    return ScaledClock(metering, real, rate)
