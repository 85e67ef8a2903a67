"""What a key-holder tells of its releases to whoever counts them; without one, nobody is told."""

from __future__ import annotations

from typing import Protocol

from gridveil.protocol.errors import Reason


class ReleaseObserver(Protocol):
    """Neither blocks nor raises. It is never told of a reading, a total or a meter."""

    def release_ended(self, outcome: str, reason: Reason | None, seconds: float) -> None:
        """A release was answered: ``released``, ``replayed``, or ``refused`` with a reason."""

    def lanes_decrypted(self, opened: int, failed: int) -> None:
        """Lanes of one window were decrypted: so many opened, so many did not."""


class Unobserved:
    """Tells nobody."""

    def release_ended(self, outcome: str, reason: Reason | None, seconds: float) -> None:
        pass

    def lanes_decrypted(self, opened: int, failed: int) -> None:
        pass
