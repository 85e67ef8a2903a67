"""What time does to the key-holder: new epochs, expired windows, keys and spools that are done."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.windows import WindowRules
from gridveil_services.keyholder.epoch_keys import EpochRing
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.release import Releases
from gridveil_services.keyholder.roster_store import RosterStore

INTERVAL_S = 30.0
"""Metering time between two ticks."""
SHORTEST_INTERVAL_S = 0.05
"""Real time between two ticks, however fast the clock runs."""
MOST_AT_ONCE = 1000
"""Windows that expire in one write."""
DERIVED_AT_ONCE = 50_000
"""Keys shared with meters that one tick derives ahead of need: 2 s of CPU."""

_log = structlog.get_logger()


class Upkeep:
    """Does what is due, once a tick."""

    def __init__(
        self,
        rules: WindowRules,
        ledger: Ledger,
        ring: EpochRing,
        roster: RosterStore,
        releases: Releases,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._ring = ring
        self._roster = roster
        self._releases = releases
        self._clock = clock
        self._next_window = 0
        """Every window before it is settled, expired or claimed."""
        self._without_windows: set[bytes] = set()
        """Destroyed epochs of which every window is settled, expired or claimed."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, after: Callable[[], None]) -> None:
        """Tick from now on, and call ``after`` each time."""
        self._thread = threading.Thread(target=self._run, args=(after,), name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self) -> None:
        """Do what is due; nothing while the log cannot be written."""
        if self._ledger.failed:
            return
        now = self._clock.now()
        self._ring.retire_spent(now)
        self._ring.ensure(now)
        self._expire(now)
        self._expire_lost()
        self._releases.sweep()
        self._ring.destroy_done(now, self._roster.first_in_force)
        self._ring.derive_ahead(self._roster.members, DERIVED_AT_ONCE)

    def _expire(self, now: float) -> None:
        first = self._roster.first_in_force
        if first is None:
            return
        window, over = max(first, self._next_window), []
        while self._rules.expires(window) <= now:
            over.append(window)
            window += self._rules.length
        for at in range(0, len(over), MOST_AT_ONCE):
            self._ledger.expire(over[at : at + MOST_AT_ONCE])
        self._next_window = window

    def _expire_lost(self) -> None:
        """Windows that nobody can open any more, as their epoch was destroyed before them."""
        first = self._roster.first_in_force
        if first is None:
            return
        for epoch in self._ledger.epochs().values():
            if epoch.destroyed and epoch.epoch_id not in self._without_windows:
                windows = range(epoch.first_window, epoch.end_window, self._rules.length)
                self._ledger.expire([window for window in windows if window >= first])
                self._without_windows.add(epoch.epoch_id)

    def _run(self, after: Callable[[], None]) -> None:
        interval = max(SHORTEST_INTERVAL_S, self._clock.real(INTERVAL_S))
        while not self._stopped.wait(interval):
            try:
                self.tick()
            except (GridveilError, OSError) as error:
                _log.error("upkeep failed", cause=str(error))
            after()
