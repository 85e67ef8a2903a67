"""The controller and the console of a demonstration: rules that its peak crosses, and a past."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gridveil.clock import ScaledClock
from gridveil.files import write_durably
from gridveil.register_names import IMPORT_REGISTER
from gridveil_services.bootstrap.layout import CONTROLLER, CityPaths
from gridveil_services.bootstrap.toml import Value, dumps
from gridveil_services.demo.plan import WINDOW_S, DemoPlan
from gridveil_services.demo.processes import ServiceProcess
from gridveil_services.rpc.process import handle_signals, wait_for

CROSSED_AT = 0.97
"""Capacity by the highest window that is played: a limit that is not crossed shows nothing."""
_HYSTERESIS = 0.02
_RAMP = 0.2
_PROGRAM = "demo"


@contextmanager
def watched(plan: DemoPlan, paths: CityPaths, clock: ScaledClock) -> Iterator[str]:
    """Run the controller and the console; the address that logs one person in."""
    _write_rules(plan, paths)
    controller = ServiceProcess(CONTROLLER, paths, clock)
    console = ServiceProcess("console", paths, clock)
    with ExitStack() as stopped:
        for service in (controller, console):
            service.start()
            stopped.callback(service.stop)
        yield console.said["login"]


def wait_for_signal() -> None:
    """Until somebody ends the demonstration."""
    signalled = threading.Event()
    handle_signals(signalled)
    wait_for(signalled)


def _write_rules(plan: DemoPlan, paths: CityPaths) -> None:
    folder = paths.role(CONTROLLER)
    highest = max(truth.sums[IMPORT_REGISTER] for truth in plan.truth.values())
    capacity_w = max(100, int(highest * 3600 / WINDOW_S * CROSSED_AT))
    rules: dict[str, Value] = {
        "capacity_w": capacity_w,
        "hysteresis_w": int(capacity_w * _HYSTERESIS),
        "ramp_limit_w": max(1, int(capacity_w * _RAMP)),
        "register": IMPORT_REGISTER,
        "window_length": WINDOW_S,
    }
    write_durably(folder / "control.toml", dumps(rules).encode())
    write_durably(folder / "history.csv", _history(plan).encode())
    config = paths.config(CONTROLLER)
    ahead, behind = dumps({"history": "history.csv"}), dumps({"vtn": {"program_id": _PROGRAM}})
    write_durably(config, ahead.encode() + config.read_bytes() + behind.encode())


def _history(plan: DemoPlan) -> str:
    """What a feeder's meter would have recorded before the city began: for the forecast only."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("window_start", "wh"))
    rows.writerows(sorted(plan.past().items()))
    return text.getvalue()
