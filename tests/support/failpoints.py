"""Key-holders that die at a chosen moment, each a process of its own with gRPC over mTLS.

:class:`Killers` starts this module as a program. It has everything imported and forks a key-holder
for every order: at the nth call of one function, before or after it, the process is killed. Which
functions is in POINTS; most are of the operating system's interface, so that they are found
whatever the key-holder's code looks like. The programs that are shipped know nothing of this.

What the folder looks like at the next start depends on the order's ``loss``:

    "kill"   everything written is there
    "cut"    the power failed: what was not synced is gone (:mod:`tests.support.disk`)
    "mixed"  the power failed: some of what was not synced is there, in parts

Before anything is decrypted it is noted whether the log's intent would survive a power cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from gridveil.clock import ManualClock
from gridveil.protocol import decoding
from gridveil.protocol.v1.log_pb2 import ReleaseIntent
from gridveil_services.keyholder import epoch_keys
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.serve import make_server
from gridveil_services.keyholder.service import KeyHolderService
from gridveil_services.rpc.logging import configure_structlog
from gridveil_services.rpc.parsing import Parser
from tests.support.disk import DurableDisk

POINTS = (
    "message:before",  # a message of the release has come, and is not looked at yet
    "open:before",
    "open:after",
    "fsync:before",
    "fsync:after",
    "pwrite:before",
    "pwrite:torn",
    "pwrite:after",
    "rename:before",
    "rename:after",
    "unlink:before",
    "unlink:after",
    "mkdir:before",
    "mkdir:after",
    "rmdir:before",
    "rmdir:after",
    "pin:before",  # the noise of a total is drawn, or read back, and durable
    "pin:after",
    "decrypt:before",
    "decrypt:after",
    "reply:before",
)
LOSSES = ("kill", "cut", "mixed")
_STOP = "stop"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Order:
    """One life of a key-holder, and how it ends. Without a ``point`` it ends when it is told to."""

    config: str
    """A file with the key-holder's configuration, as :func:`keep_config` writes it."""
    folder: str
    """Where its files are instead."""
    now: float
    window: int
    release: str
    """The digest of the release, in hex."""
    point: str = ""
    nth: int = 0
    loss: str = "kill"
    seed: int = 0


class Killers:
    """Starts key-holders that die as ordered. Use as a context manager."""

    def __init__(self, scratch: Path) -> None:
        self._log = (scratch / "stderr").open("ab")
        self.log = scratch / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.failpoints"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, order: Order) -> str | None:
        """The address of a key-holder that serves; None if it died before."""
        self._write(json.dumps(asdict(order)))
        self._ended: int | None = None
        said = self._read()
        if "ended" in said:
            self._ended = said["ended"]
            return None
        return str(said["serving"])

    def end(self) -> tuple[bool, dict[str, int]]:
        """Wait for the end of the last one; whether it was killed, and how often each point came.

        One that was not killed is told to stop; its counts are then known.
        """
        counts: dict[str, int] = {}
        if self._ended is None:
            self._write(_STOP)
            said = self._read()
            if "counts" in said:
                counts, said = said["counts"], self._read()
            self._ended = said["ended"]
        killed = self._ended == -signal.SIGKILL
        assert killed or self._ended == 0, f"{self._ended}: {self.log.read_text()[-4000:]}"
        return killed, counts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log.read_text()[-4000:]
        said: dict[str, Any] = json.loads(line)
        return said


def keep_config(config: KeyHolderConfig, path: Path) -> str:
    """Write a configuration for orders to name."""
    path.write_bytes(pickle.dumps(config))
    return str(path)


@dataclass(frozen=True)
class Decryption:
    """What was durable before a lane was decrypted."""

    claimed: bool
    """Whether the window's intent was in the log."""
    noise: str
    """The digest of the pinned noise; empty without any."""


def decryptions(folder: Path) -> list[Decryption]:
    """Every decryption on a folder."""
    path = _beside(folder, "trace")
    lines = path.read_text().splitlines() if path.exists() else []
    return [Decryption(**json.loads(line)) for line in lines]


# What follows runs in the program.


