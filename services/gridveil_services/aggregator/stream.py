"""Reports of a gateway's stream, taken several at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from gridveil.protocol.errors import MalformedInput, Reason

T = TypeVar("T")


class Groups(Generic[T]):
    """What has arrived of a stream, in groups: as much as there is, up to a bound.

    Another thread reads ahead, never more than one group. An error of the stream comes after all
    that was read before it.
    """

    def __init__(self, items: Iterator[T], most: int, idle_s: float) -> None:
        """``idle_s``: real seconds without an item after which the stream is refused."""
        self._items = items
        self._most = most
        self._idle_s = idle_s
        self._read: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read_ahead, name="gateway", daemon=True)

    def __iter__(self) -> Iterator[list[T]]:
        self._thread.start()
        try:
            while group := self._next():
                yield group
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _next(self) -> list[T]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._read or self._ended, self._idle_s):
                raise MalformedInput(Reason.STREAM_PROTOCOL, "nothing was sent for too long")
            group = list(self._read)
            self._read.clear()
            self._changed.notify_all()
            return group

    def _read_ahead(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._read) < self._most or self._ended)
                    if self._ended:
                        return
                    self._read.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
