"""The same work on every core, behind all else that runs there."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def on_every_core(work: Callable[[Given], Found], given: Iterable[Given]) -> Iterator[Found]:
    """What ``work`` makes of each, in their order. It is a module's function, to be pickled."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), context, _yield) as pool:
        yield from pool.map(work, given)


def cores() -> int:
    """How many there are for this process."""
    return len(os.sched_getaffinity(0))


def _yield() -> None:
    os.nice(19)
