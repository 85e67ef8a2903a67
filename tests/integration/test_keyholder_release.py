"""A release: the exact total once, the same answer for ever, or a refusal that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.keyholders import PreparedCity, prepare_city


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


def test_an_honest_release_gives_the_exact_total(city: PreparedCity) -> None:
    with city.open() as keyholder:
        settled = keyholder.releases.release(city.release.messages())
        assert not settled.replayed
        assert keyholder.ring.decryptions(city.window) == 1
    total = city.totals()[city.window]
    assert tuple(register.sum for register in total.registers) == city.truth
    assert total.count == total.enrolled == len(city.meters)
    assert city.events() == ["intent", "released"]
