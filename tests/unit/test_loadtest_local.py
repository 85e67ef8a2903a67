"""What a city on this machine tells of its services."""

from __future__ import annotations

import subprocess
import sys

from gridveil.loadtest.city import local_city
from gridveil_services.loadtest import local
from gridveil_services.loadtest.processor_time import cpu_seconds

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
PARENT = f"""
import subprocess, sys
ended = subprocess.run([sys.executable, "-c", {BURN!r}])
running = subprocess.Popen([sys.executable, "-c", {BURN!r} + "print(1, flush=True)\\ninput()"],
                           stdin=subprocess.PIPE)
running.wait()
"""


def test_cpu_time_is_that_of_a_service_and_of_all_that_it_started() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "1\n"
        # 0.3 s of a child that has ended, and 0.3 s of one that runs.
        assert cpu_seconds(parent.pid) >= 0.55
        gone = parent.pid
        (child,) = _children(parent.pid)
        parent.kill()
        subprocess.run(["kill", str(child)], check=True)
    assert cpu_seconds(gone) == 0.0


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_the_local_city_is_found_by_its_entry_point() -> None:
    assert local_city() is local.local_city
