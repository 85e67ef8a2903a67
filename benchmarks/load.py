"""A server process on one core, and the load that is put on it from another."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from benchmarks.floor_servers import LENGTH
from benchmarks.measure import pinned

IN_FLIGHT = 4
START_S = 60

Send = Callable[[bytes], bytes]


class ServerProcess:
    """A child process that printed where it serves."""

    def __init__(self, command: Sequence[str], log: Path, core: int | None) -> None:
        self._log = log.open("ab")
        with pinned(core) if core is not None else contextlib.nullcontext():
            self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log)
        self._process = psutil.Process(self._child.pid)
        self.address = self._serving_at(log)

    def _serving_at(self, log: Path) -> str:
        assert self._child.stdout is not None
        timer = threading.Timer(START_S, self._child.kill)
        timer.start()
        line = self._child.stdout.readline()
        timer.cancel()
        if not line:
            raise RuntimeError(f"a server did not start: {log.read_text()[-2000:]}")
        address: str = json.loads(line)["address"]
        return address

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def peak_bytes(self) -> int:
        """Largest resident memory so far."""
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel does not tell VmHWM")

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(self._process.memory_info().rss)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()


@contextmanager
def serving(command: Sequence[str], log: Path, core: int | None) -> Iterator[ServerProcess]:
    """A server for the duration of the block."""
    server = ServerProcess(command, log, core)
    try:
        yield server
    finally:
        server.stop()


def module(name: str, *arguments: str) -> list[str]:
    """The command line of a module of ours, in this interpreter."""
    return [sys.executable, "-m", name, *arguments]


@dataclass(frozen=True)
class Load:
    """What one burst of messages cost."""

    reports: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.reports / self.seconds

    @property
    def cpu_us(self) -> float:
        """Server CPU time a report, microseconds."""
        return self.cpu_seconds / self.reports * 1e6


def burst(
    server: ServerProcess, sends: Sequence[Send], messages: Sequence[bytes], reports_each: int
) -> tuple[Load, list[bytes]]:
    """Send all messages, one in flight for each of ``sends``; the answers in order."""
    feed = iter(enumerate(messages))
    answers: list[bytes] = [b""] * len(messages)
    lock = threading.Lock()

    def work(send: Send) -> None:
        while True:
            with lock:
                at, message = next(feed, (-1, b""))
            if at < 0:
                return
            answers[at] = send(message)

    cpu, started = server.cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(len(sends)) as threads:
        list(threads.map(work, sends))
    seconds = time.perf_counter() - started
    load = Load(len(messages) * reports_each, seconds, server.cpu_seconds() - cpu)
    return load, answers


def grpc_sends(channels: Sequence[grpc.Channel], method: str) -> list[Send]:
    """One sender a channel, of messages that are serialized already."""
    return [_unary(channel, method) for channel in channels]


def _unary(channel: grpc.Channel, method: str) -> Send:
    grpc.channel_ready_future(channel).result(START_S)
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return lambda message: call(message, timeout=START_S)


class RawConnection:
    """Length-prefixed messages over TCP, a byte back for each."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))

    def send(self, message: bytes) -> bytes:
        """Send one and wait for its byte."""
        self._socket.sendall(LENGTH.pack(len(message)))
        self._socket.sendall(message)
        return self._socket.recv(1)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
