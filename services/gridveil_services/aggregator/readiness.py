"""Whether the store takes reports."""

from __future__ import annotations

import threading
import time

from gridveil.protocol.errors import Unavailable
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.store.interface import Store

PATIENCE_S = 2.0
"""Real seconds for the store to say that it would take a report."""
DOUBT_S = 5.0
"""Real seconds after a failed commit in which only another commit that succeeds is believed."""
FRESH_S = 0.5
"""Real seconds that an answer is good for: however often health is asked, commits go on."""


class StoreReadiness:
    """Asks the store beside the commits, in the thread that makes them."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        *,
        doubt_s: float = DOUBT_S,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._doubt_s = doubt_s
        self._fresh_s = fresh_s
        self._asking = threading.Lock()
        self._answer = False
        self._asked_at = float("-inf")
        self._store = store
        self._committer = committer

    def __call__(self) -> bool:
        """Whether a report would be stored now, as far as can be known without one."""
        failed_at = self._committer.failed_at
        if failed_at is not None and time.monotonic() < failed_at + self._doubt_s:
            return False
        with self._asking:
            if self._asked_at + self._fresh_s <= time.monotonic():
                self._answer = False
                self._answer = self._committer.run(self._probe, timeout_s=PATIENCE_S)
                self._asked_at = time.monotonic()
            return self._answer

    def _probe(self) -> bool:
        try:
            self._store.probe()
        except Unavailable:
            return False
        return True
