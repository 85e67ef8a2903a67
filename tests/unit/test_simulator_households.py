"""Made-up households follow the standard profile, each in its own way, the same for a seed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gridveil.protocol.city import Register
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.simulator import ReadingBounds, StandardLoadSource
from tests.support.reports import city_policy

MIDNIGHT = 1_767_571_200
"""2026-01-05T00:00Z, a Monday."""
BOUNDS = ReadingBounds(900, -200_000, 200_000)
DAY = [MIDNIGHT + 900 * at for at in range(96)]
ANY = [None] * 500


def test_a_winter_day_of_many_homes_adds_up_to_what_homes_use() -> None:
    table = StandardLoadSource(seed=3).read(ANY, DAY, BOUNDS)
    a_home = table.wh.sum() / 1000 / len(ANY)
    assert 7 < a_home < 14
    by_hour = table.wh.sum(axis=1).reshape(24, 4).sum(axis=1)
    assert by_hour[2] < by_hour[11] < by_hour[18] * 1.2
    assert by_hour[18] > 3 * by_hour[2]
    assert table.present.all()
    assert (table.wh >= 0).all()


def test_homes_differ_from_each_other_and_from_interval_to_interval() -> None:
    table = StandardLoadSource(seed=3).read(ANY, DAY, BOUNDS)
    assert np.unique(table.wh.sum(axis=0)).size > 450
    assert np.unique(table.wh[:, 0]).size > 40


def test_the_same_seed_gives_the_same_readings_whatever_is_asked_for() -> None:
    whole = StandardLoadSource(seed=3).read(ANY, DAY, BOUNDS)
    part = StandardLoadSource(seed=3).read(ANY[:20], DAY[5:7], BOUNDS)
    assert (part.wh == whole.wh[5:7, :20]).all()
    other = StandardLoadSource(seed=4).read(ANY, DAY, BOUNDS)
    assert (other.wh != whole.wh).any()


@pytest.mark.parametrize("length", [300, 1800, 3600])
def test_windows_of_other_lengths_have_the_same_energy(length: int) -> None:
    smooth = StandardLoadSource(seed=3, interval_sigma=0.0)
    quarters = smooth.read(ANY, DAY, BOUNDS).wh.sum()
    starts = range(MIDNIGHT, MIDNIGHT + 86_400, length)
    others = smooth.read(ANY, starts, ReadingBounds(length, 0, 200_000)).wh.sum()
    assert others == pytest.approx(quarters, rel=0.01)


def test_a_bound_that_homes_exceed_is_refused_and_nothing_is_clipped() -> None:
    with pytest.raises(MalformedInput, match="exceed the city's bound"):
        StandardLoadSource().read(ANY, DAY, ReadingBounds(900, 0, 10))


def test_a_city_with_other_registers_is_refused() -> None:
    policy = city_policy(registers=(Register("gas", "l", 10), Register("import_wh", "Wh", 10)))
    with pytest.raises(MalformedInput, match="gas, import_wh") as refused:
        ReadingBounds.of_city(policy)
    assert refused.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("missing", ["demandlib", "pandas"])
def test_without_the_extra_it_is_named(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from gridveil.simulator import ReadingBounds, StandardLoadSource
from gridveil.protocol.errors import MalformedInput
try:
    StandardLoadSource().read([None], [{MIDNIGHT}], ReadingBounds(900, 0, 200_000))
except MalformedInput as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CONFIG_INVALID: ")
    assert "gridveil[profiles]" in run.stdout
