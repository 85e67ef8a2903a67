"""Totals whose cohorts differ by few meters: subtracted, they come near to a household's reading.

Why they differ does not matter for what can be learned: a meter that was suppressed and one that
was away by chance leave the same difference. So all such totals are counted, for an alert; none is
held back, since the outcome of a claimed window must not depend on what others released.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain

import numpy as np
import numpy.typing as npt

FEW = 5
"""Meters; cohorts that differ by fewer are told."""
REMEMBERED = 4
"""Totals before this one that it is compared with; after a start there are none."""


class Difference(StrEnum):
    """How far a cohort is from the nearest other one that was not the same."""

    SAME = "same"
    """All are the same."""
    FEW = "few"
    MANY = "many"


class Cohorts:
    """The cohorts of the last totals, in memory: 8 bytes a meter. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: deque[npt.NDArray[np.uint64]] = deque(maxlen=REMEMBERED)

    def compare(self, lanes: Sequence[Sequence[bytes]]) -> Difference | None:
        """How far the cohort of a new total is from those before it; None if there are none.

        Args:
            lanes: the 16-byte ids of the meters in each of its lanes, each once. Ids whose first
                8 bytes are the same are taken for one: then a difference may be missed.
        """
        ids = np.frombuffer(b"".join(chain.from_iterable(lanes)), np.uint64)
        cohort = np.unique(ids[::2])
        with self._lock:
            before = tuple(self._before)
            self._before.append(cohort)
        differences = [_difference(cohort, other) for other in before]
        if not differences:
            return None
        nearest = min(filter(None, differences), default=0)
        if nearest == 0:
            return Difference.SAME
        return Difference.FEW if nearest < FEW else Difference.MANY


def _difference(cohort: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> int:
    """Meters that are in one of two cohorts and not in the other."""
    common = np.intersect1d(cohort, other, assume_unique=True).size
    return cohort.size + other.size - 2 * common
