"""What each role has on disk after a demonstration, counted there and not asserted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import apsw

from gridveil.protocol.v1.log_pb2 import DestructionCause
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


@dataclass(frozen=True)
class LoggedEpoch:
    """What the release log says of an epoch."""

    epoch_id: bytes
    first_window: int
    end_window: int
    """First window that it does not serve."""
    destroyed: str | None
    """Why its keys were destroyed, if they were."""


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


def epochs(paths: CityPaths) -> list[LoggedEpoch]:
    """Every epoch in the release log, in the order of their windows."""
    found: dict[bytes, LoggedEpoch] = {}
    for record in LogReader(paths.published / "log").poll():
        made, gone = record.epoch_created, record.epoch_destroyed
        if record.HasField("epoch_created"):
            epoch = LoggedEpoch(made.epoch_id, made.first_window, made.end_window, None)
            found[epoch.epoch_id] = epoch
        elif record.HasField("epoch_destroyed"):
            cause = DestructionCause.Name(gone.cause).removeprefix("DESTRUCTION_CAUSE_").lower()
            found[gone.epoch_id] = replace(
                found[gone.epoch_id], end_window=gone.end_window, destroyed=cause
            )
    return sorted(found.values(), key=lambda epoch: (epoch.first_window, epoch.end_window))


def _look(folder: Path, key_files: tuple[str, ...], log: Path | None = None) -> Stored:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
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
