"""What time does to windows: sealed when they close, forgotten after their retention."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gridveil.clock import Clock
from gridveil.protocol.layout import sha256
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.aggregator.city import City
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.store.interface import Documents, Phase, Store, Window

_log = structlog.get_logger()

INTERVAL_S = 1.0
"""Metering time between two looks."""
SHORTEST_INTERVAL_S = 0.01
LONGEST_INTERVAL_S = 0.5


def is_complete(window: Window, count: int, now: float) -> bool:
    """Whether an open window is to be sealed: it closes, or every enrolled meter has reported."""
    return now >= window.closes or (count >= window.enrolled > 0)


class Sealer:
    """Seals windows by the aggregator's own clock, and deletes what is past its retention."""

    def __init__(
        self,
        *,
        city: City,
        store: Store,
        documents: Documents,
        committer: Committer,
        clock: Clock,
        retention_s: int,
        on_sealed: Callable[[], None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Untraced()
        self._city = city
        self._store = store
        self._documents = documents
        self._committer = committer
        self._clock = clock
        self._retention_s = retention_s
        self._on_sealed = on_sealed

    def step(self) -> float:
        """Do what is due; real seconds until the next look."""
        now = self._clock.now()
        # First: it makes room for the receipts of what is sealed.
        self._forget(now - self._retention_s)
        for window in self._store.windows() if self._store.leads else ():
            if window.phase is Phase.OPEN and is_complete(
                window, self._store.count(window.start), now
            ):
                self._seal(window.start)
        return min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, self._clock.real(INTERVAL_S)))

    def _seal(self, start: int) -> None:
        with self._tracer.span("seal"):
            sealed = self._committer.run(lambda: self._store.seal(start))
        if sealed:
            _log.info("sealed", window=start, count=self._store.count(start))
            self._on_sealed()

    def _forget(self, ended_before: float) -> None:
        windows = self._store.windows()
        if not any(window.phase.settled and window.end < ended_before for window in windows):
            return
        self._committer.run(lambda: self._store.forget(int(ended_before)))
        before = self._kept_parameters()
        self._committer.run(lambda: self._documents.prune(int(ended_before)))
        self._city.parameters.forget(before - self._kept_parameters())

    def _kept_parameters(self) -> set[bytes]:
        return {sha256(document) for document, _ in self._documents.parameters()}
