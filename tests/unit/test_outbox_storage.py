"""What is in the outbox is what will be sent: once recorded, for ever the same."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.outbox import Entry, NewEntry, Outbox, State, Verdict
from gridveil.protocol.errors import (
    Conflict,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)

CITY = bytes(16)
METER = bytes(range(16))
WINDOW = 1_700_000_100
DIGEST = bytes(32)


def new(
    window: int = WINDOW,
    meter: bytes = METER,
    wh: int = 412,
    due: float = 0.0,
    report: bytes | None = b"report",
    digest: bytes = DIGEST,
) -> NewEntry:
    return NewEntry(
        window_start=window,
        meter_id=meter,
        values={"import_wh": wh, "export_wh": 0},
        due_at=due,
        parameters_digest=None if report is None else digest,
        report=report,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with Outbox(path, CITY, most_waiting=10) as opened:
        yield opened


def the_entry(outbox: Outbox) -> Entry:
    (entry,) = outbox.due(1e12, 100)
    return entry


def test_a_report_survives_a_restart_byte_for_byte(path: Path) -> None:
    with Outbox(path, CITY) as outbox:
        outbox.record([new(report=bytes(range(256)) * 70)])
    with Outbox(path, CITY) as outbox:
        entry = the_entry(outbox)
    assert entry.report == bytes(range(256)) * 70
    assert entry.values == {"import_wh": 412, "export_wh": 0}
    assert (entry.key, entry.state, entry.attempts) == ((WINDOW, METER), State.WAITING, 0)


def test_the_same_reading_again_keeps_the_first_report(outbox: Outbox) -> None:
    assert outbox.record([new(report=b"first")]) == 1
    assert outbox.record([new(report=b"second blinding")]) == 0
    assert the_entry(outbox).report == b"first"


@pytest.mark.parametrize("state", State)
def test_another_reading_of_the_window_is_refused(outbox: Outbox, state: State) -> None:
    outbox.record([new(report=b"first")])
    outbox.conclude([Verdict(WINDOW, METER, state)])
    with pytest.raises(Conflict) as refused:
        outbox.record([new(window=WINDOW + 900), new(wh=413)])
    assert refused.value.reason is Reason.EQUIVOCATION
    assert "41" not in refused.value.message
    assert [entry.key for entry in outbox.entries()] == [(WINDOW, METER)]


def test_two_readings_of_one_window_in_one_call_are_refused(outbox: Outbox) -> None:
    with pytest.raises(Conflict):
        outbox.record([new(wh=1), new(wh=2)])
    assert outbox.record([new(wh=1), new(wh=1)]) == 1


def test_a_full_outbox_refuses_and_drops_nothing(outbox: Outbox) -> None:
    outbox.record([new(window=900 * n) for n in range(1, 11)])
    with pytest.raises(Unavailable) as refused:
        outbox.record([new()])
    assert refused.value.reason is Reason.STORE_FULL
    assert len(outbox.entries()) == 10
    outbox.conclude([Verdict(900, METER, State.SETTLED)])
    assert outbox.record([new()]) == 1


def test_due_entries_come_by_window_and_epoch_the_longest_due_first(outbox: Outbox) -> None:
    other = bytes(16)
    outbox.record(
        [
            new(due=30),
            new(meter=other, due=20),
            new(window=WINDOW + 900, due=10),
            new(window=WINDOW + 900, meter=other, due=10, digest=b"1" * 32),
            new(window=WINDOW + 1800, report=None, due=99),
        ]
    )
    assert outbox.next_due() == 10
    assert outbox.due(9.9, 8) == []
    assert len(outbox.due(15, 8)) == 1
    assert {entry.window_start for entry in outbox.due(98, 8)} == {WINDOW + 900}
    outbox.conclude([Verdict(WINDOW + 900, meter, State.SETTLED) for meter in (METER, other)])
    assert [entry.meter_id for entry in outbox.due(98, 8)] == [other, METER]
    assert [entry.meter_id for entry in outbox.due(98, 1)] == [other]
    outbox.conclude([Verdict(WINDOW, meter, State.SETTLED) for meter in (METER, other)])
    assert the_entry(outbox).report is None


def test_an_attempt_is_counted_before_it_is_made(path: Path) -> None:
    with Outbox(path, CITY) as outbox:
        outbox.record([new(due=5)])
        outbox.begin(outbox.due(5, 1), again_at=17)
    with Outbox(path, CITY) as outbox:
        assert outbox.due(16, 1) == []
        assert the_entry(outbox).attempts == 1


def test_an_end_is_final_and_gives_the_report_up(path: Path) -> None:
    with Outbox(path, CITY) as outbox:
        outbox.record([new()])
        outbox.conclude([Verdict(WINDOW, METER, State.GAVE_UP, Reason.WINDOW_CLOSED)])
        outbox.conclude([Verdict(WINDOW, METER, State.SETTLED)])
    with Outbox(path, CITY) as outbox:
        (entry,) = outbox.entries()
        assert (entry.state, entry.reason, entry.answered) == (
            State.GAVE_UP,
            Reason.WINDOW_CLOSED,
            True,
        )
        assert outbox.next_due() is None
        outbox.replace_report(entry, DIGEST, b"late", 1.0)
    assert apsw.Connection(str(path)).execute("SELECT count(*) FROM reports").get == 0


def test_a_report_is_replaced_only_while_it_waits(outbox: Outbox) -> None:
    outbox.record([new(report=None)])
    outbox.replace_report(the_entry(outbox), b"1" * 32, b"made", 3.0)
    entry = the_entry(outbox)
    assert (entry.report, entry.parameters_digest, entry.due_at) == (b"made", b"1" * 32, 3.0)


def test_purging_forgets_what_ended_and_never_what_waits(outbox: Outbox) -> None:
    outbox.record([new(), new(window=WINDOW + 900), new(window=WINDOW + 1800)])
    outbox.conclude([Verdict(WINDOW + 900 * n, METER, State.SETTLED) for n in (1, 2)])
    outbox.purge(WINDOW + 1800)
    assert [entry.window_start for entry in outbox.entries()] == [WINDOW, WINDOW + 1800]


def test_parameters_are_kept_newest_first_until_their_windows_are_gone(outbox: Outbox) -> None:
    outbox.record([new()])
    for name in (b"old", b"new", b"old"):
        outbox.keep_parameters(name, b"signature", WINDOW + (900 if name == b"old" else 1800))
    assert [encoded for encoded, _ in outbox.parameters()] == [b"old", b"new"]
    outbox.purge(WINDOW + 9000)
    assert len(outbox.parameters()) == 2
    outbox.conclude([Verdict(WINDOW, METER, State.SETTLED)])
    outbox.purge(WINDOW + 900)
    assert [encoded for encoded, _ in outbox.parameters()] == [b"new"]


def test_only_the_owner_may_read_it_and_every_commit_reaches_the_disk(
    outbox: Outbox, path: Path
) -> None:
    outbox.record([new()])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert outbox._database.pragma("synchronous") == 2
    assert outbox._database.pragma("journal_mode") == "wal"


def test_one_process_at_a_time(outbox: Outbox, path: Path) -> None:
    program = f"""
