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
    process = Path("/proc", str(pid))
    try:
        fields = process.joinpath("stat").read_text().rpartition(") ")[2].split()
        tasks = list(process.joinpath("task").iterdir())
        children = [task.joinpath("children").read_text() for task in tasks]
    except OSError:
        return 0.0
    own = sum(int(field) for field in fields[_UTIME : _UTIME + 4]) * _TICK_S
    return own + sum(cpu_seconds(int(child)) for line in children for child in line.split())
