"""A server as a process: says where it serves, and ends well on a signal."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import structlog

from gridveil_services.rpc.server import Server

_log = structlog.get_logger()
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 0.5


def run_until_signal(
    server: Server,
    on_drain: Callable[[], None] | None = None,
    *,
    stop: threading.Event | None = None,
    grace_s: float = 10.0,
) -> None:
    """Start the server if it is not, print the serving line, wait for a signal, drain.

    Call from the main thread. A second signal ends the process at once, and so does a handler
    that does not end: what is stored survives that.

    Args:
        server: what to serve.
        on_drain: called when the signal has come, before calls in progress are waited for.
        stop: what sets it drains as well, at any time and as often as it likes.
        grace_s: real seconds for calls in progress.
    """
    signalled = stop or threading.Event()
    handle_signals(signalled)
    address = server.address or server.start()
    line = {"event": "serving", "role": str(server.options.role), "address": address}
    print(json.dumps(line), flush=True)
    wait_for(signalled)
    _log.info("draining", grace_s=grace_s)
    if on_drain is not None:
        on_drain()
    if not server.drain(grace_s):
        _log.error("a handler did not end")
        sys.stderr.flush()
        os._exit(1)


def wait_for(signalled: threading.Event) -> None:
    """Wait for what a handler of a signal sets; call from the main thread.

    Only the main thread runs handlers. A signal that another thread was given, or that came just
    before it fell asleep, does not wake it: so it looks again and again.
    """
    while not signalled.wait(_LOOK_S):
        pass


def handle_signals(signalled: threading.Event) -> None:
    """Set it at the first signal; a second one ends the process at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signalled.set()

    for number in SIGNALS:
        signal.signal(number, handle)
