"""Processes of a load test, and what they tell the one that started them.

They are spawned, never forked: a fork of a process that has loaded gRPC hangs. Each ends when the
pipe to its parent does, however the parent ends, and leaves interrupts to the parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

STOP_S = 10.0


class Progress(NamedTuple):
    """Work that was done since the last message."""

    what: str
    done: int


class Ready(NamedTuple):
    """A process has all that it needs before time matters."""


class Failed(NamedTuple):
    """A process cannot go on."""

    why: str


Pipe: TypeAlias = "Connection[Any, Any]"
Work = Callable[..., None]


class Worker:
    """A child process with a pipe to it."""

    def __init__(self, name: str, work: Work, *arguments: Any) -> None:
        """Start ``work(pipe, *arguments)`` in a new process."""
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.name = name
        self._process = spawn.Process(
            target=_run, args=(work, theirs, *arguments), name=name, daemon=True
        )
        self._process.start()
        theirs.close()

    def stop(self) -> None:
        """Hang up, and wait until it has ended."""
        self.pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(work: Work, pipe: Pipe, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()
    try:
        work(pipe, *arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send(Failed(f"{type(error).__name__}: {error}"))


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
