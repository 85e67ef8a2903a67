"""Has the key-holder release what is sealed, until it settles each window one way or the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason, Unavailable
from gridveil.protocol.windows import EXPIRY_S
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.observer import IngestObserver, Unobserved
from gridveil_services.aggregator.periodic import retry_delay_s
from gridveil_services.aggregator.release import SealedRelease
from gridveil_services.aggregator.store.interface import Phase, Store, Window
from gridveil_services.aggregator.upstream import KeyHolderClient

_log = structlog.get_logger()

_FINAL = {
    Reason.REFUSED: Phase.REFUSED,
    Reason.BUDGET_EXHAUSTED: Phase.REFUSED,
    Reason.WINDOW_PINNED: Phase.REFUSED,
    Reason.WINDOW_EXPIRED: Phase.EXPIRED,
}


def verdict(error: GridveilError, window: Window, now: float) -> Phase | None:
    """The final phase that a refusal puts a sealed window into; None to try again.

    A sealed window does not grow, but before it closes the key-holder may not judge its cohort.
    Keys that are destroyed never come back: a window with reports under them is over.
    """
    if now >= window.closes:
        if error.reason is Reason.COHORT_TOO_SMALL:
            return Phase.REFUSED
        if error.reason is Reason.KEY_EPOCH:
            return Phase.EXPIRED
    return _FINAL.get(error.reason)


class Releaser:
    """Releases sealed windows, oldest first, and tries again with jitter until they expire."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        keyholder: KeyHolderClient,
        clock: Clock,
        city_id: bytes,
        on_settled: Callable[[], None] = lambda: None,
        observer: IngestObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``on_settled`` is called after the key-holder settled a window, either way."""
        self._observer = observer or Unobserved()
        self._tracer = tracer or Untraced()
        self._on_settled = on_settled
        self._store = store
        self._committer = committer
        self._keyholder = keyholder
        self._clock = clock
        self._city_id = city_id
        self._failures: dict[int, int] = {}
        self._due: dict[int, float] = {}
        """When to try a window again, on the real, monotonic clock."""

    def step(self) -> float:
        """Try every sealed window that is due; real seconds until the next."""
        if not self._store.leads:
            self._due.clear()
            return 60.0
        sealed = [window for window in self._store.windows() if window.phase is Phase.SEALED]
        # Others settle windows too.
        for start in (self._due.keys() | self._failures.keys()) - {w.start for w in sealed}:
            self._due.pop(start, None)
            self._failures.pop(start, None)
        for window in sealed:
            if self._due.get(window.start, 0.0) <= time.monotonic():
                self._try(window)
        waiting = [due - time.monotonic() for due in self._due.values()]
        return max(0.0, min(waiting, default=60.0))

    def _try(self, window: Window) -> None:
        begun = time.monotonic()
        phase = self._attempt(window)
        self._observer.attempted(phase, time.monotonic() - begun)
        if phase is None:
            failures = self._failures[window.start] = self._failures.get(window.start, 0) + 1
            self._due[window.start] = time.monotonic() + retry_delay_s(failures, self._clock)
            return
        self._failures.pop(window.start, None)
        self._due.pop(window.start, None)
        if self._committer.run(lambda: self._store.settle(window.start, phase)):
            _log.info("settled", window=window.start, phase=phase.name)
        self._on_settled()

    def _attempt(self, window: Window) -> Phase | None:
        if self._clock.now() >= window.end + EXPIRY_S:
            return Phase.EXPIRED
        try:
            if not self._store.vouched(window.start):
                _log.info("not vouched for yet", window=window.start)
                return None
            release = SealedRelease.of(self._store, window, self._city_id)
        except IntegrityLost:
            return Phase.POISONED
        held = self._store.window(window.start)
        if held is None or held.phase is not Phase.SEALED:
            return None  # Another one settled it, and deleted its entries while they were read.
        if not release.lanes:
            return Phase.EMPTY
        try:
            with self._tracer.span("release", release.header.count):
                self._send(release)
        except GridveilError as error:
            phase = verdict(error, window, self._clock.now())
            _log.warning("not released", window=window.start, reason=error.reason)
            return phase
        return Phase.RELEASED

    def _send(self, release: SealedRelease) -> None:
        window_start = release.header.window_start
        held = self._keyholder.progress(window_start, release.digest)
        if held is None:
            messages = iter([release.header_message()])
        else:
            messages = release.messages(self._store.entries(window_start), held)
        if self._keyholder.release(messages) != release.digest:
            raise Unavailable(Reason.KEYHOLDER_UNAVAILABLE, "the answer is about another release")
