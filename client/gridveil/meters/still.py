"""Registers that stand still, or count as no home does: said of a window, never acted upon.

A register is still from the window on with which it has shown the same energy for a day. Zero is
told only of what a home draws, and only if another register counted meanwhile: a home may be empty,
and at night nothing is fed in. Such a value is sent like any other; somebody should look at the
meter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gridveil.meters.registers import DRAWN

STILL_S = 24 * 3600
"""For how long a register shows the same before that is told, seconds."""


@dataclass(frozen=True)
class Run:
    """Windows in a row of the same energy."""

    wh: int = field(repr=False)
    windows: int
    moved: bool
    """Whether another register counted meanwhile."""


Runs = Mapping[str, Run]
"""By register. Empty at first, and after a gap."""


def watch(runs: Runs, values: Mapping[str, int], length: int) -> tuple[Runs, frozenset[str]]:
    """Take the next window; the runs with it, and the registers that are still.

    Args:
        runs: of the windows before; empty after a gap.
        values: energy of the window, by register.
        length: of the window, seconds.
    """
    after = {name: _run(runs.get(name), name, values) for name in values}
    enough = STILL_S // length
    still = frozenset(
        name
        for name, run in after.items()
        if run.windows >= enough and (run.wh > 0 or (run.moved and name == DRAWN))
    )
    return after, still


def _run(run: Run | None, name: str, values: Mapping[str, int]) -> Run:
    value = values[name]
    others = any(wh > 0 for other, wh in values.items() if other != name)
    if run is None or run.wh != value:
        return Run(value, 1, others)
    return Run(value, run.windows + 1, run.moved or others)
