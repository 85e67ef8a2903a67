"""System calls that fail, or are the last thing that a process does: strace injects both.

Each case is a process of its own, forked from a program which has everything imported; strace takes
hold of it before it begins. The call to fail is one of those that touch a file, by its number.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from tests.torture.tally import Tally

CALLS = ("fdatasync", "fsync", "pwrite64", "write", "rename", "openat", "unlink", "ftruncate")
FAULTS = ("error=EIO", "error=ENOSPC", "signal=KILL")
TOOL = "strace"
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)
_LONGEST_S = 60.0
_READY = b"."


@dataclass(frozen=True)
class Case:
    """One fault: at the nth call of one kind."""

    call: str
    fault: str
    nth: int

    def __str__(self) -> str:
        return f"{self.call} {self.nth} {self.fault}"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    said: list[str]
    """Lines that it wrote, whole ones."""
    injected: bool
    """Whether the fault really happened."""
    trace: str


def traced(work: Callable[[Callable[[str], None]], None], inject: Case | None) -> Ended:
    """Fork, have strace take hold, and let the child do its work.

    Args:
        work: what the child does; it is given what writes a line.
        inject: the fault; None to count calls only.
    """
    go, saying = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(work, go, saying)
    os.close(go[0])
    os.close(saying[1])
    assert os.read(saying[0], 1) == _READY
    rules = [f"inject={inject.call}:{inject.fault}:when={inject.nth}"] if inject else []
    with tempfile.NamedTemporaryFile("r", errors="replace") as written:
        command = [TOOL, "-f", "-o", written.name, "-p", str(child)]
        command += ["-e", f"trace={','.join(CALLS)}", *(p for rule in rules for p in ("-e", rule))]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            first = tracer.stderr.readline()
            if "attached" not in first:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise RuntimeError(f"strace cannot trace here: {first.strip()}")
            os.write(go[1], b"go")
            os.close(go[1])
            hangs = not ends(child, _LONGEST_S)
            if hangs:
                os.kill(child, signal.SIGKILL)
        trace = written.read()
    with os.fdopen(saying[0], "rb") as pipe:
        lines = pipe.read().decode().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert not hangs, f"it hangs: {inject}"
    injected = "(INJECTED)" in trace or code == -signal.SIGKILL
    return Ended(code, lines, injected, trace)


def ends(child: int, within_s: float) -> bool:
    """Whether a child ends in that time; it is not waited for otherwise."""
    descriptor = os.pidfd_open(child)
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def _be_the_child(
    work: Callable[[Callable[[str], None]], None], go: tuple[int, int], saying: tuple[int, int]
) -> None:
    # Where only a process's parent may trace it, this allows others to.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    os.close(go[1])
    os.close(saying[0])
    os.write(saying[1], _READY)
    os.read(go[0], 2)
    try:
        work(lambda line: (os.write(saying[1], f"{line}\n".encode()), None)[1])
    except BaseException as error:
        os.write(saying[1], f"failed {type(error).__name__}\n".encode())
        os._exit(1)
    os._exit(0)


def cases(counts: dict[str, int], seed: int, budget: int) -> Iterator[Case]:
    """So many of all cases; three seeds in a row go on where the one before left off."""
    every = [
        Case(call, fault, nth)
        for call in CALLS
        for nth in range(1, counts.get(call, 0) + 1)
        for fault in FAULTS
    ]
    # Neighbours are alike: a short run takes some from everywhere.
    spread = [every[at * 7919 % len(every)] for at in range(len(every))] if every else []
    return islice(cycle(spread), seed * budget % max(1, len(every)), None)


def counted(trace: str) -> dict[str, int]:
    """Calls in a trace, by kind."""
    found = dict.fromkeys(CALLS, 0)
    for name in re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE):
        if name in found:
            found[name] += 1
    return found


def try_all(
    seed: int,
    budget: int,
    folder: Path,
    prepare: Callable[[Path], None],
    work: Callable[[Path, Callable[[str], None]], None],
    problem: Callable[[Path, Ended], str],
) -> Tally:
    """Inject so many faults, each into a fresh folder, and look what is left."""
    tally = Tally()

    def once(case: Case | None) -> Ended:
        shutil.rmtree(folder / "live", ignore_errors=True)
        prepare(folder / "live")
        return traced(lambda say: work(folder / "live", say), case)

    whole = once(None)
    assert whole.code == 0, (whole.code, whole.said, whole.trace[-2000:])
    counts = counted(whole.trace)
    assert not problem(folder / "live", whole), problem(folder / "live", whole)
    tally.counts["calls"] = sum(counts.values())
    until = time.monotonic() + budget * 20.0
    for case in cases(counts, seed, budget):
        if tally.injected >= budget or time.monotonic() > until:
            break
        ended = once(case)
        tally.injected += ended.injected
        tally.counts["kills" if case.fault == "signal=KILL" else "errors"] += ended.injected
        tally.counts["not reached"] += not ended.injected
        found = problem(folder / "live", ended)
        if found:
            tally.violations.append(f"{case}: {found}")
    return tally


def run_as_program(module: str, seed: int, budget: int) -> Tally:
    """Have a module's main do it: a program without threads, which may fork."""
    ran = subprocess.run(
        [sys.executable, "-m", module, str(seed), str(budget)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return Tally.from_json(json.loads(ran.stdout.splitlines()[-1]))
