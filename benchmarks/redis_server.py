"""A fresh redis-server that a city's aggregator would accept, for the time of a measurement."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import START_S
from benchmarks.measure import pinned
from gridveil_services.aggregator.config import RedisConfig

PROGRAM = "redis-server"
HOST = "127.0.0.1"
SETTINGS = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
}


@dataclass(frozen=True)
class RedisProcess:
    """A running server."""

    port: int
    process: psutil.Process

    @property
    def config(self) -> RedisConfig:
        return RedisConfig(((HOST, self.port),), cluster=False)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time so far, all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def redis_server(folder: Path, core: int) -> Iterator[RedisProcess]:
    """A server with an empty folder of its own."""
    folder.mkdir()
    with socket.create_server((HOST, 0)) as spare:
        port = int(spare.getsockname()[1])
    settings = SETTINGS | {"bind": HOST, "port": str(port), "dir": str(folder)}
    arguments = [part for name, value in settings.items() for part in ("--" + name, value)]
    with (folder / "output").open("ab") as output, pinned(core):
        child = subprocess.Popen(
            [PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_for(port)
        yield RedisProcess(port, psutil.Process(child.pid))
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
