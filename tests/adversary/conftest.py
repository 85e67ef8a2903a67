"""One city for all attacks, put back to where it was after every attack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adversary.city import AttackedCity


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedCity]:
    city = AttackedCity(tmp_path_factory.mktemp("attacked"))
    yield city
    city.close()


@pytest.fixture
def city(attacked: AttackedCity) -> Iterator[AttackedCity]:
    """The running city, in which nobody has tried anything yet."""
    attacked.renew()
    yield attacked
    attacked.assert_log_is_lawful()
