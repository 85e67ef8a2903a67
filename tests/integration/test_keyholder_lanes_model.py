"""Days of lanes that fail in any pattern go as a few lines of arithmetic say."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from gridveil.protocol.errors import GridveilError, Reason
from tests.support.lanes import (
    LANES,
    METERS,
    WINDOWS,
    LaneCity,
    decrypted,
    prepare_lanes,
    window_at,
)

BUDGET = 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> LaneCity:
    return prepare_lanes(tmp_path_factory.mktemp("prepared") / "city")


@dataclass(frozen=True)
class Window:
    """What is wrong with the lanes of a window."""

    failing: frozenset[int]
    unsealed: frozenset[int]


@dataclass(frozen=True)
class Expected:
    """What becomes of it."""

    decrypted: list[int]
    failures: int
    left_out: list[int] | None
    """None: it is refused."""


class Model:
    """The rules, on counts of meters alone."""

    def __init__(self, city: LaneCity) -> None:
        self._city = city
        self.left = BUDGET

    def settle(self, number: int, window: Window) -> Expected:
        sound = [lane for lane in range(LANES) if lane not in window.unsealed]
        tried: list[int] = []
        failures = 0
        if self.left and self._is_enough(number, sound):
            for lane in sound:
                if failures < self.left:
                    tried.append(lane)
                    failures += lane in window.failing
        opened = [lane for lane in tried if lane not in window.failing]
        self.left -= failures
        left_out = [lane for lane in range(LANES) if lane not in opened]
        return Expected(tried, failures, left_out if self._is_enough(number, opened) else None)

    def _is_enough(self, number: int, lanes: list[int]) -> bool:
        count = len(self._city.meters_in(number, lanes))
        return count >= 150 and 2 * count >= METERS


def some(random: Random, most: int) -> frozenset[int]:
    return frozenset(random.sample(range(LANES), random.randint(0, most)))


@pytest.mark.parametrize("seed", range(8))
def test_a_day_goes_as_the_model_says(prepared: LaneCity, tmp_path: Path, seed: int) -> None:
    random, city = Random(seed), prepared.copy(tmp_path / "city")
    model, settled, number = Model(city), [], 0
    while number < WINDOWS:
        with city.open() as keyholder:
            if not model.left:
                break
            keys = city.keys(keyholder)
            for _ in range(random.randint(1, 3)):  # windows until the next restart
                if number < WINDOWS:
                    window = Window(some(random, 2), some(random, 1))
                    expected = model.settle(number, window)
                    release = city.release(number, failing=window.failing, unsealed=window.unsealed)
                    with suppress(GridveilError):
                        keyholder.releases.release(release.messages())
                    assert decrypted(keys, number) == dict.fromkeys(expected.decrypted, 1)
                    settled.append(expected)
                    number += 1
    assert city.outcomes() == [
        ("refused" if e.left_out is None else "released", e.failures) for e in settled
    ]
    for at, expected in enumerate(settled):
        if expected.left_out is not None:
            city.assert_exact(at, left_out=expected.left_out)
    assert len(city.logged("epoch_destroyed")) == (model.left == 0)
    assert sum(e.failures for e in settled) <= BUDGET


def test_after_the_budget_no_window_of_the_epoch_is_ever_opened(
    prepared: LaneCity, tmp_path: Path
) -> None:
    city = prepared.copy(tmp_path / "city")
    with city.open() as keyholder:
        with suppress(GridveilError):
            keyholder.releases.release(city.release(0, failing=range(LANES)).messages())
        reasons = []
        for number in range(1, WINDOWS):
            with pytest.raises(GridveilError) as refusal:
                keyholder.releases.release(city.release(number).messages())
            reasons.append(refusal.value.reason)
            keyholder.upkeep.tick()
            assert keyholder.ledger.is_final(window_at(number))
    assert set(reasons) <= {Reason.REFUSED, Reason.WINDOW_EXPIRED}
    assert city.city.totals() == {}
