"""The services of a local city as child processes."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from gridveil.clock import ScaledClock
from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.bootstrap.layout import COMMANDS, SERVICES, CityPaths

START_S = 60.0
STOP_S = 30.0


def free_addresses(names: Sequence[str] = SERVICES) -> dict[str, str]:
    """An unused loopback address for each service, below the ports of outgoing connections."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < len(names):
            fresh = socket.socket()
            sockets.append(fresh)
            try:
                fresh.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            except OSError:
                sockets.pop().close()
        addresses = (f"127.0.0.1:{fresh.getsockname()[1]}" for fresh in sockets)
        return dict(zip(names, addresses, strict=True))
    finally:
        for fresh in sockets:
            fresh.close()


class ServiceProcess:
    """One service of a city; its log is ``logs/<name>.jsonl`` in the city's folder."""

    def __init__(
        self,
        name: str,
        paths: CityPaths,
        clock: ScaledClock | None,
        arguments: Sequence[str] = (),
    ) -> None:
        """``name``: the role, or for one of several aggregators the name of its folder."""
        self.role = name.partition("-")[0]
        self.log = paths.folder / "logs" / f"{name}.jsonl"
        command = COMMANDS.get(self.role, self.role)
        self.command = [sys.executable, "-m", "gridveil.cli", command, "serve"]
        self.command += ["--config", str(paths.config(name)), *clock_arguments(clock), *arguments]
        self.said: dict[str, str] = {}
        """Its first line, once it serves."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not ended by us."""
        return self._process is not None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        if self._process is None:
            raise RuntimeError(f"{self.role} does not run")
        return self._process

    def start(self, *, environment: Mapping[str, str] | None = None) -> float:
        """Start it and wait until it serves; how many real seconds that took."""
        begun = time.monotonic()
        process = self.spawn(environment=environment)
        self.said = _serving(first_line(process, START_S), self.role)
        if not self.said:
            self.kill()
            raise Unavailable(
                Reason.UNREACHABLE, f"{self.role} did not start: see logs/{self.log.name}"
            )
        return time.monotonic() - begun

    def spawn(self, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start it without waiting."""
        if self._process is not None:
            raise RuntimeError(f"{self.role} runs already")
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        return self._process

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL, as a power cut of the process; the exit code."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self.process, None
        process.send_signal(how)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Unavailable(
                Reason.DRAINING, f"{self.role} did not end within {STOP_S:.0f} s"
            ) from None
        finally:
            if process.stdout is not None:
                process.stdout.close()


def clock_arguments(clock: ScaledClock | None) -> list[str]:
    """The options that give a process this clock."""
    if clock is None:
        return []
    origin = f"{clock.origin!r}@{clock.started!r}"
    return ["--clock-origin", origin, "--clock-rate", repr(clock.rate)]


def first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """What a process prints first; empty if it ends, or is silent for too long."""
    if process.stdout is None:
        return b""
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    return process.stdout.readline() if readable else b""


def _serving(line: bytes, role: str) -> dict[str, str]:
    """What a service says when it serves; empty if it says anything else."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(said, dict) or (said.get("event"), said.get("role")) != ("serving", role):
        return {}
    return said
