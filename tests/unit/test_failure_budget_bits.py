"""What passes and failures of lanes can tell is as much as the threat model says."""

from __future__ import annotations

import re
from itertools import product
from math import comb, log2
from pathlib import Path

import pytest

from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.windows import lane_count

DOCUMENT = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text("utf-8")
ROW = re.compile(r"^\| ([\d,]+)(?: \([^)]*\))?, (\d+)(?: \(([^)]*)\))? \| ([\d,]+) \|(.*)\|$", re.M)
ROWS = ROW.findall(DOCUMENT)
BUDGETS = (1, 5, 16)


def integer(text: str) -> int:
    return int(text.replace(",", ""))


def patterns(lanes: int, budget: int) -> int:
    """Ways in which an epoch's lanes can pass and fail until they are over or the budget is."""
    ways = {0: 1}
    ended = 0
    for _ in range(lanes):
        ended += ways.get(budget - 1, 0)
        ways = {failed: ways.get(failed, 0) + ways.get(failed - 1, 0) for failed in range(budget)}
    return ended + sum(ways.values())


def test_the_table_is_found() -> None:
    assert len(ROWS) == 5


@pytest.mark.parametrize(("windows", "lanes", "city", "n", "bits"), ROWS)
def test_each_row_is_the_logarithm_of_its_patterns(
    windows: str, lanes: str, city: str, n: str, bits: str
) -> None:
    decrypted = integer(windows) * int(lanes)
    assert integer(n) == decrypted
    stated = [float(cell) for cell in bits.split("|")]
    for budget, told in zip(BUDGETS, stated, strict=True):
        bound = sum(comb(decrypted, failures) for failures in range(budget + 1))
        assert round(log2(bound), 1) == told


@pytest.mark.parametrize(("lanes", "budget"), list(product((1, 7, 40), (1, 3, 5))))
def test_no_rule_of_stopping_gives_more_patterns_than_the_bound(lanes: int, budget: int) -> None:
    bound = sum(comb(lanes, failures) for failures in range(budget + 1))
    assert patterns(lanes, budget) <= bound


def test_the_cities_of_the_table_have_its_lanes() -> None:
    found = 0
    for _, lanes, city, _, _ in ROWS:
        meters = [integer(number) for number in re.findall(r"[\d,]*\d", city)]
        for enrolled in meters:
            assert lane_count(enrolled, parameter_set("ckks-2048"), 64) == int(lanes)
            found += 1
    assert found == 5
