"""Reading a SQLite file and the log beside it without changing either.

SQLite itself takes a damaged write-ahead log for one that a crash cut short: it reads up to the
damage and forgets the commits behind it. So the log is read here first (format:
https://www.sqlite.org/fileformat2.html#walformat). The last commit in a log cannot be told from one
that was in progress when the power went: of that one damage is not noticed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from gridveil.fsck import damaged, demand, unused
from gridveil.protocol.errors import MalformedInput, Reason

_MAGIC = b"SQLite format 3\x00"
_APPLICATION_ID_AT = 68
_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_BIG_ENDIAN_SUMS = 1
_WAL_MAGIC = 0x377F0682


class SqliteFile:
    """A file that is only read."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The answers to a query, one after the other."""
        return self._connection.execute(query, values)

    def only(self, query: str) -> Any:
        """The one value that answers a query."""
        return self._connection.execute(query).get


def application_id(path: Path) -> int | None:
    """The id of a SQLite file, which may be in the log beside it yet; None for any other file."""
    try:
        with path.open("rb") as file:
            header = file.read(_APPLICATION_ID_AT + 4)
    except OSError:
        return None
    if not header.startswith(_MAGIC) or len(header) < _APPLICATION_ID_AT + 4:
        return None
    found = int.from_bytes(header[_APPLICATION_ID_AT:], "big")
    return found if found or not _has_log(path) else _logged_id(_log(path).read_bytes())


def _logged_id(data: bytes) -> int:
    """The id in any first page of a log, which may be broken."""
    if len(data) < _WAL_HEADER.size:
        return 0
    page = int.from_bytes(data[8:12], "big")
    for at in range(_WAL_HEADER.size, len(data) - page + 1, max(page, 512) + _FRAME_HEADER.size):
        number = int.from_bytes(data[at : at + 4], "big")
        content = at + _FRAME_HEADER.size + _APPLICATION_ID_AT
        if number == 1 and (found := int.from_bytes(data[content : content + 4], "big")):
            return found
    return 0


@contextmanager
def opened(path: Path, version: int, schema: str) -> Iterator[SqliteFile]:
    """A file whose pages, log and tables are as they should be.

    Args:
        path: the file; ``path`` + ``.lock`` is what its writer holds.
        version: its ``user_version``.
        schema: the statements that made it.

    Raises:
        IntegrityLost: PARTIAL_CORRUPT if they are not, or as soon as SQLite cannot read on.
        Unavailable: STORE_UNAVAILABLE if a process uses it.
        MalformedInput: CONFIG_INVALID for another version.
    """
    with unused(path.with_name(path.name + ".lock")):
        if _has_log(path):
            check_log(_log(path).read_bytes())
        try:
            with _connection(path) as connection:
                _check_whole(connection, version, schema)
                yield SqliteFile(connection)
        except (apsw.Error, UnicodeDecodeError):
            raise damaged("SQLite cannot read it") from None


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _has_log(path: Path) -> bool:
    log = _log(path)
    return log.exists() and log.stat().st_size > 0


@contextmanager
def _connection(path: Path) -> Iterator[apsw.Connection]:
    # Without locks and in memory of its own, so that no file is made or changed.
    how = "vfs=unix-none" if _has_log(path) else "immutable=1"
    connection = apsw.Connection(
        f"{path.absolute().as_uri()}?mode=ro&{how}",
        apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
    )
    try:
        connection.pragma("locking_mode", "EXCLUSIVE")
        connection.pragma("query_only", True)
        connection.pragma("trusted_schema", False)
        connection.pragma("cell_size_check", True)
        yield connection
    finally:
        connection.close()


def _check_whole(connection: apsw.Connection, version: int, schema: str) -> None:
    found = connection.pragma("user_version")
    if found != version:
        raise MalformedInput(
            Reason.CONFIG_INVALID, f"it is of version {found}; this program knows {version}"
        )
    demand(connection.pragma("integrity_check") == "ok", "its pages do not fit together")
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    with apsw.Connection(":memory:") as model:
        model.execute(schema)
        tables = model.execute(query).fetchall()
    demand(
        connection.execute(query).fetchall() == tables, "its tables are not those it should have"
    )


def check_log(data: bytes) -> None:
    """PARTIAL_CORRUPT if a write-ahead log lost a commit that was synced.

    A log may end in the midst of one transaction, the last. If later ones are there, what they
    follow was synced once.
    """
    if len(data) < _WAL_HEADER.size:
        return
    magic, _, page, _, salt1, salt2, sum1, sum2 = _WAL_HEADER.unpack_from(data)
    order = ">" if magic & _BIG_ENDIAN_SUMS else "<"
    whole = magic & ~_BIG_ENDIAN_SUMS == _WAL_MAGIC and (sum1, sum2) == _sums(order, data[:24])
    demand(whole, "the header of its write-ahead log is damaged")
    sums, broken, commits = (sum1, sum2), False, 0
    for at in range(
        _WAL_HEADER.size, len(data) - page - _FRAME_HEADER.size + 1, page + _FRAME_HEADER.size
    ):
        _, size, *salts, found1, found2 = _FRAME_HEADER.unpack_from(data, at)
        if not broken:
            payload = data[at : at + 8] + data[at + 24 : at + 24 + page]
            sums = _sums(order, payload, sums)
            broken = salts != [salt1, salt2] or sums != (found1, found2)
        if broken and salts == [salt1, salt2]:
            commits += size > 0
    demand(commits < 2, "its write-ahead log is damaged: commits follow a broken page")


def _sums(order: str, data: bytes, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    first, second = before
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second
