"""One operator's client, asked by several tasks or threads at once while the log grows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from gridveil.operator import AsyncOperator
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import expired, publish
from tests.support.totals_clients import client, window

OVERTAKEN_S = 1.0
"""So long the second may take to overtake the first, if it can."""


class _FirstProofIsLate:
    """The release log's stub, on a wire where the first consistency proof takes its time."""

    def __init__(self, log: Any, wait_for: Callable[[], Any]) -> None:
        self._log = log
        self._wait_for = wait_for
        self._first = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def GetConsistencyProof(self, *asked: Any, **named: Any) -> Any:
        if not self._first:
            return self._log.GetConsistencyProof(*asked, **named)
        self._first = False
        waited = self._wait_for()
        if waited is None:
            return self._log.GetConsistencyProof(*asked, **named)

        async def late() -> Any:
            await waited
            return await self._log.GetConsistencyProof(*asked, **named)

        return late()


async def test_tasks_that_overtake_each_other_all_believe_a_growing_log(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, expired(window(0)))
    service = serve()
    async with AsyncOperator.open(str(paths.profile("operator"))) as operator:
        await operator.get(window(0))
        overtaken = asyncio.Event()
        operator._log = _FirstProofIsLate(operator._log, overtaken.wait)  # type: ignore[assignment]

        await asyncio.to_thread(_publish, paths, service, 1)
        first = asyncio.create_task(operator.get(window(1)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(_publish, paths, service, 2)
        second = asyncio.create_task(operator.get(window(2)))
        await asyncio.wait({second}, timeout=OVERTAKEN_S)
        overtaken.set()

        assert (await first).window_start == window(1)
        assert (await second).window_start == window(2)


def test_threads_that_overtake_each_other_all_believe_a_growing_log(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, expired(window(0)))
    service = serve()
    with client(paths) as operator, ThreadPoolExecutor(2) as threads:
        operator.get(window(0))
        overtaken, asked = threading.Event(), threading.Event()

        def late() -> None:
            asked.set()
            overtaken.wait(20)

        operator._log = _FirstProofIsLate(operator._log, late)  # type: ignore[assignment]

        _publish(paths, service, 1)
        first = threads.submit(operator.get, window(1))
        assert asked.wait(20)
        _publish(paths, service, 2)
        second = threads.submit(operator.get, window(2))
        wait({second}, timeout=OVERTAKEN_S)
        overtaken.set()

        assert first.result(20).window_start == window(1)
        assert second.result(20).window_start == window(2)


def _publish(paths: CityPaths, service: TotalsProcess, at: int) -> None:
    """Settle a window, and have the service see it."""
    publish(paths, expired(window(at)))
    service._follower._poll()
