"""A Redis Cluster of three masters on this machine, set up as docs/operations.md asks for."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from gridveil.files import make_folder
from gridveil.protocol.errors import MalformedInput, Reason, Unavailable

MASTERS = 3
SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
    "save": '""',
    "cluster-enabled": "yes",
    "cluster-node-timeout": "2000",
}
_HOST = "127.0.0.1"
_BUS = 10_000
"""The cluster's own connections go to a port so much higher."""
_START_S = 30.0
_STOP_S = 10.0


class RedisCluster:
    """Use as a context manager: its servers run in between, and are stopped by process id."""

    def __init__(self, folder: Path) -> None:
        """CONFIG_INVALID if Redis is not installed."""
        self._server, self._cli = map(_path_of, ("redis-server", "redis-cli"))
        self._folder = folder
        self._running = ExitStack()
        self.nodes = tuple(f"{_HOST}:{port}" for port in _spare_ports())

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for node in self.nodes:
                started.callback(_stop, self._start(node.rpartition(":")[2]))
            _until(lambda: all(self._said(node, "PING") == "PONG" for node in self.nodes))
            self._create()
            self._running = started.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()

    def _start(self, port: str) -> subprocess.Popen[bytes]:
        folder = self._folder / port
        make_folder(folder)
        settings = {"bind": _HOST, "port": port, "dir": str(folder), **SETTINGS}
        config = folder / "redis.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        with (folder / "redis.log").open("ab") as log:
            return subprocess.Popen(
                [self._server, str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _said(self, node: str, *command: str) -> str:
        told = subprocess.run(
            [self._cli, "-h", _HOST, "-p", node.rpartition(":")[2], *command],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return told.stdout.decode().strip()

    def _create(self) -> None:
        command = [self._cli, "--cluster", "create", *self.nodes, "--cluster-yes"]
        made = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if made.returncode:
            raise Unavailable(Reason.UNREACHABLE, "the Redis Cluster could not be made")
        _until(
            lambda: all(
                "cluster_state:ok" in self._said(node, "CLUSTER", "INFO") for node in self.nodes
            )
        )


def _path_of(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"{program} is not installed: on Debian and Ubuntu, apt-get install redis-server",
        )
    return path


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > end:
            raise Unavailable(Reason.UNREACHABLE, "the Redis Cluster did not start")
        time.sleep(0.05)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _spare_ports() -> list[str]:
    """Ports that are free, and so are those of the bus."""
    found: list[str] = []
    with ExitStack() as held:
        while len(found) < MASTERS:
            first, second = (held.enter_context(socket.socket()) for _ in range(2))
            first.bind((_HOST, 0))
            port = int(first.getsockname()[1])
            try:
                second.bind((_HOST, port + _BUS))
            except (OSError, OverflowError):
                continue
            found.append(str(port))
    return found
