"""Power cuts below the key-holder's release log, which is plain files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from gridveil.protocol.errors import GridveilError
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowExpired
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.disk import DurableDisk
from tests.torture.kinds.power_store import scratch
from tests.torture.tally import Kind, Tally

APPENDS = 12
SIGNER = LogSigner(bytes(16), SigningKey(bytes(range(32))))


class _Cutter:
    """Cuts the power at every call that changes the disk, and opens what is left."""

    def __init__(self, scratch_folder: Path, folder: Path, chance: Random, tally: Tally) -> None:
        self.disk = DurableDisk(folder)
        self.appended: list[int] = []
        """Windows whose record was acknowledged."""
        self.pending: list[int] = []
        """Windows whose record is being appended."""
        self.found = ""
        self._image = scratch_folder / "image"
        self._chance = chance
        self._tally = tally
        self._busy = False

    def cut(self) -> None:
        """What a cut now would leave must open, with all that was acknowledged."""
        if self._busy:
            return
        self._busy = True
        shutil.rmtree(self._image, ignore_errors=True)
        # Now and then to the letter: only what was synced.
        self.disk.materialise(self._image, self._chance if self._chance.random() < 0.8 else None)
        self._tally.injected += 1
        problem = self._problem()
        if problem:
            self._tally.violations.append(f"cut {self._tally.injected}: {problem}")
        self._busy = False

    def _problem(self) -> str:
        replayed: list[int] = []
        try:
            LogWriter(
                self._image, SIGNER, lambda record: replayed.append(record.expired.window_start)
            ).close()
        except GridveilError as error:
            return str(error)
        at_most = self.appended + self.pending
        if replayed[: len(self.appended)] != self.appended or replayed != at_most[: len(replayed)]:
            return f"{len(self.appended)} records were acknowledged, {len(replayed)} found"
        return ""


@contextmanager
def _watched(cutter: _Cutter, lies: bool) -> Iterator[None]:
    """Cut before and after each call of the operating system that the log's writer makes."""
    real = {name: getattr(os, name) for name in ("fsync", "pwrite", "ftruncate", "rename")}

    def around(name: str, before: Callable[..., None], after: Callable[..., None]) -> Any:
        def called(*arguments: Any, **more: Any) -> Any:
            if cutter._busy:
                return real[name](*arguments, **more)
            cutter.cut()
            before(*arguments)
            result = real[name](*arguments, **more)
            after(*arguments)
            cutter.cut()
            return result

        return called

    def nothing(*_: Any) -> None:
        pass

    def freeing(_old: Any, new: Any) -> None:
        cutter.disk.freeing(Path(new))

    for name in real:
        before = freeing if name == "rename" else nothing
        after = cutter.disk.synced if name == "fsync" and not lies else nothing
        setattr(os, name, around(name, before, after))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def run(seed: int, budget: int, *, lies: bool = False) -> Tally:
    """Cut the power ``budget`` times while records are appended.

    ``lies``: no sync does anything, to show that this is found.
    """
    chance, tally, life = Random(seed), Tally(), 0
    with scratch() as folder:
        while tally.injected < budget:
            life += 1
            log = folder / f"log-{life}"
            log.mkdir()
            cutter = _Cutter(folder, log, chance, tally)
            with _watched(cutter, lies):
                writer = LogWriter(log, SIGNER)
                for number in range(APPENDS):
                    windows = [900 * (10 * number + n + 1) for n in range(chance.randint(1, 3))]
                    cutter.pending = windows
                    writer.append(*map(_record, windows))
                    cutter.appended += windows
                    cutter.pending = []
                    tally.counts["appends"] += 1
                    if tally.injected >= budget:
                        break
                writer.close()
            shutil.rmtree(log)
    tally.violations = [f"seed {seed}, {violation}" for violation in tally.violations]
    return tally


def _record(window: int) -> LogRecord:
    return LogRecord(expired=WindowExpired(window_start=window), recorded_at_ms=window)


KIND = Kind(
    "power cuts, release log",
    "The power is cut around each call that writes, syncs or renames a file of the release log;"
    " what was not synced is gone, or there in parts. The log opens with every record that was"
    " acknowledged, and at most those in progress.",
    run,
    {"short": 500, "long": 5_000},
)
