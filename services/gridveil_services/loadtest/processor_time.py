"""CPU time of a process and of those it started, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_UTIME = 11
"""Where user time is among what follows the process's name in ``stat``; system time, and both of
children that ended, come next."""


def cpu_seconds(pid: int) -> float:
    """User and system time so far, children that ended or still run included; 0 if it is gone."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    own = sum(int(field) for field in fields[_UTIME : _UTIME + 4]) * _TICK_S
    return own + sum(map(cpu_seconds, children(pid)))


def children(pid: int) -> list[int]:
    """Process ids of its children; none if it is gone."""
    try:
        tasks = list(Path("/proc", str(pid), "task").iterdir())
        lines = [task.joinpath("children").read_text() for task in tasks]
    except OSError:
        return []
    return [int(child) for line in lines for child in line.split()]
