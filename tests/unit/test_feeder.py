"""A feeder's file is read strictly, and what is wrong with it is said without its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil import feeder
from gridveil.feeder import check_grid, read_feeder
from gridveil.protocol.errors import MalformedInput, Reason
from tests.support.exported import write_feeder

HEAD = b"window_start,wh\n"
NOON = 1_777_896_000


def refused(path: Path, data: bytes) -> MalformedInput:
    path.write_bytes(data)
    with pytest.raises(MalformedInput) as raised:
        read_feeder(path)
    return raised.value


@pytest.mark.parametrize(
    "time",
    ["1777896000", "2026-05-04T12:00:00Z", "2026-05-04T14:00+02:00", "2026-05-04 12:00:00+00:00"],
)
def test_a_window_is_named_in_unix_seconds_or_with_its_offset(tmp_path: Path, time: str) -> None:
    path = tmp_path / "feeder.csv"
    path.write_text(f"window_start,wh\n{time},-5\n")
    assert read_feeder(path) == {NOON: -5}


def test_a_file_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "feeder.csv"
    path.write_bytes(b'\xef\xbb\xbfwindow_start,wh\r\n"1777896900",2\r\n1777896000,1\r\n')
    assert list(read_feeder(path).items()) == [(NOON, 1), (NOON + 900, 2)]


@given(st.dictionaries(st.integers(0, 2**37), st.integers(-(10**15) + 1, 10**15 - 1)))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, int]
) -> None:
    path = write_feeder(tmp_path_factory.mktemp("feeder") / "feeder.csv", rows)
    assert list(read_feeder(path).items()) == sorted(rows.items())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.MALFORMED_MESSAGE),
        (b"wh,window_start\n", Reason.MALFORMED_MESSAGE),
        (b"1777896000,5\n", Reason.MALFORMED_MESSAGE),
        (HEAD + b"1777896000,5,7\n", Reason.MALFORMED_MESSAGE),
        (HEAD + b"1777896000\n", Reason.MALFORMED_MESSAGE),
        (HEAD + b"\n", Reason.MALFORMED_MESSAGE),
        (HEAD + b'"1777896000,5\n', Reason.MALFORMED_MESSAGE),
        (HEAD + b'"1777896000"x,5\n', Reason.MALFORMED_MESSAGE),
        (HEAD + b"1777896000,5\xff\n", Reason.MALFORMED_MESSAGE),
        (HEAD + b"7" * 200_000 + b",5\n", Reason.MALFORMED_MESSAGE),
        (b"\x00" * 100, Reason.MALFORMED_MESSAGE),
    ],
)
def test_what_is_no_such_csv_is_refused(tmp_path: Path, data: bytes, reason: Reason) -> None:
    assert refused(tmp_path / "feeder.csv", data).reason is reason


@pytest.mark.parametrize(
    "row",
    [
        *("1777896000,", "1777896000,5.5", "1777896000,1e3", "1777896000, 5", "1777896000,٣"),
        *("1777896000,nan", "1777896000,+5", "1777896000,0x5", "1777896000,1234567890123456"),
        *("2026-05-04T12:00,5", "2026-05-04,5", "-900,5", "137438953473,5", "noon,5", ",5"),
        *("2026-05-04T12:00:00.5Z,5", "2026-13-04T12:00Z,5", "0001-01-01T00:00+23:59,5"),
        *("1777896000.0,5", "999999999999,5"),
    ],
)
def test_a_time_or_number_that_is_none_is_refused_by_its_line(tmp_path: Path, row: str) -> None:
    found = refused(tmp_path / "feeder.csv", HEAD + b"1777895100,1\n" + row.encode() + b"\n")
    assert found.reason is Reason.FIELD_FORMAT
    assert found.message.startswith("line 3 ")
    for cell in filter(None, row.split(",")):
        assert len(cell) < 2 or cell not in found.message


def test_a_window_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    data = HEAD + b"1777896000,5\n2026-05-04T12:00Z,5\n"
    assert refused(tmp_path / "feeder.csv", data).reason is Reason.RANGE_INVALID


def test_a_file_above_its_bounds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "feeder.csv"
    with path.open("wb") as file:
        file.truncate(feeder.MOST_BYTES + 1)
    with pytest.raises(MalformedInput) as raised:
        read_feeder(path)
    assert raised.value.reason is Reason.MESSAGE_TOO_LARGE
    monkeypatch.setattr(feeder, "MOST_ROWS", 2)
    write_feeder(path, {0: 1, 900: 1})
    assert len(read_feeder(path)) == 2
    write_feeder(path, {0: 1, 900: 1, 1800: 1})
    with pytest.raises(MalformedInput) as raised:
        read_feeder(path)
    assert raised.value.reason is Reason.RANGE_INVALID


@pytest.mark.parametrize("rows", [{}, {900: 1}, {0: 1, 900: 1}, {0: 1, 900: 1, 9000: 1}])
def test_a_feeder_in_the_citys_windows_may_have_gaps(rows: dict[int, int]) -> None:
    check_grid(rows, 900)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({0: 1, 901: 1}, Reason.WINDOW_MISALIGNED),
        ({450: 1}, Reason.WINDOW_MISALIGNED),
        ({0: 1, 3600: 1, 7200: 1}, Reason.CONFIG_INVALID),
    ],
)
def test_a_feeder_in_other_windows_is_refused(rows: dict[int, int], reason: Reason) -> None:
    with pytest.raises(MalformedInput) as raised:
        check_grid(rows, 900)
    assert raised.value.reason is reason
