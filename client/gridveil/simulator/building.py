"""Reports made in chunks: here, or by worker processes that are spawned, never forked.

Encryption holds the interpreter's lock, so only processes use more than one core; a fork of a
process that has loaded gRPC hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self

from gridveil.meter_identity import MeterKeys
from gridveil.protocol.city import CityParameters
from gridveil.reporting import ReportBuilder, signed_reading
from gridveil.submission import Prepared, encode_report

FLEET_FOR_WORKERS = 2_000
"""From this size on a fleet gets worker processes."""

_AHEAD = 2
"""Chunks for each worker that wait or are in progress."""


@dataclass(frozen=True)
class Chunk:
    """Readings of one window whose reports are made, kept and sent together."""

    window_start: int
    parameters: CityParameters
    meters: tuple[MeterKeys, ...]
    wh: tuple[int, ...]
    """Signed."""


@dataclass(frozen=True)
class Built:
    """A chunk with its reports."""

    chunk: Chunk
    prepared: list[Prepared]


def default_workers(meters: int) -> int:
    """0, for here, or a worker for each core."""
    return len(os.sched_getaffinity(0)) if meters >= FLEET_FOR_WORKERS else 0


class ReportFactory:
    """Makes the reports of chunks in the order they are handed in."""

    def __init__(self, workers: int) -> None:
        """``workers``: processes; 0 makes reports in this one."""
        spawn = multiprocessing.get_context("spawn")
        self._pool = (
            ProcessPoolExecutor(workers, spawn, initializer=_stay_with_parent) if workers else None
        )
        self._workers = workers
        self._room = max(1, workers * _AHEAD)
        self._pending: deque[tuple[Chunk, Future[list[bytes]]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def warm_up(self) -> None:
        """Load what encrypts, in every worker, before time matters."""
        if self._pool is None:
            _load_encryption()
        else:
            wait([self._pool.submit(_load_encryption) for _ in range(self._workers)])

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress."""
        return not self._pending

    @property
    def has_room(self) -> bool:
        """Whether to hand in another chunk."""
        return len(self._pending) < self._room

    def add(self, chunk: Chunk) -> None:
        """Hand a chunk in."""
        done: Future[list[bytes]] = Future()
        if self._pool:
            done = self._pool.submit(
                build_reports,
                chunk.parameters.encode(),
                chunk.window_start,
                chunk.meters,
                chunk.wh,
            )
        else:
            done.set_result(_build(chunk.parameters, chunk.window_start, chunk.meters, chunk.wh))
        self._pending.append((chunk, done))

    def finished(self, timeout_s: float) -> list[Built]:
        """Chunks that are done; waits so long for the first one in order."""
        if self._pending:
            wait([self._pending[0][1]], timeout_s)
        built = []
        while self._pending and self._pending[0][1].done():
            chunk, done = self._pending.popleft()
            built.append(Built(chunk, _prepared(chunk, done.result())))
        return built


def _stay_with_parent() -> None:
    """Leave interrupts to the parent, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _load_encryption() -> None:
    from gridveil import encryption  # noqa: F401 - the import is the point


def build_reports(
    parameters: bytes, window_start: int, meters: Sequence[MeterKeys], wh: Sequence[int]
) -> list[bytes]:
    """Serialized reports, in order; runs in a worker process."""
    return _build(_decoded(parameters), window_start, meters, wh)


def _build(
    parameters: CityParameters, window_start: int, meters: Sequence[MeterKeys], wh: Sequence[int]
) -> list[bytes]:
    return [
        encode_report(ReportBuilder(parameters, meter).build(window_start, signed_reading(value)))
        for meter, value in zip(meters, wh, strict=True)
    ]


def _prepared(chunk: Chunk, reports: Sequence[bytes]) -> list[Prepared]:
    return [
        Prepared(meter.meter_id, signed_reading(value), report)
        for meter, value, report in zip(chunk.meters, chunk.wh, reports, strict=True)
    ]


@lru_cache(maxsize=2)
def _decoded(parameters: bytes) -> CityParameters:
    return CityParameters.decode(parameters)
