"""What only the SQLite store can get wrong: its file, its disk and its settings."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import Committed, Phase, StoreFailed
from gridveil_services.aggregator.store.schema import SCHEMA
from tests.contract.stores import START, SqliteHarness, batch, made_up_report, make_window


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[SqliteHarness]:
    made = SqliteHarness(tmp_path)
    made.store.open_window(make_window())
    yield made
    made.close()


@contextmanager
def edited(harness: SqliteHarness) -> Iterator[apsw.Connection]:
    """The file, changed behind the back of the closed store."""
    harness.close()
    connection = apsw.Connection(str(harness.path))
    yield connection
    connection.close()
    harness.reopen()


def phase(harness: SqliteHarness) -> Phase:
    window = harness.store.window(START)
    assert window is not None
    return window.phase


def first_refusal(harness: SqliteHarness) -> tuple[Unavailable, int]:
    """Commit one meter after the other until the store refuses one."""
    for meter in range(1000):
        try:
            assert harness.store.commit([batch([meter])], 1) == [Committed(1)]
        except Unavailable as refused:
            return refused, meter
    raise AssertionError("the store never refused")


def test_commits_are_synced_and_logged_ahead(harness: SqliteHarness) -> None:
    assert harness.database is not None
    with harness.database.transaction() as connection:
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("journal_mode") == "wal"
        assert connection.pragma("secure_delete") == 1
        assert connection.pragma("cell_size_check") == 1
        assert connection.pragma("application_id") == 0x67726C76


def test_a_reader_cannot_write(harness: SqliteHarness) -> None:
    assert harness.database is not None
    with pytest.raises(StoreFailed):
        harness.database.rows("DELETE FROM windows")
    assert harness.store.windows() == [make_window()]


def test_a_second_process_cannot_open_the_store(harness: SqliteHarness) -> None:
    program = (
        "import sys, pathlib;"
        "from gridveil_services.aggregator.store.database import Database;"
        "from gridveil_services.aggregator.store.schema import SCHEMA;"
        "Database(pathlib.Path(sys.argv[1]), SCHEMA)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, harness.path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "another process uses this store" in run.stderr


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE t (x)")
    foreign.close()
    with pytest.raises(StoreFailed, match="not a store"):
        Database(tmp_path / "foreign.db", SCHEMA)


def test_a_damaged_file_is_refused(harness: SqliteHarness) -> None:
    harness.store.commit([batch(list(range(40)))], 1)
    harness.close()
    data = bytearray(harness.path.read_bytes())
    for at in range(2 * 4096, len(data), 4096):
        data[at : at + 16] = b"\xff" * 16
    harness.path.write_bytes(data)
    with pytest.raises(StoreFailed):
        harness.reopen()


def test_a_full_store_refuses_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    harness = SqliteHarness(tmp_path, max_bytes=160_000)
    harness.store.open_window(make_window())
    refused, meter = first_refusal(harness)
    assert refused.reason is Reason.STORE_FULL
    assert not isinstance(refused, StoreFailed)
    assert harness.store.count(START) == meter > 0
    assert harness.store.known(START, [made_up_report(meter)[0].meter_id]) == {}
    assert harness.database is not None
    with harness.database.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    assert harness.store.commit([batch([meter])], 2) == [Committed(2)]
    harness.reopen()
    assert phase(harness) is Phase.OPEN
    assert harness.store.count(START) == meter + 1
    harness.close()


def test_a_failing_disk_stops_the_store(tmp_path: Path) -> None:
    """Writes beyond the limit fail with EFBIG, an I/O error to SQLite."""
    failures: list[None] = []
    harness = SqliteHarness(tmp_path, on_failure=lambda: failures.append(None))
    harness.store.open_window(make_window())
    harness.store.commit([batch([1])], 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = harness.path.with_name("aggregator.db-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size, hard))
    try:
        with pytest.raises(StoreFailed):
            harness.store.commit([batch([2])], 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failures == [None]
    with pytest.raises(StoreFailed):
        harness.store.commit([batch([3])], 3)
    assert failures == [None]
    harness.reopen()
    assert harness.store.count(START) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE lanes SET sum = zeroblob(length(sum))",
        "UPDATE lanes SET count = count + 1",
        "UPDATE lanes SET lane = 7 WHERE lane = 1",
        "DELETE FROM lanes WHERE lane = 1",
        "DELETE FROM journal WHERE number = 1",
        "UPDATE journal SET reports = zeroblob(length(reports))",
        "UPDATE journal SET accepted_at_ms = 5",
        "INSERT INTO journal (window, lane, accepted_at_ms, reports, checksum)"
        " SELECT window, lane, accepted_at_ms, reports, checksum FROM journal",
    ],
)
def test_an_open_window_that_is_not_whole_is_poisoned(harness: SqliteHarness, damage: str) -> None:
    harness.store.commit([batch([1]), batch([2], lane=1)], 1)
    harness.store.commit([batch([3])], 2)
    with edited(harness) as connection:
        connection.execute(damage)
    assert phase(harness) is Phase.POISONED


@pytest.mark.parametrize(
    "damage", ["UPDATE lanes SET sum = zeroblob(length(sum))", "UPDATE lanes SET count = 2"]
)
def test_a_sealed_sum_that_is_not_whole_is_not_given_out(
    harness: SqliteHarness, damage: str
) -> None:
    harness.store.commit([batch([1])], 1)
    harness.store.seal(START)
    with edited(harness) as connection:
        connection.execute(damage)
    with pytest.raises(IntegrityLost) as lost:
        harness.store.lane_sums(START)
    assert lost.value.reason is Reason.PARTIAL_CORRUPT


def test_sealed_entries_that_are_not_whole_are_not_given_out(harness: SqliteHarness) -> None:
    harness.store.commit([batch([1])], 1)
    harness.store.seal(START)
    with edited(harness) as connection:
        connection.execute("UPDATE journal SET reports = zeroblob(length(reports))")
    with pytest.raises(IntegrityLost):
        list(harness.store.entries(START))


def test_nothing_of_the_entries_is_left_in_the_files_after_settlement(
    harness: SqliteHarness,
) -> None:
    """Also in free pages and in the write-ahead log."""
    secret_parts = fill_and_seal(harness)
    assert found(harness, secret_parts) == len(secret_parts)
    harness.store.settle(START, Phase.RELEASED)
    assert found(harness, secret_parts) == 0


@pytest.mark.parametrize("outcome", [Phase.REFUSED, Phase.EXPIRED])
def test_nor_of_the_sums_if_there_is_no_total(harness: SqliteHarness, outcome: Phase) -> None:
    secret_parts = fill_and_seal(harness)
    (lane,) = harness.store.lane_sums(START)
    sums = [lane.ciphertext[at : at + 64] for at in range(0, len(lane.ciphertext) - 64, 64)]
    assert found(harness, sums) > len(sums) / 2
    harness.store.settle(START, outcome)
    assert found(harness, sums + secret_parts) == 0


def fill_and_seal(harness: SqliteHarness) -> list[bytes]:
    """A sealed window; the signatures of its entries."""
    meters = list(range(60))
    for at in range(0, 60, 7):
        harness.store.commit([batch(meters[at : at + 7])], 1)
    harness.store.seal(START)
    return [made_up_report(meter)[0].entry[-64:] for meter in meters]


def found(harness: SqliteHarness, parts: list[bytes]) -> int:
    """How many of these are in the store's files.

    Opening the file beside SQLite would drop its locks in this process; a child may.
    """
    data = b"".join(
        subprocess.run(["cat", path], capture_output=True, check=True).stdout
        for path in sorted(harness.path.parent.iterdir())
    )
    return sum(part in data for part in parts)


def test_a_store_of_the_version_before_is_given_the_tables_it_lacks(tmp_path: Path) -> None:
    harness = SqliteHarness(tmp_path)
    harness.store.open_window(make_window())
    harness.store.commit([batch([1])], 77)
    harness.close()
    with closing(apsw.Connection(str(harness.path))) as connection:
        for table in ("acknowledgements", "replica", "poisoned", "participants"):
            connection.execute(f"DROP TABLE {table}")
        connection.pragma("user_version", 1)
    harness.reopen()
    assert harness.store.count(START) == 1
    assert harness.database is not None
    assert harness.database.rows("SELECT count(*) FROM acknowledgements") == [(0,)]
    assert harness.database.rows("PRAGMA user_version") == [(2,)]
    harness.close()
