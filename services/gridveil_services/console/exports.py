"""Totals as files: CSV and Parquet, a row a window, as ``gridveil totals export`` writes them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import BinaryIO, cast

from starlette.concurrency import run_in_threadpool

from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.errors import GridveilError
from gridveil.tables import Layout, rows, survey, write_csv, write_parquet
from gridveil_services.console.config import ConsoleConfig

CHUNK_BYTES = 65_536
AT_A_TIME = 2
"""Others wait: each verifies every total again."""


class Format(StrEnum):
    """Of a file."""

    CSV = "csv"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        """As registered with IANA."""
        return "text/csv" if self is Format.CSV else "application/vnd.apache.parquet"


class Exports:
    """Writes files for who asks for them."""

    def __init__(self, config: ConsoleConfig) -> None:
        self._config = config
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def write(self, windows: range, format: Format) -> BinaryIO:
        """A file of some windows, without a name: gone once who asked has closed it.

        Every total is verified first. A window without one has its row too, with empty figures.

        Raises:
            GridveilError: as the operator's client.
        """
        async with self._turns:
            return await run_in_threadpool(self._write, windows, format)

    def _write(self, windows: range, format: Format) -> BinaryIO:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - handed on
        try:
            with Operator.open(self._config.profile) as operator:
                self._fill(operator, windows, format, file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def _fill(self, operator: Operator, windows: range, format: Format, file: BinaryIO) -> None:
        write = write_csv if format is Format.CSV else write_parquet
        zone = self._config.zone
        layout, outcomes = survey(operator.list(windows.start, windows.stop), zone)
        if layout.window_length is None:
            layout = Layout(((self._config.register, "Wh"),), windows.step, zone)
        found = rows(
            outcomes,
            layout,
            first=windows.start,
            end=windows.stop,
            deviations=lambda released: _deviations(operator, released),
        )
        write(found, layout, file)


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """All of a file, which is closed then."""
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _deviations(operator: Operator, released: ReleasedTotal) -> Mapping[str, float]:
    """Of the noise; none where the parameters are not to be had."""
    try:
        return operator.deviations(released)
    except GridveilError:
        return {}
