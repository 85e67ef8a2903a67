"""The simulation is of the real thing, and the document says what it found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gridveil.protocol.windows import lane_of
from gridveil_services.keyholder.suspicion import Suspicions
from tests.simulation import suspects
from tests.simulation.suspects import BUDGET, CASES, REMEDIED, Case, City, Lanes, days

LENGTH = 900
FIRST = 1_767_225_600


def meter(at: int) -> bytes:
    return hashlib.sha256(b"meter %d" % at).digest()[:16]


@pytest.mark.parametrize("liars", [1, 3, 10])
def test_simulated_scores_are_those_the_key_holder_stores(tmp_path: Path, liars: int) -> None:
    """Meters dealt by the protocol's hash, window by window through the real store."""
    case = Case(400, liars, 0.8, 1)
    store = Suspicions(tmp_path / "suspicions.db")
    dealt: list[Lanes] = []

    def deal(epoch: int, window: int) -> Lanes:
        epoch_id, start = hashlib.md5(b"%d" % epoch).digest(), FIRST + window * LENGTH  # noqa: S324
        found = [lane_of(epoch_id, start, meter(at), case.lanes) for at in range(case.meters)]
        dealt.append(np.array(found))
        return dealt[-1]

    city = City(case, deal, np.random.default_rng(liars))
    for window in range(30):
        shown = city.window(window)

        def members(chosen: np.ndarray) -> list[list[bytes]]:
            return [
                [meter(int(at)) for at in np.flatnonzero(dealt[-1] == lane)]
                for lane in np.flatnonzero(chosen)
            ]

        store.record(FIRST + window * LENGTH, members(shown.failed), [], members(shown.passed))
    stored = {suspect.meter_id: suspect.score for suspect in store.ranking(case.meters)}
    assert len(stored) > 1
    assert [stored.get(meter(at), 0.0) for at in range(case.meters)] == pytest.approx(city.scores)


def test_the_hash_deals_meters_as_the_simulation_does() -> None:
    lanes = [lane_of(bytes(16), FIRST, meter(at), 16) for at in range(100_000)]
    sizes = np.bincount(lanes, minlength=16)
    assert (abs(sizes - 6_250) < 5 * 6_250**0.5).all()


def test_without_misbehaving_meters_nobody_is_suspected_and_every_window_is_released() -> None:
    case = Case(1_000, 3, 0.0, 2)
    for day in days(case):
        assert (day.refused, day.epochs, day.leads) == (0, 1, suspects.NEVER)


@pytest.mark.parametrize("case", [CASES[2], CASES[4]])
def test_no_key_sees_more_failures_than_its_budget(case: Case) -> None:
    source = np.random.default_rng(5)
    city = City(case, lambda *_: source.integers(0, case.lanes, case.meters), source)
    city.play()
    spent = city._budget.failures
    assert max(spent) == BUDGET
    assert sum(spent) > 3 * BUDGET
    assert all(failures == BUDGET for failures in spent[:-1])


def test_a_window_ends_with_the_lane_that_spends_the_budget() -> None:
    lanes = np.arange(1_000) % 10
    shown = suspects.decrypt(lanes, 10, np.array([2, 5, 8]), left=2)
    assert np.flatnonzero(shown.failed).tolist() == [2, 5]
    assert np.flatnonzero(shown.passed).tolist() == [0, 1, 3, 4]
    assert not shown.released
    assert suspects.decrypt(lanes, 10, np.array([2, 5]), left=5).released


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_the_document_says_how_long_it_takes(case: Case) -> None:
    assert suspects.row(case) in suspects.documented()


@pytest.mark.parametrize("case", REMEDIED[:3], ids=str)
def test_the_document_says_what_inspecting_the_leader_does(case: Case) -> None:
    assert suspects.remedied_row(case) in suspects.documented()


def test_the_document_has_a_row_for_every_case_and_no_other() -> None:
    rows = [line for line in suspects.documented() if line[2].isdigit()]
    assert len(rows) == len(CASES) + len(REMEDIED)
