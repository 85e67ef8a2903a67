"""Cuts off what lasts too long, so that nobody holds a place or waits for ever."""

from __future__ import annotations

import threading
import time

from gridveil_services.rpc.call import Call


class Supervisor:
    """Watches the calls in progress from a thread of its own."""

    def __init__(self, period_s: float = 0.25) -> None:
        self._period_s = period_s
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def add(self, call: Call) -> None:
        with self._lock:
            self._calls.add(call)

    def remove(self, call: Call) -> None:
        with self._lock:
            self._calls.discard(call)

    def calls(self) -> list[Call]:
        """Those in progress now."""
        with self._lock:
            return list(self._calls)

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            monotonic, now = time.monotonic(), time.time()
            for call in self.calls():
                if call.is_hopeless(monotonic, now):
                    call.give_up()
