"""The one thread that writes: it commits what several calls hand in together.

A call is answered after the commit that holds its reports returned, never before. Whatever else
is written goes through the same queue, so that what was handed in before a window is sealed is
committed before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from gridveil.clock import Clock
from gridveil.protocol.errors import Exhausted, Reason, Unavailable
from gridveil_services.aggregator.observer import IngestObserver, Stage, Unobserved
from gridveil_services.aggregator.store.interface import LaneBatch, Outcome, Store

T = TypeVar("T")

LINGER_S = 0.05
"""How long a commit waits for calls in progress to join it, real seconds; a lone call never.

Every commit writes the sums of all lanes it touches, so a few large ones cost far less than many.
"""
MOST_IN_PROGRESS = 4_096
"""Reports whose calls are in progress, at the most; 17.4 kB each."""
MOST_TOGETHER = 2_048
"""Reports in one commit, at the most, unless one call brings more."""


@dataclass(frozen=True)
class _Commit:
    batches: Sequence[LaneBatch]
    reports: int
    done: Future[Sequence[Outcome]]
    handed_in: float
    """On the monotonic clock."""


@dataclass(frozen=True)
class _Action:
    action: Callable[[], Any]
    done: Future[Any]


class Committer:
    """Queue and thread in front of a :class:`Store`. Use as a context manager."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        most_in_progress: int = MOST_IN_PROGRESS,
        observer: IngestObserver | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self.failed_at: float | None = None
        """When a write failed, on the monotonic clock; None after one that did not."""
        self._store = store
        self._clock = clock
        self._most_in_progress = most_in_progress
        self._changed = threading.Condition()
        self._queue: deque[_Commit | _Action] = deque()
        self._calls_in_progress = 0
        self._reports_in_progress = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="committer", daemon=True)

    @contextmanager
    def place(self, reports: int) -> Iterator[None]:
        """Around all work on so many reports; OVERLOADED before any, if there are too many."""
        with self._changed:
            if self._reports_in_progress + reports > self._most_in_progress:
                raise Exhausted(
                    Reason.OVERLOADED, "too many reports are in progress", retry_after_s=0.25
                )
            self._reports_in_progress += reports
            self._calls_in_progress += 1
        try:
            yield
        finally:
            with self._changed:
                self._reports_in_progress -= reports
                self._calls_in_progress -= 1
                self._changed.notify_all()

    @property
    def reports_in_progress(self) -> int:
        """Reports that hold a place now."""
        return self._reports_in_progress

    def commit(self, batches: Sequence[LaneBatch]) -> Sequence[Outcome]:
        """Outcomes of the batches, after they are durable. Raises as :meth:`Store.commit`."""
        reports = sum(len(batch.reports) for batch in batches)
        done: Future[Sequence[Outcome]] = Future()
        self._put(_Commit(batches, reports, done, time.monotonic()))
        return done.result()

    def run(self, action: Callable[[], T], timeout_s: float | None = None) -> T:
        """What ``action`` returns, run between commits after all that was handed in before.

        Raises:
            TimeoutError: it did not in ``timeout_s`` real seconds, and may yet.
        """
        done: Future[T] = Future()
        self._put(_Action(action, done))
        return done.result(timeout_s)

    def close(self) -> None:
        """Finish what was handed in, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Committer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, item: _Commit | _Action) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable(Reason.DRAINING, "the service is about to stop", retry_after_s=1)
            self._queue.append(item)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                if isinstance(self._queue[0], _Commit):
                    self._linger()
            self.work_off_one()

    def work_off_one(self) -> None:
        """Carry out an action, or commit together what was handed in before the next one.

        From one thread at a time; there must be something.
        """
        with self._changed:
            taken = self._take()
        if isinstance(taken, _Action):
            self._run(taken)
        else:
            self._commit_together(taken)

    def _linger(self) -> None:
        """Wait for more, unless every call in progress waits in the queue already."""
        end = time.monotonic() + LINGER_S
        while not self._closed and len(self._queue) < self._calls_in_progress:
            if not self._changed.wait(end - time.monotonic()):
                return

    def _take(self) -> list[_Commit] | _Action:
        first = self._queue.popleft()
        if isinstance(first, _Action):
            return first
        taken = [first]
        reports = first.reports
        while self._queue and isinstance(following := self._queue[0], _Commit):
            if (reports := reports + following.reports) > MOST_TOGETHER:
                break
            self._queue.popleft()
            taken.append(following)
        return taken

    def _commit_together(self, commits: Sequence[_Commit]) -> None:
        batches = [batch for commit in commits for batch in commit.batches]
        begun = time.monotonic()
        for commit in commits:
            self._observer.waited(begun - commit.handed_in)
        try:
            with self._observer.stage(Stage.COMMIT):
                outcomes = iter(self._store.commit(batches, int(self._clock.now() * 1000)))
        except Exception as error:
            self._note_failure(error)
            for commit in commits:
                commit.done.set_exception(error)
            return
        self.failed_at = None
        self._observer.committed(sum(commit.reports for commit in commits))
        for commit in commits:
            commit.done.set_result([next(outcomes) for _ in commit.batches])

    def _run(self, taken: _Action) -> None:
        try:
            taken.done.set_result(taken.action())
        except Exception as error:
            self._note_failure(error)
            taken.done.set_exception(error)

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, Unavailable):
            self.failed_at = time.monotonic()
            self._observer.store_failed(error.reason)
