"""What a server tells of its calls to whoever counts them; without one, nobody is told."""

from __future__ import annotations

from typing import Protocol

from gridveil.protocol.errors import Reason


class CallObserver(Protocol):
    """Told of every call. Called from many threads; neither blocks nor raises."""

    def call_ended(self, method: str, code: str, reason: Reason | None, seconds: float) -> None:
        """An admitted call is handled.

        Args:
            method: one that the server has, as on the wire.
            code: name of the gRPC status.
            reason: of the refusal, if it was one.
            seconds: real time since the call was admitted.
        """

    def call_refused(self, method: str, code: str, reason: Reason) -> None:
        """A call was not admitted."""


class Unobserved:
    """Tells nobody."""

    def call_ended(self, method: str, code: str, reason: Reason | None, seconds: float) -> None:
        pass

    def call_refused(self, method: str, code: str, reason: Reason) -> None:
        pass
