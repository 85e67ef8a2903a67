"""Readings of a fleet: signed Wh by window and meter, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.register_names import EXPORT_REGISTER, IMPORT_REGISTER


@dataclass(frozen=True)
class ReadingBounds:
    """What a reading may be in a city."""

    window_length: int
    """Seconds."""
    least: int
    """Largest feed-in as a negative number, Wh."""
    most: int
    """Largest consumption, Wh."""

    @classmethod
    def of_city(cls, policy: CityPolicy) -> ReadingBounds:
        """The bounds of a city with the registers that signed readings go to.

        Raises:
            MalformedInput: CONFIG_INVALID for a city with other registers.
        """
        bounds = {register.name: register.bound for register in policy.registers}
        if bounds.keys() != {IMPORT_REGISTER, EXPORT_REGISTER}:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"the simulator fills {IMPORT_REGISTER} and {EXPORT_REGISTER}; the city's "
                f"registers are {', '.join(bounds)}",
            )
        return cls(policy.window_length, -bounds[EXPORT_REGISTER], bounds[IMPORT_REGISTER])


@dataclass(frozen=True)
class Readings:
    """Readings of some windows."""

    windows: tuple[int, ...]
    wh: NDArray[np.int64]
    """Shape (windows, meters), signed Wh; 0 where there is none."""
    present: NDArray[np.bool_]
    """Shape (windows, meters)."""

    @classmethod
    def none(cls, windows: Sequence[int], meters: int) -> Readings:
        """A table to fill."""
        shape = (len(windows), meters)
        return cls(tuple(windows), np.zeros(shape, np.int64), np.zeros(shape, np.bool_))


class ReadingSource(Protocol):
    """Where readings come from."""

    @property
    def skipped(self) -> int:
        """How many bad readings and rows were passed over so far."""
        ...

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        """The readings of a fleet for some windows.

        Args:
            labels: the meters' names in the source; None for a meter that takes any name left.
            windows: window starts, ascending.
            bounds: what a reading may be.

        Raises:
            MalformedInput: READING_INVALID for bad data, CONFIG_INVALID for data that cannot be
                had; never with a value in the text.
        """
        ...
