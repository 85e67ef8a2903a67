"""A table of totals in Arrow, Parquet, pandas or polars; each library is loaded when it is used.

Times are milliseconds: ``window_start`` with the zone UTC, ``local_start`` without one. Sums are
64-bit integers, also beside nulls. A field's metadata has its ``unit``, the schema's the ``zone``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, tzinfo
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.settlements import Outcome
from gridveil.tables.rows import Column, Deviations, Kind, Layout, Row, columns, survey
from gridveil.tables.rows import rows as rows_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

ROWS_A_GROUP = 8_192
"""About three months of quarter-hours are in memory at a time."""


def to_arrow(
    outcomes: Iterable[Outcome],
    *,
    zone: tzinfo = UTC,
    first: int | None = None,
    end: int | None = None,
    deviations: Deviations | None = None,
) -> pyarrow.Table:
    """A pyarrow Table of outcomes; arguments and errors as of :func:`gridveil.tables.rows.rows`.

    Raises:
        MalformedInput: also CONFIG_INVALID if pyarrow is not installed.
    """
    layout, again = survey(outcomes, zone)
    found = rows_of(again, layout, first=first, end=end, deviations=deviations)
    schema = _schema(layout)
    return _library("pyarrow", "tables").Table.from_batches(_batches(found, layout, schema), schema)


def to_pandas(
    outcomes: Iterable[Outcome],
    *,
    zone: tzinfo = UTC,
    first: int | None = None,
    end: int | None = None,
    deviations: Deviations | None = None,
) -> pandas.DataFrame:
    """A pandas DataFrame, as :func:`to_arrow`; null is ``<NA>`` in nullable types, never NaN."""
    pandas = _library("pandas", "pandas")
    table = to_arrow(outcomes, zone=zone, first=first, end=end, deviations=deviations)
    pyarrow = _library("pyarrow", "tables")
    nullable = {
        pyarrow.int64(): pandas.Int64Dtype(),
        pyarrow.float64(): pandas.Float64Dtype(),
        pyarrow.string(): pandas.StringDtype(),
    }
    return table.to_pandas(types_mapper=nullable.get)


def to_polars(
    outcomes: Iterable[Outcome],
    *,
    zone: tzinfo = UTC,
    first: int | None = None,
    end: int | None = None,
    deviations: Deviations | None = None,
) -> polars.DataFrame:
    """A polars DataFrame, as :func:`to_arrow`."""
    library = _library("polars", "polars")
    table = to_arrow(outcomes, zone=zone, first=first, end=end, deviations=deviations)
    frame: polars.DataFrame = library.from_arrow(table)
    return frame


def write_parquet(rows: Iterable[Row], layout: Layout, file: BinaryIO) -> None:
    """Write rows as a Parquet file, a group of them at a time; CONFIG_INVALID without pyarrow."""
    parquet, schema = _library("pyarrow.parquet", "tables"), _schema(layout)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in _batches(rows, layout, schema):
            writer.write_batch(batch)


def _batches(rows: Iterable[Row], layout: Layout, schema: pyarrow.Schema) -> Iterator[Any]:
    pyarrow, found = _library("pyarrow", "tables"), columns(layout)
    source = iter(rows)
    while batch := list(islice(source, ROWS_A_GROUP)):
        values = [
            pyarrow.array([_stored(column, row) for row in batch], type=field.type)
            for column, field in zip(found, schema, strict=True)
        ]
        yield pyarrow.RecordBatch.from_arrays(values, schema=schema)


def _stored(column: Column, row: Row) -> Any:
    value = column.value(row)
    if column.kind in {Kind.INSTANT, Kind.WALL_CLOCK} and isinstance(value, int):
        return value * 1000
    return value


def _schema(layout: Layout) -> pyarrow.Schema:
    pyarrow = _library("pyarrow", "tables")
    types = {
        Kind.INSTANT: pyarrow.timestamp("ms", tz="UTC"),
        Kind.WALL_CLOCK: pyarrow.timestamp("ms"),
        Kind.INTEGER: pyarrow.int64(),
        Kind.NUMBER: pyarrow.float64(),
        Kind.TEXT: pyarrow.string(),
    }
    fields = [
        pyarrow.field(
            column.name,
            types[column.kind],
            metadata={"unit": column.unit} if column.unit else None,
        )
        for column in columns(layout)
    ]
    return pyarrow.schema(fields, metadata={"zone": str(layout.zone)})


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"this needs {package}; install it with: pip install 'gridveil[{extra}]'",
        ) from None
