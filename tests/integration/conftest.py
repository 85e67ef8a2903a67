"""Fixtures of more than one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.city import TestCity


@pytest.fixture
def paths(tmp_path: Path) -> CityPaths:
    return TestCity.create(tmp_path).paths


@pytest.fixture
def serve(paths: CityPaths) -> Iterator[Callable[[], TotalsProcess]]:
    """Starts totals processes in this one, and stops them."""
    with ExitStack() as stopped:

        def start() -> TotalsProcess:
            process = TotalsProcess(TotalsConfig.load(paths.config("totals")))
            stopped.callback(process.stop)
            process.start()
            return process

        yield start
