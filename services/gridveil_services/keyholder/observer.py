"""What a key-holder tells of its releases to whoever counts them; without one, nobody is told."""

from __future__ import annotations

from typing import Protocol

from gridveil.protocol.errors import Reason
from gridveil_services.keyholder.differencing import Difference


class ReleaseObserver(Protocol):
    """Neither blocks nor raises. It is never told of a reading, a total or a meter."""

    def release_ended(self, outcome: str, reason: Reason | None, seconds: float) -> None:
        """A release was answered: ``released``, ``replayed``, or ``refused`` with a reason."""

    def lanes_decrypted(self, opened: int, failed: int) -> None:
        """Lanes of one window were decrypted: so many opened, so many did not."""

    def cohort_compared(self, difference: Difference) -> None:
        """A total was released whose cohort is so far from those of the totals before it."""


class Unobserved:
    """Tells nobody."""

    def release_ended(self, outcome: str, reason: Reason | None, seconds: float) -> None:
        pass

    def lanes_decrypted(self, opened: int, failed: int) -> None:
        pass

    def cohort_compared(self, difference: Difference) -> None:
        pass
