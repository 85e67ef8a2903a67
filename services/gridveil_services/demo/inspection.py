"""What each role has on disk after a demonstration, counted there and not asserted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import apsw

from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.releaselog.reader import LogReader


@dataclass(frozen=True)
class Stored:
    """What lies in one role's folder."""

    bytes: int
    rows: dict[str, int]
    """Rows by table of its databases, and records by kind of the release log."""
    secrets: tuple[str, ...]
    """Files of secret keys, by what they are of."""


Findings = dict[str, Stored]
"""By role."""

_TLS_KEY = "key.pem"


def inspect(paths: CityPaths) -> Findings:
    """Look into the folders of the services, which must be stopped."""
    return {
        "aggregator": _look(paths.role("aggregator"), ()),
        "keyholder": _look(
            paths.role("keyholder"), ("identity.key", "kek", "secrets"), log=paths.published / "log"
        ),
        "totals": _look(paths.role("totals"), ()),
    }


def _look(folder: Path, key_files: tuple[str, ...], log: Path | None = None) -> Stored:
    files = [path for path in folder.rglob("*") if path.is_file()]
    rows = {name: count for file in files if file.suffix == ".db" for name, count in _rows(file)}
    if log is not None:
        rows |= _records(log)
    secrets = tuple(sorted(f.name for f in files if f.name in (_TLS_KEY, *key_files)))
    return Stored(sum(file.stat().st_size for file in files), rows, secrets)


def _rows(file: Path) -> list[tuple[str, int]]:
    database = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        names = database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        return [
            # The names are those of the schema.
            (str(name), int(str(database.execute(f'SELECT count(*) FROM "{name}"').get)))  # noqa: S608
            for (name,) in names
        ]
    finally:
        database.close()


def _records(log: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in LogReader(log).poll():
        kind = f"log: {record.WhichOneof('event')}"
        counts[kind] = counts.get(kind, 0) + 1
    return counts
