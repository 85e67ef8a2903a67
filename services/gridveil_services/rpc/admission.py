"""How many calls there may be at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from gridveil.protocol.errors import Reason, Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """A bound on the calls of one kind, and on how many of them are worked on at a time.

    A call holds a place, with a thread, until it is handled and over on the wire: neither calls
    whose callers have left nor answers that nobody takes can pile up. Only ``workers`` of them
    have their turn at a time; the others receive their message, so that slow senders keep nobody
    else from work.
    """

    def __init__(self, name: str, workers: int, places: int) -> None:
        self.executor = ThreadPoolExecutor(places, thread_name_prefix=name)
        self._turns = threading.Semaphore(workers)
        self._places = places
        self._held = 0
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Take a place; False if all are taken."""
        with self._changed:
            if self._held >= self._places:
                return False
            self._held += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    @contextmanager
    def turn(self, timeout_s: float | None) -> Iterator[None]:
        """While a call is worked on; DEADLINE_EXCEEDED if its turn does not come in time."""
        if not self._turns.acquire(timeout=timeout_s):
            raise Unavailable(Reason.DEADLINE_EXCEEDED, "no worker was free in time")
        try:
            yield
        finally:
            self._turns.release()

    def close(self) -> None:
        """Let idle workers end; only once nothing more is submitted."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether every place was given back in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, max(0.0, timeout_s))


class Inline(ThreadPoolExecutor):
    """Runs what it is given at once, in the caller's thread: for refusals, which never wait."""

    def __init__(self) -> None:
        super().__init__(1)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