class Faults:
    """Counts the calls of functions, and ends the process at the chosen one."""

    def __init__(self, order: Order, disk: DurableDisk) -> None:
        self._order = order
        self._disk = disk
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._quiet = threading.local()

    def at(self, point: str) -> bool:
        """Count a point; whether it is the chosen one."""
        if getattr(self._quiet, "on", False):
            return False
        with self._lock:
            self.counts[point] += 1
            return (point, self.counts[point]) == (self._order.point, self._order.nth)

    def pass_(self, point: str) -> None:
        """Count a point, and die if it is the chosen one."""
        if self.at(point):
            self.die()

    def die(self) -> None:
        """Leave the disk as the order wants it, and be killed."""
        with self.quiet():
            folder = Path(self._order.folder)
            if self._order.loss == "kill":
                self._disk.save(_beside(folder, "disk"))
            else:
                mixed = self._order.loss == "mixed"
                chance = Random(self._order.seed) if mixed else None
                image = _beside(folder, "image")
                shutil.rmtree(image, ignore_errors=True)
                self._disk.materialise(image, chance)
                _beside(folder, "image-is-whole").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While this thread's calls are the test's own."""
        self._quiet.on = True
        try:
            yield
        finally:
            self._quiet.on = False

    def install(self) -> None:
        """Wrap everything that POINTS names."""
        self._wrap_syscalls()
        self._wrap_method(Parser, "parse", "message", after=False)
        self._wrap_method(NoisePins, "take", "pin")
        self._wrap_method(KeyHolderService, "release", "reply", before=False, name="reply:before")
        decrypt = decoding.decrypt_folded
        assert vars(epoch_keys)["decrypt_folded"] is decrypt

        def traced(*arguments: Any) -> Any:
            self._trace()
            self.pass_("decrypt:before")
            result = decrypt(*arguments)
            self.pass_("decrypt:after")
            return result

        vars(epoch_keys)["decrypt_folded"] = traced

    def _wrap_syscalls(self) -> None:
        fsync, pwrite, open_ = os.fsync, os.pwrite, os.open

        def synced(descriptor: Any) -> None:
            self.pass_("fsync:before")
            fsync(descriptor)
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._disk.synced(number)
            self.pass_("fsync:after")

        def written(descriptor: int, data: Any, offset: int) -> int:
            self.pass_("pwrite:before")
            if self.at("pwrite:torn"):
                pwrite(descriptor, bytes(data)[: len(bytes(data)) // 2], offset)
                self.die()
            count = pwrite(descriptor, data, offset)
            self.pass_("pwrite:after")
            return count

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if not flags & _WRITING:
                return open_(path, flags, *rest, **more)
            self.pass_("open:before")
            descriptor = open_(path, flags, *rest, **more)
            self.pass_("open:after")
            return descriptor

        os.fsync, os.pwrite, os.open = synced, written, opened  # type: ignore[assignment]
        os.rename = self._naming(os.rename, "rename", 1)
        os.replace = self._naming(os.replace, "rename", 1)
        os.unlink = os.remove = self._naming(os.unlink, "unlink", 0)
        os.rmdir = self._naming(os.rmdir, "rmdir", 0)
        os.mkdir = self._naming(os.mkdir, "mkdir", None)

    def _naming(self, function: Callable[..., None], point: str, freed: int | None) -> Any:
        def wrapped(*arguments: Any, **more: Any) -> None:
            self.pass_(f"{point}:before")
            if freed is not None:
                parent = more.get("dir_fd")
                base = Path(f"/proc/self/fd/{parent}") if parent is not None else Path()
                self._disk.freeing(base / os.fsdecode(arguments[freed]))
            function(*arguments, **more)
            self.pass_(f"{point}:after")

        return wrapped

    def _wrap_method(
        self,
        owner: type,
        method: str,
        point: str,
        *,
        before: bool = True,
        after: bool = True,
        name: str = "",
    ) -> None:
        original = getattr(owner, method)

        def wrapped(*arguments: Any) -> Any:
            if before:
                self.pass_(f"{point}:before")
            result = original(*arguments)
            if after:
                self.pass_(name or f"{point}:after")
            return result

        setattr(owner, method, wrapped)

    def _trace(self) -> None:
        """Note what a power cut now would leave of the window's intent and of its noise."""
        with self.quiet():
            folder = Path(self._order.folder)
            image = _beside(folder, "durable")
            shutil.rmtree(image, ignore_errors=True)
            self._disk.materialise(image)
            claim = ReleaseIntent(
                window_start=self._order.window, release_digest=bytes.fromhex(self._order.release)
            ).SerializeToString()
            log = [path.read_bytes() for path in (image / "published" / "log").iterdir()]
            pins = (image / "state" / "spool").glob(f"{self._order.window}-*/noise")
            found = Decryption(
                claimed=any(claim in data for data in log),
                noise="".join(hashlib.sha256(pin.read_bytes()).hexdigest() for pin in pins),
            )
            with _beside(folder, "trace").open("a") as trace:
                trace.write(json.dumps(asdict(found)) + "\n")


def live(order: Order) -> None:
    """Be a key-holder until the end that was ordered, or until told to stop."""
    folder = Path(order.folder)
    config = config_in(folder, pickle.loads(Path(order.config).read_bytes()))  # noqa: S301
    kept = _beside(folder, "disk")
    disk = DurableDisk.load(folder, kept) if kept.exists() else DurableDisk(folder)
    kept.unlink(missing_ok=True)
    faults = Faults(order, disk)
    faults.install()
    keyholder = KeyHolder(config, ManualClock(order.now))
    server = make_server(keyholder, config)
    say(serving=server.start())
    os.read(0, len(_STOP) + 1)
    server.drain(5.0)
    keyholder.close()
    say(counts=dict(faults.counts))


def config_in(folder: Path, base: KeyHolderConfig) -> KeyHolderConfig:
    """The configuration with its files in another folder."""
    return replace(
        base,
        state=folder / "state",
        published=folder / "published",
        key_encrypting_key_file=folder / "kek",
    )


def say(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def replace_by_image(folder: Path) -> None:
    """What a power cut left takes the folder's place; nothing that was not synced is known."""
    whole, image = _beside(folder, "image-is-whole"), _beside(folder, "image")
    if whole.exists():
        shutil.rmtree(folder)
        image.rename(folder)
        whole.unlink()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def main() -> None:
    """A key-holder for every line of standard input, one after another."""
    configure_structlog("keyholder")
    for line in sys.stdin:
        if line.strip() == _STOP:  # meant for one that was killed meanwhile
            continue
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            try:
                live(order)
                sys.stderr.flush()
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        replace_by_image(Path(order.folder))
        say(ended=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
