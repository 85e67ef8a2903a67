"""Real Redis servers for tests, on spare loopback ports, set up as operations.md asks for."""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError

from gridveil_services.aggregator.config import RedisConfig
from tests.support.ports import HOST, spare_port

PROGRAM = "redis-server"
NEEDED = pytest.mark.requires_tool(PROGRAM, "apt-get install redis-server")
SETTINGS = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
}
_START_S = 30.0
_SLOTS = 16_384


def until(condition: Callable[[], Any]) -> None:
    """Wait until something that servers do by themselves has come about."""
    end = time.monotonic() + _START_S
    while not condition():
        assert time.monotonic() < end, "the servers did not come about"
        time.sleep(0.02)


class RedisServer:
    """One server process, and its folder, which outlives it."""

    def __init__(self, host: str = HOST, inside: Sequence[str] = (), **settings: str) -> None:
        """A server that answers.

        Args:
            host: its address.
            inside: what to run it with, such as ``ip netns exec NAME``.
            settings: by their names, with underscores, in place of the usual ones.
        """
        self.host = host
        self._inside = inside
        self.folder = Path(tempfile.mkdtemp(prefix="gridveil-redis-"))
        changed = {name.replace("_", "-"): value for name, value in settings.items()}
        self.settings = SETTINGS | changed
        self.port = spare_port()
        atexit.register(self.stop)
        self.start()

    @property
    def config(self) -> RedisConfig:
        return RedisConfig(((self.host, self.port),), cluster=False)

    def start(self) -> None:
        arguments = [part for name, value in self.settings.items() for part in ("--" + name, value)]
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *self._inside,
                    PROGRAM,
                    "--bind",
                    self.host,
                    "--port",
                    str(self.port),
                    "--dir",
                    self.folder,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.client: Any = Redis(self.host, self.port, protocol=2)
        until(self._answers)

    def kill(self) -> None:
        """As when the power goes."""
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it, at last by force, and remove what it stored."""
        atexit.unregister(self.stop)
        self.client.close()
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "output").read_text()
        try:
            # Another server may have taken the port since it was chosen.
            return bool(self.client.info("server")["process_id"] == self.process.pid)
        except ConnectionError:
            return False


class RedisCluster:
    """Three masters that share the slots."""

    def __init__(self) -> None:
        self.servers = [
            RedisServer(cluster_enabled="yes", cluster_node_timeout="2000") for _ in range(3)
        ]
        for at, server in enumerate(self.servers):
            first, last = _SLOTS * at // 3, _SLOTS * (at + 1) // 3 - 1
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            server.client.execute_command("CLUSTER", "MEET", HOST, self.servers[0].port)
        self.wait()

    def wait(self) -> None:
        """Until every server sees every other and all slots are served."""
        until(lambda: all(self._is_whole(server) for server in self.servers))

    @property
    def config(self) -> RedisConfig:
        return RedisConfig(tuple((HOST, server.port) for server in self.servers), cluster=True)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    @staticmethod
    def _is_whole(server: RedisServer) -> bool:
        told = bytes(server.client.execute_command("CLUSTER", "INFO")).decode()
        return "cluster_state:ok" in told and "cluster_known_nodes:3" in told


def refuses_strangers(port: int) -> bool:
    """Whether a server is up; it must not let anybody in who has no name."""
    client: Any = Redis(HOST, port, protocol=2)
    try:
        client.ping()
    except AuthenticationError:
        return True
    except ConnectionError:
        return False
    finally:
        client.close()
    raise AssertionError("it lets anybody in")


@cache
def one_server() -> RedisServer:
    """The single server of this test run."""
    return RedisServer()


@cache
def one_cluster() -> RedisCluster:
    """The cluster of this test run."""
    return RedisCluster()