from gridveil.outbox import Outbox
from gridveil.protocol.errors import Unavailable
try:
    Outbox({str(path)!r}, bytes(16))
except Unavailable as error:
    print(error)
"""
    outbox.record([new()])
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "STORE_UNAVAILABLE: outbox.db is in use by another process\n"


def test_the_outbox_of_another_city_or_another_file_is_refused(path: Path) -> None:
    Outbox(path, CITY).close()
    with pytest.raises(MalformedInput, match="another city"):
        Outbox(path, bytes([1]) * 16)
    foreign = apsw.Connection(str(path.with_name("foreign.db")))
    foreign.execute("CREATE TABLE t (a)")
    foreign.close()
    with pytest.raises(MalformedInput, match="is not an outbox"):
        Outbox(path.with_name("foreign.db"), CITY)
    Outbox(path, CITY).close()


def test_an_outbox_of_another_version_is_refused(path: Path) -> None:
    Outbox(path, CITY).close()
    database = apsw.Connection(str(path))
    database.pragma("user_version", 2)
    database.close()
    with pytest.raises(MalformedInput, match="another version"):
        Outbox(path, CITY)


def test_a_damaged_file_is_refused(path: Path) -> None:
    with Outbox(path, CITY) as outbox:
        outbox.record([new(window=900 * n, report=bytes(5000)) for n in range(1, 20)])
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xa5" * 4096 + whole[12288:])
    with pytest.raises(IntegrityLost):
        Outbox(path, CITY)
    path.write_bytes(b"not a database" * 400)
    with pytest.raises(GridveilError):
        Outbox(path, CITY)


def test_a_folder_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"outbox\.db\.lock cannot be opened or created"):
        Outbox(tmp_path / "missing" / "outbox.db", CITY)


def test_a_full_disk_shuts_the_outbox_and_keeps_what_it_acknowledged(path: Path) -> None:
    with Outbox(path, CITY) as outbox:
        outbox.record([new()])
        outbox._database.pragma("max_page_count", outbox._database.pragma("page_count"))
        with pytest.raises(Unavailable) as refused:
            outbox.record([new(window=WINDOW + 900, report=bytes(50_000))])
        assert refused.value.reason is Reason.STORE_FULL
        with pytest.raises(Unavailable, match="closed"):
            outbox.entries()
    with Outbox(path, CITY) as outbox:
        assert [entry.key for entry in outbox.entries()] == [(WINDOW, METER)]


@given(
    values=st.dictionaries(
        st.text(st.characters(codec="ascii"), max_size=32), st.integers(0, 2**32 - 1), max_size=5
    )
)
def test_any_reading_is_stored_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("outbox") / "outbox.db"
    with Outbox(path, CITY) as outbox:
        outbox.record([NewEntry(WINDOW, METER, values, 0.0, None, None)])
        found = outbox.find(WINDOW, METER)
        assert found is not None
        assert found.values == values
