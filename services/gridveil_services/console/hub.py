"""Who is told at once when something changed: every open page, each with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from gridveil.protocol.errors import Exhausted, Reason

MOST_WAITING = 64
"""Of a page that does not read; then it is let go, and asks again for all when it is back."""
MOST_PAGES = 200


class Event(NamedTuple):
    """Something that pages are told."""

    name: str
    data: str
    """JSON."""


class Hub:
    """Passes events on to every page that listens; for one event loop."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    @property
    def pages(self) -> int:
        """How many listen."""
        return len(self._queues)

    def tell(self, name: str, content: object) -> None:
        """Tell every page."""
        event = Event(name, msgspec.json.encode(content).decode())
        for queue in list(self._queues):
            if queue.qsize() >= MOST_WAITING:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def close(self) -> None:
        """End all streams, for good."""
        self._closed = True
        for queue in self._queues:
            queue.put_nowait(None)
        self._queues.clear()

    def listen(self) -> AsyncIterator[Event]:
        """What pages are told from now on; ends when the hub closes or the page is too slow.

        Raises:
            Exhausted: OVERLOADED if as many pages as there may be are open.
        """
        if len(self._queues) >= MOST_PAGES:
            raise Exhausted(Reason.OVERLOADED, "too many pages are open")
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        """Takes a place with the first look only: nobody keeps one who is gone before that."""
        if self._closed:
            return
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
