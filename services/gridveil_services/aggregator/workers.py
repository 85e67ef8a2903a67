"""Several aggregator processes on one host and one port, which share a Redis.

The kernel spreads connections over them. Nothing of gRPC is in the parent: it starts the workers,
starts one again that ends, and passes signals on.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from gridveil.files import make_folder
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.aggregator.store.interface import StoreFailed

_log = structlog.get_logger()

MOST_WORKERS = 64
_DRAIN_S = 20.0
"""A worker that takes longer to end is killed; what it acknowledged is durable."""
_RESTART_S = 1.0
_LONGEST_RESTART_S = 30.0
_SOUND_S = 60.0
"""A worker that ran for so long is started again at once; one that did not, ever later."""
_POLL_S = 0.05


def check_workers(config: AggregatorConfig, workers: int) -> None:
    """CONFIG_INVALID unless so many workers can serve."""
    if not 1 <= workers <= MOST_WORKERS:
        raise _invalid(f"--workers is 1 to {MOST_WORKERS}")
    if workers > 1 and config.redis is None:
        raise _invalid("--workers needs the section [redis]: a file has one process")
    if workers > 1 and config.listen.endswith(":0"):
        raise _invalid("--workers needs a port in listen")


def of_worker(config: AggregatorConfig, worker: int) -> AggregatorConfig:
    """The configuration of one worker, from 1 on: its own state, the port of all.

    Metrics are on ports of their own from the configured one on: each worker counts for itself.
    """
    metrics = config.metrics
    if metrics is not None and metrics[1]:
        metrics = metrics[0], metrics[1] + worker - 1
    return replace(config, state=config.state / f"worker-{worker}", metrics=metrics)


class Workers:
    """Keeps workers running until a signal comes. Call from the main thread."""

    def __init__(self, config: AggregatorConfig, count: int, command: Sequence[str]) -> None:
        """``command`` starts a worker when its number is added.

        Raises:
            StoreFailed: another process has the folder of their states.
        """
        self._config = config
        self._command = list(command)
        self._stopping = threading.Event()
        make_folder(config.state)
        self._lock = _exclusive(config.state / "workers.lock")
        self._serving: set[int] = set()
        self._started: dict[int, float] = {}
        self._failures: dict[int, int] = {}
        self._due: dict[int, float] = {}
        """When to start a worker again that has ended."""
        self._workers = {number: self._start(number) for number in range(1, count + 1)}

    def run(self) -> int:
        """Run until a signal, or until a worker cannot start; the exit code."""
        for signalled in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signalled, lambda *_: self._stopping.set())
        told = False
        try:
            while not self._stopping.wait(_POLL_S):
                for number, process in list(self._workers.items()):
                    if (code := process.poll()) is None:
                        continue
                    if not told:
                        return code or 1
                    self._again(number, code)
                if not told and self._serving == self._workers.keys():
                    told = True
                    self._tell()
            return 0
        finally:
            self._end()

    def _again(self, number: int, code: int) -> None:
        """Start a worker again that has ended, when it is time."""
        now = time.monotonic()
        if number not in self._due:
            sound = now - self._started[number] >= _SOUND_S
            failures = self._failures[number] = 0 if sound else self._failures.get(number, -1) + 1
            pause_s = min(_LONGEST_RESTART_S, _RESTART_S * 2 ** min(failures, 16))
            _log.error("a worker has ended", worker=number, code=code, pause_s=pause_s)
            self._due[number] = now + pause_s
        elif self._due[number] <= now:
            del self._due[number]
            self._workers[number] = self._start(number)

    def _tell(self) -> None:
        pids = [process.pid for process in self._workers.values()]
        line = {"event": "serving", "role": "aggregator", "address": self._config.listen}
        print(json.dumps({**line, "workers": pids}), flush=True)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [*self._command, str(number)]
        self._serving.discard(number)
        self._started[number] = time.monotonic()
        # The end of its standard input tells a worker that its parent is gone.
        process = subprocess.Popen(  # noqa: S603 - this very program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()
        return process

    def _listen(self, number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for _ in process.stdout:  # It says once that it serves.
            self._serving.add(number)

    def _end(self) -> None:
        for number, process in self._workers.items():
            if number in self._serving and process.stdin is not None:
                # No second signal: it may have had one, as all of a group or a service have.
                process.stdin.close()
            else:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _DRAIN_S
        for number, process in self._workers.items():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("a worker did not end", worker=number)
                process.kill()
                process.wait()
        os.close(self._lock)


def worker_command(config: Path, clock: Sequence[str]) -> list[str]:
    """What starts a worker, but for its number."""
    command = [sys.executable, "-m", "gridveil.cli", "aggregator", "serve"]
    return [*command, "--config", str(config), *clock, "--worker"]


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)


def _exclusive(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreFailed("another process uses this store") from None
    return descriptor
