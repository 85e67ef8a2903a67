"""One running key-holder for all attacks; every attack spends a window of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adversary.city import AttackedCity


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedCity]:
    attacked = AttackedCity(tmp_path_factory.mktemp("attacked"))
    yield attacked
    attacked.close()
