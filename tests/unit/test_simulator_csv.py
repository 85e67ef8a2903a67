"""A file of readings is read exactly, or its fault is named by line and column."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.simulator import CsvSource, ReadingBounds, Readings

START = 1_700_000_100
BOUNDS = ReadingBounds(900, -200_000, 200_000)
WINDOWS = [START + 900 * at for at in range(3)]
ANY: list[str | None] = [None] * 4

WIDE = "meter_id,a,b,c\nhome 1,1,-2,3\nhome 2,40,50,60\n"
LONG = f"""meter_id,timestamp,wh
home 2,{START},40
home 1,{START},1
home 1,2023-11-14T22:30:00Z,-2
home 2,2023-11-14T23:30:00+01:00,50
home 1,{START + 1800},3
home 2,2023-11-14T22:45Z,60
"""


def write(tmp_path: Path, text: str | bytes, *, zipped: bool = False) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path = tmp_path / "readings.csv"
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def source(path: Path, *, skip_bad: bool = False) -> CsvSource:
    return CsvSource(path, START, skip_bad)


def read(path: Path, *, skip_bad: bool = False, labels: list[str | None] = ANY) -> Readings:
    return source(path, skip_bad=skip_bad).read(labels, WINDOWS, BOUNDS)


def refusal(path: Path) -> MalformedInput:
    with pytest.raises(MalformedInput) as refused:
        read(path)
    return refused.value


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("text", "order"), [(WIDE, [0, 1]), (LONG, [1, 0])], ids=["wide", "long"])
def test_wide_long_and_gzipped_files_hold_the_same(
    tmp_path: Path, text: str, order: list[int], zipped: bool
) -> None:
    table = read(write(tmp_path, text, zipped=zipped))
    assert table.wh[:, order].tolist() == [[1, 40], [-2, 50], [3, 60]]
    assert table.present[:, :2].all()
    assert not table.present[:, 2:].any()


@pytest.mark.parametrize("text", [WIDE, LONG], ids=["wide", "long"])
def test_labelled_meters_get_their_own_readings_and_others_what_is_left(
    tmp_path: Path, text: str
) -> None:
    path = write(tmp_path, text)
    table = read(path, labels=[None, "home 1"])
    assert table.wh.T.tolist() == [[40, 50, 60], [1, -2, 3]]
    subject = source(path)
    table = subject.read(["home 2"], WINDOWS[1:2], BOUNDS)
    assert (table.wh.tolist(), subject.unassigned) == ([[50]], 1)


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + WIDE.replace("\n", "\r\n").encode())
    assert read(path).wh[:, 0].tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        (WIDE.replace("-2", "-2.0"), 2, 3),
        (WIDE.replace("-2", "NaN"), 2, 3),
        (WIDE.replace("-2", "inf"), 2, 3),
        (WIDE.replace("-2", ""), 2, 3),
        (WIDE.replace("-2", " 2"), 2, 3),
        (WIDE.replace("-2", "1e3"), 2, 3),
        (WIDE.replace("-2", "1_0"), 2, 3),
        (WIDE.replace("-2", "٣"), 2, 3),
        (WIDE.replace("-2", "+2"), 2, 3),
        (WIDE.replace("-2", "200001"), 2, 3),
        (WIDE.replace("60", "-200001"), 3, 4),
        (WIDE.replace("60", "9" * 40), 3, 4),
        (WIDE.replace("1,-2,3", "1,-2"), 2, 3),
        (WIDE.replace("1,-2,3", "1,-2,3,4"), 2, 5),
        (WIDE.replace("home 2", "home 1"), 3, 1),
        (WIDE.replace("home 2", ""), 3, 1),
        (WIDE.replace("home 2", " home 2"), 3, 1),
        (WIDE + "\n", 4, 1),
        (LONG.replace("Z,-2", "Z,2.5"), 4, 3),
        (LONG.replace("Z,-2", "Z,"), 4, 3),
        (LONG.replace("22:30:00Z", "22:30:00"), 4, 2),
        (LONG.replace("22:30:00Z", "22:31:00Z"), 4, 2),
        (LONG.replace("22:30:00Z", "22:30:00.5Z"), 4, 2),
        (LONG.replace("2023-11-14T22:30:00Z", "yesterday"), 4, 2),
        (LONG.replace("2023-11-14T22:30:00Z", "1700001000.0"), 4, 2),
        (LONG.replace("2023-11-14T22:30:00Z", str(START)), 4, 3),
        (LONG.replace("home 1,2023", "2023"), 4, 2),
        ("meter,a\n", 1, 1),
        ("meter_id\n", 1, 1),
        ("", 1, 1),
        ("meter_id,wh,timestamp\n" + "\n".join(LONG.splitlines()[1:]), 1, 1),
    ],
)
def test_a_fault_is_named_by_line_and_column_and_its_value_is_not_shown(
    tmp_path: Path, text: str, line: int, column: int
) -> None:
    error = refusal(write(tmp_path, text))
    assert error.reason is Reason.READING_INVALID
    assert error.message.startswith(f"readings.csv, line {line}, column {column}: ")
    assert error.metadata == {"line": str(line), "column": str(column)}
    for canary in ("2.0", "2.5", "200001", "999", "yesterday", "NaN"):
        assert canary not in error.message


@pytest.mark.parametrize(
    "data",
    [
        WIDE.replace("home 2", "h\xf6me").encode("latin-1"),
        gzip.compress(WIDE.encode())[:-9],
        gzip.compress(WIDE.encode())[:12] + bytes(20),
        WIDE.replace("home 2", '"home 2').encode(),
    ],
    ids=["not UTF-8", "cut gzip", "broken gzip", "open quote"],
)
def test_a_file_that_is_not_whole_text_is_refused(tmp_path: Path, data: bytes) -> None:
    error = refusal(write(tmp_path, data))
    assert error.reason is Reason.READING_INVALID
    assert "readings.csv is not whole CSV text" in error.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "none.csv")) == "CONFIG_INVALID: none.csv cannot be read"


@pytest.mark.parametrize("shift", [-900, 900])
def test_windows_outside_a_wide_file_are_refused(tmp_path: Path, shift: int) -> None:
    path = write(tmp_path, WIDE)
    with pytest.raises(MalformedInput, match="has intervals from"):
        CsvSource(path, START + shift).read(ANY, WINDOWS, BOUNDS)


def test_a_wide_file_needs_its_aligned_start(tmp_path: Path) -> None:
    path = write(tmp_path, WIDE)
    with pytest.raises(MalformedInput, match="--start"):
        CsvSource(path).read(ANY, WINDOWS, BOUNDS)
    with pytest.raises(MalformedInput, match="multiple of 900"):
        CsvSource(path, START + 1).read(ANY, WINDOWS, BOUNDS)


def test_bad_rows_and_readings_are_passed_over_and_counted(tmp_path: Path) -> None:
    text = WIDE + "home 3,1,x,\nhome 4,1,2\nhome 5,7,8,9\nhome 1,0,0,0\n"
    subject = source(write(tmp_path, text), skip_bad=True)
    for window in WINDOWS:
        table = subject.read(ANY, [window], BOUNDS)
    assert table.wh.tolist() == [[3, 60, 0, 9]]
    assert table.present.tolist() == [[True, True, False, True]]
    assert subject.skipped == 4


def test_of_two_readings_of_one_interval_the_first_is_kept(tmp_path: Path) -> None:
    text = LONG + f"home 1,{START},99\n"
    subject = source(write(tmp_path, text), skip_bad=True)
    assert subject.read(["home 1"], WINDOWS, BOUNDS).wh[0, 0] == 1
    assert subject.skipped == 1


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.lists(st.integers(-200_000, 200_000), min_size=3, max_size=3), min_size=1, max_size=4
    )
)
def test_any_table_is_the_same_from_either_layout(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    wide = ["meter_id,a,b,c"]
    long = ["meter_id,timestamp,wh"]
    for number, row in enumerate(rows):
        wide.append(f"m{number}," + ",".join(map(str, row)))
        for at, value in enumerate(row):
            time = datetime.fromtimestamp(WINDOWS[at], UTC).isoformat()
            long.append(f"m{number},{time},{value}")
    labels: list[str | None] = [f"m{number}" for number in range(len(rows))]
    tables = [
        read(write(folder, "\n".join(lines), zipped=zipped), labels=labels)
        for lines, zipped in ((wide, False), (long, True))
    ]
    assert tables[0].wh.T.tolist() == tables[1].wh.T.tolist() == rows
