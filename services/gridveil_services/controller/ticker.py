"""Letting time pass: a tick when one is due, whatever else happens."""

from __future__ import annotations

import threading

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError
from gridveil_services.controller.signalling import Signaller

_LOOK_S = 1.0
"""Real seconds at most between two looks at the clock, which may be set."""

_log = structlog.get_logger()


class Ticker:
    """Ticks from a thread of its own."""

    def __init__(self, signaller: Signaller, clock: Clock) -> None:
        self._signaller = signaller
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        delay, behind = 0.0, False
        while not self._stopped.wait(delay):
            try:
                self._signaller.tick()
                if self._signaller.is_behind and not behind:
                    _log.error("the clock was set back: nothing is signalled meanwhile")
                behind = self._signaller.is_behind
                missing = self._signaller.next_tick - self._clock.now()
                delay = min(max(self._clock.real(missing), 0.0), _LOOK_S)
            except GridveilError as error:
                _log.error("nothing can be signalled", reason=error.reason)
                delay = _LOOK_S
            except Exception as error:
                _log.error("a tick failed", exc_info=error)
                delay = _LOOK_S
