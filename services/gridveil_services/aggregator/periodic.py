"""Background work: a step again and again, in a thread of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import Unavailable

_log = structlog.get_logger()

_AFTER_A_DEFECT_S = 1.0
_WHILE_UNAVAILABLE_S = 1.0
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 15.0


class Periodic:
    """Calls ``step``, which says after how many real seconds it wants to be called again."""

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self._step = step
        self._stopped = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Call the step at once, or again after the one in progress."""
        self._woken.set()

    def stop(self) -> None:
        """No further step; waits for the one in progress."""
        self._stopped = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._woken.clear()
            try:
                delay = self._step()
            except Unavailable as error:
                _log.warning("background work waits", thread=self._thread.name, reason=error.reason)
                delay = _WHILE_UNAVAILABLE_S
            except Exception as error:
                _log.error("background work failed", thread=self._thread.name, exc_info=error)
                delay = _AFTER_A_DEFECT_S
            if not self._stopped:
                self._woken.wait(delay)


def retry_delay_s(failures: int, clock: Clock) -> float:
    """Real seconds before the next attempt, with full jitter; at most a minute of metering time."""
    longest = min(_LONGEST_RETRY_S, max(_FIRST_RETRY_S, clock.real(60)))
    bound = min(longest, _FIRST_RETRY_S * 2 ** min(failures, 16))
    return random.uniform(bound / 4, bound)  # noqa: S311 - spreads retries
