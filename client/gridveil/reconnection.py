"""When a watch that ended is tried again."""

from __future__ import annotations

import secrets

from gridveil.protocol.errors import Exhausted, GridveilError, Reason, Unavailable

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_LONGEST_RETRY_AFTER_S = 300.0
"""Whatever a server asks for: one answer must not end a watch for ever."""


class Reconnection:
    """Waits longer after each failure in a row; times are seconds of any steady clock."""

    def __init__(self, give_up_after_s: float | None) -> None:
        self._give_up_after = give_up_after_s
        self._failures = 0
        self._connected_at: float | None = None
        self._failing_since: float | None = None

    def received(self) -> None:
        """Something came: the failures before are forgotten."""
        self._failures, self._failing_since = 0, None

    def connected(self, now: float) -> None:
        """The service was reached at ``now``."""
        self._connected_at = now

    def ended(self, now: float) -> float:
        """Seconds to wait after the service closed the stream."""
        return self.failed(Unavailable(Reason.UNREACHABLE, "the watch was closed"), now)

    def failed(self, error: GridveilError, now: float) -> float:
        """Seconds to wait after a failure; raises it if it is final or lasts too long."""
        if not isinstance(error, Unavailable | Exhausted):
            raise error
        if self._connected_at is not None and now - self._connected_at >= _LONGEST_DELAY_S:
            self.received()
        self._connected_at = None
        if self._failing_since is None:
            self._failing_since = now
        patience = self._give_up_after
        if patience is not None and now - self._failing_since >= patience:
            raise error
        delay = min(_FIRST_DELAY_S * 2.0**self._failures, _LONGEST_DELAY_S)
        self._failures = min(self._failures + 1, 10)
        delay *= secrets.SystemRandom().uniform(0.5, 1)
        return max(delay, min(error.retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S))
