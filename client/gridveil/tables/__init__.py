"""Totals as tables: a row a window, in CSV, Arrow, Parquet, pandas or polars.

A window without a total has its row too, with status and reason, and figures that are null::

    from gridveil import time_zone, windows_of
    from gridveil.tables import to_pandas

    zone = time_zone("Europe/Zurich")
    day = windows_of(date(2026, 10, 25), zone, 900)  # its 100 quarter-hours
    frame = to_pandas(operator.list(day.start, day.stop), zone=zone, first=day.start, end=day.stop)

:mod:`gridveil.tables.rows` is pure and has no dependencies; CSV needs none either. The others need
the extras ``gridveil[tables]`` (Arrow and Parquet), ``gridveil[pandas]``, ``gridveil[polars]``.
"""

from gridveil.tables.csv_text import csv_lines, write_csv
from gridveil.tables.frames import to_arrow, to_pandas, to_polars, write_parquet
from gridveil.tables.rows import Column, Kind, Layout, Row, Status, columns, rows, survey

__all__ = [
    "Column",
    "Kind",
    "Layout",
    "Row",
    "Status",
    "columns",
    "csv_lines",
    "rows",
    "survey",
    "to_arrow",
    "to_pandas",
    "to_polars",
    "write_csv",
    "write_parquet",
]
