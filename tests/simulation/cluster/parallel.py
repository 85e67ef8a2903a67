"""The same work on every core, each process held to one.

A world is one thread of control that is handed from stack to stack: on one core that costs a
third less.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def on_every_core(work: Callable[[Given], Found], given: Iterable[Given]) -> Iterator[Found]:
    """What ``work`` makes of each, in their order. It is a module's function, to be pickled."""
    context = multiprocessing.get_context("spawn")
    allowed = sorted(os.sched_getaffinity(0))
    free = context.SimpleQueue()
    for core in allowed:
        free.put(core)
    with ProcessPoolExecutor(len(allowed), context, _hold, (free,)) as pool:
        yield from pool.map(work, given)


def cores() -> int:
    """How many there are for this process."""
    return len(os.sched_getaffinity(0))


def _hold(free: SimpleQueue[int]) -> None:
    os.sched_setaffinity(0, {free.get()})
