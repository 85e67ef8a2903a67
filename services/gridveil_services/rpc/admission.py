"""How many calls there may be at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """Worker threads for one kind of calls, and a bound on the calls that hold a place.

    A place is held until the worker is done with the call and the call is over on the wire. So
    neither calls whose callers left while they wait for a worker nor answers that nobody takes
    can pile up.
    """

    def __init__(self, name: str, workers: int, places: int) -> None:
        self.executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
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
