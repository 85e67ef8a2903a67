"""Whether an outbox is whole.

SQLite has no checksums, and an outbox keeps none: readings, the ciphertexts of reports, times and
counts can be changed unnoticed. What must hold between them is checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from gridveil.fsck import Checker, Trust, damaged, demand
from gridveil.outbox import APPLICATION_ID, SCHEMA, VERSION, State
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1.report_pb2 import Report
from gridveil.sqlite_file import SqliteFile, application_id, opened

_ENTRIES = (
    "SELECT window, meter, reading, state, epoch, attempts, due, reason, answered, report"
    " FROM entries LEFT JOIN reports USING (window, meter) ORDER BY window, meter"
)


def check(path: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a whole outbox; see :class:`gridveil.fsck.Checker`."""
    with opened(path, VERSION, SCHEMA) as database:
        cities = list(database.rows("SELECT city_id FROM city"))
        demand(len(cities) == 1 and len(cities[0][0]) == ID_BYTES, "it does not name one city")
        if trust is not None:
            demand(cities[0][0] == trust.city_id, "it is of another city")
        parameters = _check_parameters(database, cities[0][0], trust)
        entries = reports = 0
        for row in database.rows(_ENTRIES):
            _check_entry(row)
            entries += 1
            reports += row[-1] is not None
        stored = database.only("SELECT count(*) FROM reports")
        demand(stored == reports, "a report has no entry")
    return {"entries": entries, "reports": reports, "parameters": parameters}


def _check_parameters(database: SqliteFile, city_id: bytes, trust: Trust | None) -> int:
    rows = list(database.rows("SELECT encoded, signature, end_window FROM parameters"))
    for encoded, signature, end_window in rows:
        try:
            parameters = (
                open_city_parameters(encoded, signature, trust.identity_key, city_id)
                if trust
                else CityParameters.decode(encoded)
            )
        except GridveilError:
            raise damaged("city parameters are not what was signed") from None
        fits = parameters.policy.city_id == city_id and parameters.epoch.end_window == end_window
        demand(fits, "city parameters are not listed as what they are")
    return len(rows)


def _check_entry(row: tuple[Any, ...]) -> None:
    window, meter, reading, state, epoch, attempts, due, reason, answered, report = row
    at = f"the entry of window {window}"
    plain = window > 0 and len(meter) == ID_BYTES and attempts >= 0 and math.isfinite(due)
    demand(plain and (epoch is None or len(epoch) == DIGEST_BYTES), f"{at} is malformed")
    demand(state in set(State), f"{at} has no known state")
    demand(reason is None or reason in set(Reason), f"{at} has no known reason")
    waiting = state == State.WAITING
    demand(
        answered in (0, 1) and not (waiting and answered), f"{at} has another end than its state"
    )
    demand(_is_reading(reading), f"{at} holds no reading")
    if report is None:
        demand(not waiting or epoch is None, f"{at} waits without its report")
        return
    demand(waiting and epoch is not None, f"{at} has ended and still holds a report")
    try:
        claim = parse_report(Report.FromString(report)).claim
    except (DecodeError, GridveilError):
        raise damaged(f"the report of window {window} is malformed") from None
    named = (claim.window_start, claim.meter_id, claim.parameters_digest)
    demand(named == (window, meter, epoch), f"the report of window {window} is another entry's")


def _is_reading(text: str) -> bool:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and all(type(value) is int for value in values.values())


CHECKER = Checker("a meter's outbox", lambda path: application_id(path) == APPLICATION_ID, check)
