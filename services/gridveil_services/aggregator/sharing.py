"""This aggregator's part among those that share a store: it follows, leads, and vouches."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import IntegrityLost
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.store.interface import Phase, Store

_log = structlog.get_logger()

INTERVAL_S = 1.0
"""Metering time between two looks."""
SHORTEST_INTERVAL_S = 0.05
LONGEST_INTERVAL_S = 0.5
"""Several times in the life of a lease."""


class Sharing:
    """Keeps up with the others. One aggregator alone always leads."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        clock: Clock,
        on_sealed: Callable[[], None],
        on_lead: Callable[[], None] = lambda: None,
    ) -> None:
        """Look from time to time.

        ``on_sealed`` is called when this aggregator is to release windows it did not seal,
        ``on_lead`` when it leads after another did, or after nobody knew.
        """
        self._store = store
        self._committer = committer
        self._clock = clock
        self._on_sealed = on_sealed
        self._on_lead = on_lead
        self._led = False
        self._sealed: set[int] = set()

    def step(self) -> float:
        """Look what others did; real seconds until the next look."""
        led, self._led = self._led, False  # If it fails, the others' threads saw that nobody led.
        leads = self._committer.run(self._store.follow)
        if leads != led:
            _log.info("leads" if leads else "follows")
        if leads and not led:
            self._on_lead()
        sealed = {w.start for w in self._store.windows() if w.phase is Phase.SEALED}
        if leads and (sealed - self._sealed or (sealed and not led)):
            self._on_sealed()
        self._led, self._sealed = leads, sealed
        if not leads:
            for start in sealed:
                self._vouch(start)
        return min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, self._clock.real(INTERVAL_S)))

    def _vouch(self, start: int) -> None:
        try:
            self._store.vouched(start)
        except IntegrityLost:
            self._committer.run(lambda: self._store.settle(start, Phase.POISONED))
