"""docs/privacy.md lists what is stored, and a running city stores nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from gridveil.outbox import Outbox
from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.aggregator.serve import STORE_FILE
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.controllers import running_controller
from tests.support.reports import WINDOW

TEXT = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
ROWS = re.findall(
    r"^\| (aggregator|controller|key-holder|published|meter) `([\w./]+)` \|", TEXT, re.MULTILINE
)
METERS = 110


def told(place: str) -> set[str]:
    """What the table lists in a place."""
    return {what for where, what in ROWS if where == place}


def tables(path: Path) -> set[str]:
    """The tables of a SQLite file."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
        found = reader.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {str(name) for (name,) in found}


def rows(path: Path, table: str) -> int:
    """How many rows a table has."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
        reader.set_busy_timeout(10_000)
        ((count,),) = reader.execute(f"SELECT count(*) FROM {table}")  # noqa: S608
        return int(count)


def databases(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.db"))


def plain_files(folder: Path) -> set[str]:
    """Top-level entries that are no database; folders end with a slash."""
    found = (path for path in folder.iterdir() if ".db" not in path.name)
    return {path.name + "/" * path.is_dir() for path in found}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCity]:
    """One window is released, and a second one open."""
    with LocalCity.create(tmp_path_factory.mktemp("city"), meters=METERS) as made:
        made.enter_window(WINDOW)
        submit(made, WINDOW)
        made.aggregator.sealer.step()
        made.aggregator.releaser.step()
        made.enter_window(WINDOW + LENGTH)
        submit(made, WINDOW + LENGTH)
        yield made


def submit(city: LocalCity, window: int) -> None:
    reports = [city.report(meter, window) for meter in range(METERS)]
    city.stub("gateway").SubmitReports(aggregator_pb2.SubmitReportsRequest(reports=reports))


def test_the_aggregator_stores_what_the_table_lists(city: LocalCity) -> None:
    state = city.aggregator_config.state
    assert {table for path in databases(state) for table in tables(path)} == told("aggregator")
    assert plain_files(state) <= set()


def test_the_key_holder_stores_what_the_table_lists(city: LocalCity) -> None:
    state = city.keyholder_config.state
    found = {table for path in databases(state) for table in tables(path)}
    assert found | plain_files(state) == told("key-holder")


def test_the_key_holder_publishes_what_the_table_lists(city: LocalCity) -> None:
    assert plain_files(city.keyholder_config.published) == told("published")


def test_the_controller_stores_what_the_table_lists(city: LocalCity) -> None:
    """It sees the released window, so it remembers a checkpoint."""
    totals = TotalsProcess(TotalsConfig.load(city.paths.config("totals")))
    try:
        totals.start()
        with running_controller(city.paths, city.clock) as controller:
            state = controller.journal.parent
            found = {table for path in databases(state) for table in tables(path)}
            files = {name for name in plain_files(state) if not name.endswith(".lock")}
            assert found | files == told("controller")
    finally:
        totals.stop()


def test_a_meter_stores_what_the_table_lists(city: LocalCity, tmp_path: Path) -> None:
    policy = city.parameters().policy
    with Outbox(tmp_path / "outbox.db", policy.city_id):
        pass
    assert tables(tmp_path / "outbox.db") == told("meter")


def test_what_says_who_reported_goes_when_the_table_says(city: LocalCity) -> None:
    """Run last: it lets a day pass."""
    store = city.aggregator_config.state / STORE_FILE
    assert rows(store, "journal") > 0
    assert rows(store, "receipts") == METERS
    city.aggregator.sealer.step()
    city.aggregator.releaser.step()
    assert rows(store, "journal") == 0
    assert rows(store, "receipts") == 2 * METERS
    assert rows(store, "lanes") > 0
    assert not list((city.keyholder_config.state / "spool").iterdir())
    city.clock.move_to(WINDOW + 4 * 86_400)
    city.aggregator.sealer.step()
    for table in ("windows", "lanes", "journal", "receipts", "equivocations"):
        assert rows(store, table) == 0
