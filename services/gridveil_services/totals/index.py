"""The settled windows in memory, in order of window and in order of settlement."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence

from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason
from gridveil.protocol.v1 import totals_pb2


class SettledIndex:
    """What readers ask and one follower fills. An outcome is never changed nor taken back.

    A watcher holds no more than its place in the order of settlement, so that a slow one costs
    nothing.
    """

    def __init__(self) -> None:
        self._outcomes: dict[int, totals_pb2.WindowOutcome] = {}
        self._windows: list[int] = []
        self._settled: list[int] = []
        self._newest: int | None = None
        self._failure: GridveilError | None = None
        self._changed = threading.Condition()

    def add(self, outcomes: Iterable[totals_pb2.WindowOutcome]) -> None:
        """Take newly settled windows; LOG_CORRUPT for one that is settled already."""
        fresh = list(outcomes)
        with self._changed:
            if not fresh and self._failure is None:
                return
            for outcome in fresh:
                window = outcome.window_start
                if window in self._outcomes:
                    raise IntegrityLost(
                        Reason.LOG_CORRUPT, "the release log settles a window twice"
                    )
                self._outcomes[window] = outcome
                insort(self._windows, window)
                self._settled.append(window)
                if outcome.HasField("total"):
                    self._newest = max(window, self._newest or 0)
            self._failure = None
            self._changed.notify_all()

    @property
    def newest(self) -> int | None:
        """Start of the newest window that has a total."""
        return self._newest

    def fail(self, error: GridveilError) -> None:
        """Refuse everything with this error, until outcomes are added again."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what the index refuses everything with, if it does."""
        with self._changed:
            self._check()

    def wake(self) -> None:
        """Let watchers look whether anybody still listens to them."""
        with self._changed:
            self._changed.notify_all()

    def get(self, window_start: int) -> totals_pb2.WindowOutcome | None:
        """The outcome of a window, if it is settled."""
        with self._changed:
            self._check()
            return self._outcomes.get(window_start)

    def page(
        self, from_window: int, until_window: int, size: int
    ) -> tuple[Sequence[totals_pb2.WindowOutcome], int | None]:
        """At most ``size`` outcomes from ``from_window`` on, and where the next page begins.

        ``until_window`` is the first that is left out; 0 for no end.
        """
        with self._changed:
            self._check()
            at = bisect_left(self._windows, from_window)
            end = bisect_left(self._windows, until_window) if until_window else len(self._windows)
            found = [self._outcomes[window] for window in self._windows[at : min(at + size, end)]]
            following = self._windows[at + size] if at + size < end else None
            return found, following

    def watch(
        self, from_window: int, is_active: Callable[[], bool]
    ) -> Iterator[totals_pb2.WindowOutcome]:
        """Settled windows from ``from_window`` on in order, then each as it settles.

        With 0, only those that settle from now on. Each window comes once. Ends when
        ``is_active`` says so; :meth:`wake` makes it look.
        """
        with self._changed:
            self._check()
            place = len(self._settled)
            at = bisect_left(self._windows, from_window) if from_window else len(self._windows)
            windows = self._windows[at:]
        while True:
            for window in windows:
                if not is_active():
                    return
                yield self._outcomes[window]
            fresh = self._wait_beyond(place, is_active)
            if not fresh:
                return
            place += len(fresh)
            windows = [window for window in fresh if window >= from_window]

    def _wait_beyond(self, place: int, is_active: Callable[[], bool]) -> Sequence[int]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or len(self._settled) > place or not is_active()
            )
            self._check()
            return self._settled[place:]

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.reason, self._failure.message)
