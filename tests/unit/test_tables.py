"""Totals as tables: every window has its row, and no figure is made up."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow
import pytest
from nacl.signing import SigningKey
from pyarrow import parquet

from gridveil.days import time_zone, windows_of
from gridveil.protocol.commitment import Generators
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise
from gridveil.protocol.release import RegisterTotal, TotalNoise
from gridveil.settlements import NotReleased, NotReleasedReason, Outcome, ReleasedTotal
from gridveil.tables import (
    Layout,
    Row,
    Status,
    columns,
    csv_lines,
    rows,
    survey,
    to_arrow,
    to_pandas,
    to_polars,
    write_csv,
    write_parquet,
)
from gridveil.tables.rows import MOST_ROWS
from tests.support.reports import city_policy
from tests.support.totals import open_window, readings

ZURICH = time_zone("Europe/Zurich")
KEY = SigningKey(b"k" * 32)
FIRST = 1_700_000_100
TOTAL = open_window(city_policy(), KEY, FIRST, readings(100), enrolled=125).total
LAYOUT = Layout((("import_wh", "Wh"), ("export_wh", "Wh")), 900)
POINT = Generators.derive(bytes(16), bytes(16), FIRST, ("a",)).commit([1], 1)
NOISE = TotalNoise(Noise(Mechanism.LAPLACE, 500_000), POINT)


def total(window: int, **changes: Any) -> ReleasedTotal:
    """A signed total of a window."""
    made = replace(TOTAL, window_start=window, **changes)
    return ReleasedTotal(made, made.encode(), made.sign(KEY))


def registers(*sums: tuple[str, str, int]) -> tuple[RegisterTotal, ...]:
    return tuple(RegisterTotal(*found) for found in sums)


def gap(window: int) -> NotReleased:
    return NotReleased(window, NotReleasedReason.EXPIRED)


def refusal(call: Any) -> Reason:
    with pytest.raises(MalformedInput) as refused:
        call()
    return refused.value.reason


DAYS = [(date(2026, 3, 29), 92), (date(2026, 6, 1), 96), (date(2026, 10, 25), 100)]


@pytest.mark.parametrize(("day", "size"), DAYS)
def test_a_local_day_has_a_row_for_each_of_its_quarter_hours(day: date, size: int) -> None:
    windows = windows_of(day, ZURICH, 900)
    # The first four and the last are settled; one belongs to the day before.
    settled: list[Outcome] = [total(windows.start - 900), *map(total, windows[:3])]
    settled += [gap(windows[3]), total(windows[-1])]

    frame = to_pandas(settled, zone=ZURICH, first=windows.start, end=windows.stop)

    assert len(frame) == size
    assert list(frame["status"]) == [
        *["released"] * 3,
        "not_released",
        *["not_settled"] * (size - 5),
        "released",
    ]
    assert frame["window_start"].is_unique
    assert set(frame["window_start"].diff().dropna()) == {timedelta(minutes=15)}
    assert frame["local_start"].iloc[0] == datetime(day.year, day.month, day.day)
    assert set(frame["local_start"].dt.date) == {day}
    local = frame["window_start"].dt.tz_convert("Europe/Zurich").dt.tz_localize(None)
    assert list(local) == list(frame["local_start"])


@pytest.mark.parametrize(("day", "size"), DAYS)
def test_a_day_of_which_nothing_is_settled_has_all_its_rows(day: date, size: int) -> None:
    windows = windows_of(day, ZURICH, 900)
    found = list(rows([], LAYOUT, first=windows.start, end=windows.stop))
    assert [row.window_start for row in found] == list(windows)
    assert len(found) == size
    assert {row.status for row in found} == {Status.NOT_SETTLED}


def test_an_hour_that_a_day_has_twice_is_told_apart_by_its_offset() -> None:
    windows = windows_of(date(2026, 10, 25), ZURICH, 900)
    frame = to_polars(map(total, windows), zone=ZURICH)
    twice = frame.filter(polars.col("local_start") == datetime(2026, 10, 25, 2, 15))
    assert list(twice["utc_offset_minutes"]) == [120, 60]
    assert list(twice["window_start"]) == [
        datetime(2026, 10, 25, 0, 15, tzinfo=UTC),
        datetime(2026, 10, 25, 1, 15, tzinfo=UTC),
    ]


def test_windows_of_an_hour_are_those_that_begin_in_the_day() -> None:
    windows = windows_of(date(2026, 6, 1), time_zone("Asia/Kolkata"), 3600)
    assert len(windows) == 24
    assert all(window % 3600 == 0 for window in windows)
    found = rows([], replace(LAYOUT, window_length=3600), first=windows.start, end=windows.stop)
    assert len(list(found)) == 24


def test_a_window_without_a_total_has_no_figures() -> None:
    table = to_arrow([total(FIRST), gap(FIRST + 900), total(FIRST + 2700)])
    found = table.to_pylist()
    assert [row["status"] for row in found] == [
        "released",
        "not_released",
        "not_settled",
        "released",
    ]
    assert [row["reason"] for row in found] == [None, "EXPIRED", None, None]
    figures = {"import_wh", "export_wh", "count", "enrolled", "coverage"} | {
        "import_wh_deviation",
        "export_wh_deviation",
        "signed_total",
        "signature",
    }
    for row in found[1:3]:
        assert {row[name] for name in figures} == {None}
        assert row["window_length"] == 900
    assert figures <= set(table.column_names)


def test_a_row_holds_what_was_signed() -> None:
    released = total(FIRST)
    (row,) = to_arrow([released]).to_pylist()
    assert row["window_start"] == datetime.fromtimestamp(FIRST, UTC)
    assert (row["import_wh"], row["export_wh"]) == tuple(r.sum for r in TOTAL.registers)
    assert (row["count"], row["enrolled"], row["coverage"]) == (100, 125, 0.8)
    assert (row["import_wh_deviation"], row["export_wh_deviation"]) == (0.0, 0.0)
    assert bytes.fromhex(row["signed_total"]) == released.encoded
    assert bytes.fromhex(row["signature"]) == released.signature


def test_noise_has_its_deviation_and_none_is_claimed_where_it_is_not_known() -> None:
    noisy = total(FIRST, added=NOISE, registers=registers(("import_wh", "Wh", -5)))
    known = to_arrow([noisy], deviations=lambda released: {"import_wh": 12.5}).to_pylist()
    unknown = to_arrow([noisy]).to_pylist()
    assert (known[0]["import_wh"], known[0]["import_wh_deviation"]) == (-5, 12.5)
    assert (unknown[0]["import_wh"], unknown[0]["import_wh_deviation"]) == (-5, None)


def test_every_library_gets_the_same_table(tmp_path: Path) -> None:
    # More than a double can hold, beside a null.
    large = total(FIRST, registers=registers(("import_wh", "Wh", 2**53 + 1)))
    outcomes: list[Outcome] = [large, gap(FIRST + 900)]
    table = to_arrow(outcomes, zone=ZURICH)
    layout, again = survey(outcomes, ZURICH)
    with (tmp_path / "totals.parquet").open("wb") as file:
        write_parquet(rows(again, layout), layout, file)

    assert parquet.read_table(tmp_path / "totals.parquet").equals(table, check_metadata=True)
    assert to_polars(outcomes, zone=ZURICH).to_arrow().to_pylist() == table.to_pylist()
    frame = to_pandas(outcomes, zone=ZURICH)
    assert list(frame.columns) == table.column_names
    assert frame["import_wh"].iloc[0] == 2**53 + 1
    assert frame["import_wh"].iloc[1] is pandas.NA
    assert str(frame["window_start"].dtype) == "datetime64[ms, UTC]"
    assert table.schema.field("import_wh").metadata == {b"unit": b"Wh"}
    assert table.schema.metadata == {b"zone": b"Europe/Zurich"}
    assert table.schema.field("window_start").type == pyarrow.timestamp("ms", tz="UTC")


def test_csv_says_the_same_in_text() -> None:
    written = io.BytesIO()
    outcomes: list[Outcome] = [total(FIRST), gap(FIRST + 900), total(FIRST + 2700)]
    write_csv(rows(outcomes, LAYOUT), LAYOUT, written)
    text = written.getvalue().decode()
    header, *lines = text.splitlines()
    assert header == (
        "window_start,local_start,utc_offset_minutes,window_length,status,reason,import_wh,"
        "import_wh_deviation,export_wh,export_wh_deviation,count,enrolled,coverage,signed_total,"
        "signature"
    )
    assert lines[1] == (
        "2023-11-14T22:30:00Z,2023-11-14T22:30:00,0,900,not_released,EXPIRED" + "," * 9
    )
    read = list(csv.DictReader(io.StringIO(text)))
    for row, wanted in zip(read, to_arrow(outcomes).to_pylist(), strict=True):
        assert [row[n] for n in ("import_wh", "count", "coverage", "signature")] == [
            "" if wanted[n] is None else str(wanted[n])
            for n in ("import_wh", "count", "coverage", "signature")
        ]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([("import_wh", "Wh")], ["import_wh", "import_wh_deviation"]),
        ([("gas", "l")], ["gas_l", "gas_l_deviation"]),
        ([("peak_w", "kW")], ["peak_w_kw", "peak_w_kw_deviation"]),
        # No register takes the place of another column.
        ([("signed", "Total")], ["register_signed_total", "register_signed_total_deviation"]),
        (
            [("a_x", "x"), ("a", "x")],
            ["a_x", "a_x_deviation", "register_a_x", "register_a_x_deviation"],
        ),
    ],
)
def test_a_registers_column_ends_with_its_unit(
    given: list[tuple[str, str]], names: list[str]
) -> None:
    found = [column.name for column in columns(Layout(tuple(given), 900))]
    assert found[6:-5] == names
    assert len(set(found)) == len(found)


def test_a_table_ends_where_it_was_asked_to() -> None:
    settled = [total(FIRST + 900 * at) for at in range(5)]
    some = rows(settled, LAYOUT, first=FIRST + 900, end=FIRST + 2700)
    assert [row.window_start for row in some] == [FIRST + 900, FIRST + 1800]
    more = rows(settled[:1], LAYOUT, end=FIRST + 1800)
    assert [row.status for row in more] == [Status.RELEASED, Status.NOT_SETTLED]


def test_without_any_total_only_what_is_known_is_said() -> None:
    (row,) = to_arrow([gap(FIRST)]).to_pylist()
    assert (row["status"], row["window_length"]) == ("not_released", None)
    assert to_arrow([]).num_rows == 0


def test_rows_come_as_outcomes_do() -> None:
    """A year is not collected before its first row is there."""

    def endless() -> Iterable[Outcome]:
        window = FIRST
        while True:
            yield gap(window) if window == FIRST else total(window)
            window += 900

    layout, outcomes = survey(endless())
    found = rows(outcomes, layout)
    assert [next(found).status for _ in range(2)] == [Status.NOT_RELEASED, Status.RELEASED]
    lines = csv_lines(found, layout)
    assert next(lines).startswith("window_start,")
    assert next(lines).startswith("2023-11-14T22:45:00Z,")


OTHER_REGISTERS = registers(("import_wh", "kWh", 1), ("export_wh", "Wh", 1))


@pytest.mark.parametrize(
    ("outcomes", "limits", "reason"),
    [
        ([total(FIRST + 900), total(FIRST)], {}, Reason.RANGE_INVALID),
        ([total(FIRST), total(FIRST)], {}, Reason.RANGE_INVALID),
        ([total(FIRST), total(FIRST + 1)], {}, Reason.WINDOW_MISALIGNED),
        ([total(FIRST), gap(FIRST + 901)], {}, Reason.WINDOW_MISALIGNED),
        ([total(FIRST), total(FIRST + 900, window_length=1800)], {}, Reason.RANGE_INVALID),
        ([total(FIRST), total(FIRST + 900, registers=OTHER_REGISTERS)], {}, Reason.RANGE_INVALID),
        ([total(FIRST)], {"first": FIRST - 1}, Reason.WINDOW_MISALIGNED),
        ([], {"first": FIRST, "end": FIRST - 900}, Reason.RANGE_INVALID),
        ([], {"first": FIRST, "end": FIRST + 900 * MOST_ROWS}, Reason.RANGE_INVALID),
        ([total(FIRST), total(FIRST + 900 * MOST_ROWS)], {}, Reason.RANGE_INVALID),
        ([gap(2**52 // 900 * 900)], {}, Reason.RANGE_INVALID),
    ],
)
def test_what_makes_no_table_is_refused(
    outcomes: list[Outcome], limits: dict[str, int], reason: Reason
) -> None:
    first, end = limits.get("first"), limits.get("end")
    assert refusal(lambda: list(rows(outcomes, LAYOUT, first=first, end=end))) is reason


def test_a_zone_that_is_none_is_refused() -> None:
    for name in ("Europe/Springfield", "../etc/passwd", "Europe", "", "\0"):
        assert refusal(lambda name=name: time_zone(name)) is Reason.CONFIG_INVALID


HIDE = """
import sys
sys.modules[sys.argv[1]] = None
from gridveil import tables
from gridveil.protocol.errors import GridveilError
try:
    getattr(tables, sys.argv[2])([])
except GridveilError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "function", "extra"),
    [
        ("pyarrow", "to_arrow", "tables"),
        ("pandas", "to_pandas", "pandas"),
        ("polars", "to_polars", "polars"),
    ],
)
def test_a_library_that_is_missing_is_named(library: str, function: str, extra: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HIDE, library, function],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = f"CONFIG_INVALID: this needs {library}; install it with: pip install 'gridveil["
    assert ended.stdout == f"{wanted}{extra}]'\n"


def test_rows_are_what_services_may_build_on() -> None:
    """The pure part is typed, and loads no library of tables."""
    program = "import sys, gridveil.tables; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"pyarrow", "pandas", "polars", "tenseal", "numpy"} & set(loaded)
    found: list[Row] = list(rows([total(FIRST), gap(FIRST + 900)], LAYOUT))
    assert all(b.window_start - a.window_start == 900 for a, b in pairwise(found))
