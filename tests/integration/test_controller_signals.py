"""What a running controller signals, with a real totals service, for every kind of window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.control import Basis
from tests.support.controllers import LENGTH, ControlledCity

LATE_S = LENGTH + 1_800
"""From a window's start until its total is stale."""


@pytest.fixture
def city(tmp_path: Path) -> Iterator[ControlledCity]:
    with ControlledCity.create(tmp_path) as made:
        yield made


def test_a_fresh_total_is_signalled_as_measured(city: ControlledCity) -> None:
    city.release(0, 930_000)

    signal = city.until(lambda signal: signal.basis is Basis.MEASURED)

    assert (signal.level, signal.cause) == (2, "CAPACITY")
    assert signal.window_start == city.window(0)
    assert (signal.measured_w, signal.estimated_w, signal.ramp_w) == (930_000, None, None)
    assert signal.at == city.clock.now()


def test_a_total_of_most_meters_is_signalled_as_an_estimate(city: ControlledCity) -> None:
    city.release(0, 800_000, count=80)

    signal = city.until(lambda signal: signal.basis is Basis.ESTIMATED)

    assert (signal.level, signal.measured_w, signal.estimated_w) == (3, 800_000, 1_000_000)
