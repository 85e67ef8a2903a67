"""The demonstration's clock: slower where the machine is, and never so slow that nobody waits."""

from __future__ import annotations

import pytest

from gridveil_services.demo.plan import WINDOW_S, DemoOptions, DemoPlan

PLAIN = DemoPlan(DemoOptions(windows=1))
ROTATING = DemoPlan(DemoOptions(windows=2, meters=300, misbehaving=1))
LARGE = DemoPlan(DemoOptions(windows=1, meters=2_000))


@pytest.mark.parametrize(
    ("plan", "start_s", "window_s"),
    [
        (PLAIN, 0.8, 4),
        (ROTATING, 0.8, 9),
        (LARGE, 0.8, 20),
        (PLAIN, 5.0, 15),
        (ROTATING, 5.0, 15),
        (LARGE, 5.0, 20),
        (ROTATING, 1000.0, 60),
    ],
)
def test_a_window_lasts_longer_where_services_start_slowly(
    plan: DemoPlan, start_s: float, window_s: float
) -> None:
    assert WINDOW_S / plan.rate(start_s) == pytest.approx(window_s)
