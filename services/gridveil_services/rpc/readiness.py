"""Whether a server is ready: every condition is looked at anew, and none is taken for granted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

_log = structlog.get_logger()

PERIOD_S = 1.0
"""Real seconds between two looks for those who watch."""


class Readiness:
    """Named conditions that must all hold. Thread-safe."""

    def __init__(self) -> None:
        self._conditions: dict[str, Callable[[], bool]] = {}
        self._unmet: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def require(self, name: str, condition: Callable[[], bool]) -> None:
        """Be ready only while ``condition`` holds; one that raises does not hold."""
        self._conditions[name] = condition

    def look(self) -> dict[str, bool]:
        """Each condition by name, and whether it holds now; what has changed is logged."""
        found = {name: _holds(condition) for name, condition in self._conditions.items()}
        unmet = frozenset(name for name, holds in found.items() if not holds)
        with self._lock:
            before, self._unmet = self._unmet, unmet
        if unmet and unmet != before:
            _log.warning("not ready", unmet=sorted(unmet))
        elif before and not unmet:
            _log.info("ready again")
        return found

    @property
    def ready(self) -> bool:
        """Whether all hold now."""
        return all(self.look().values())


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except Exception:  # what cannot be looked at is not ready
        return False
