"""Whether an aggregator's SQLite file is whole.

Sums and the journal of an open or sealed window have checksums, and everything about it is compared
with everything else. Not noticed, as nothing else tells of it, is a change of:

    receipts of a window that is settled; of one that was poisoned or refused, also a missing one
    a window's roster version, its number of enrolled meters while that asks for as many lanes,
    and its phase where another would have left the same
    when a member entered or left, and the keys of one that left
    why a window was poisoned, and what another aggregator on the same Redis is called

and, unless a profile says whose store it should be, signatures, the roster's head beyond its
members, and facts of windows that their parameters tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gridveil.fsck import Checker, Trust, damaged, demand
from gridveil.protocol.ciphertext import stored_sum
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, KEY_BYTES, SIGNATURE_BYTES
from gridveil.protocol.parameter_sets import PARAMETER_SETS, parameter_set
from gridveil.protocol.release import ENTRY_BYTES, Entry
from gridveil.protocol.roster import Member, RosterVersion, open_roster_version, roster_digest
from gridveil.protocol.signing import is_signed_by
from gridveil.protocol.windows import lane_count
from gridveil.sqlite_file import SqliteFile, application_id, opened
from gridveil_services.aggregator.store.database import APPLICATION_ID, SCHEMA_VERSION
from gridveil_services.aggregator.store.interface import Phase, StoredReceipt, Window
from gridveil_services.aggregator.store.records import (
    RECORD_BYTES,
    acknowledged_checksum,
    journal_checksum,
    sum_checksum,
    unpack,
)
from gridveil_services.aggregator.store.schema import SCHEMA

_WINDOWS = (
    'SELECT start, "end", closes, parameters_digest, roster_version, enrolled, lanes,'
    " lane_capacity, parameter_set, slots, phase FROM windows ORDER BY start"
)
_OF_WINDOWS = ("lanes", "journal", "receipts", "equivocations")
_ACKNOWLEDGED_BYTES = ID_BYTES + DIGEST_BYTES
_NAME_LETTERS = 16
_HAS_SUMS = (Phase.OPEN, Phase.SEALED, Phase.RELEASED)


@dataclass
class _Journalled:
    """What the journal tells of a window."""

    counts: Counter[int] = field(default_factory=Counter)
    receipts: dict[bytes, StoredReceipt] = field(default_factory=dict)
    entries: dict[bytes, bytes] = field(default_factory=dict)


def check(path: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a whole store; see :class:`gridveil.fsck.Checker`."""
    with opened(path, SCHEMA_VERSION, SCHEMA) as database:
        windows = list(_windows(database))
        counted: Counter[str] = Counter(windows=len(windows), lanes=0, reports=0, receipts=0)
        for window in windows:
            counted.update(_check_window(database, window))
        _check_horizon(database, windows)
        counted["acknowledgements"] = _check_acknowledgements(database)
        _check_sharing(database)
        documents = _documents(database, trust)
        if trust is not None:
            for window in windows:
                _check_facts(window, documents)
        counted.update(parameters=len(documents), members=_check_roster(database, trust))
    return counted


def _windows(database: SqliteFile) -> Iterator[Window]:
    free_from = 0
    for row in database.rows(_WINDOWS):
        at = f"window {row[0]}"
        demand(row[-1] in set(Phase), f"{at} is in no known phase")
        window = replace(Window(*row), phase=Phase(row[-1]))
        demand(free_from <= window.start < window.end <= window.closes, f"{at} has other times")
        facts = (
            window.start > 0
            and len(window.parameters_digest) == DIGEST_BYTES
            and window.roster_version >= 0
            and window.enrolled >= 0
            and window.lanes > 0
            and window.lane_capacity > 0
            and window.parameter_set in PARAMETER_SETS
            and window.slots > 0
            and window.slots & (window.slots - 1) == 0
        )
        demand(facts, f"{at} is not described as a window can be")
        free_from = window.end
        yield window


def _check_window(database: SqliteFile, window: Window) -> dict[str, int]:
    at, phase = f"window {window.start}", window.phase
    journal = _check_journal(database, window)
    lanes = _check_lanes(database, window)
    receipts = _receipts(database, window)
    demand(not (phase.settled and journal.receipts), f"{at} is settled and has a journal")
    demand(phase in _HAS_SUMS or not lanes, f"{at} has sums that should be deleted")
    demand(phase is not Phase.OPEN or not receipts, f"{at} is open and has stored receipts")
    demand(phase is not Phase.EMPTY or not receipts, f"{at} is empty and has receipts")
    if not phase.settled:
        demand(lanes == journal.counts, f"{at} counts other reports than its journal has")
    if phase is Phase.SEALED:
        demand(receipts == journal.receipts, f"{at} has other receipts than its journal")
    if phase is Phase.RELEASED:
        demand(sum(lanes.values()) == len(receipts), f"{at} counts other reports than receipts")
    _check_equivocations(database, window, journal, receipts)
    return {"lanes": len(lanes), "reports": len(journal.receipts), "receipts": len(receipts)}


def _check_lanes(database: SqliteFile, window: Window) -> dict[int, int]:
    counts = {}
    for lane, count, data, checksum in database.rows(
        "SELECT lane, count, sum, checksum FROM lanes WHERE window = ? ORDER BY lane",
        (window.start,),
    ):
        at = f"lane {lane} of window {window.start}"
        fits = 0 <= lane < window.lanes and 0 < count <= window.lane_capacity
        demand(fits, f"{at} is not one that the window can have")
        whole = sum_checksum(window.start, lane, count, data) == checksum
        demand(whole, f"the sum of {at} does not have its checksum")
        try:
            stored_sum(data, parameter_set(window.parameter_set), window.slots)
        except GridveilError:
            raise damaged(f"the sum of {at} is no ciphertext of the window") from None
        counts[lane] = count
    return counts


def _check_journal(database: SqliteFile, window: Window) -> _Journalled:
    found = _Journalled()
    for number, lane, at_ms, packed, checksum in database.rows(
        "SELECT number, lane, accepted_at_ms, reports, checksum FROM journal WHERE window = ?"
        " ORDER BY number",
        (window.start,),
    ):
        at = f"row {number} of the journal"
        demand(number > 0 and lane >= 0 and at_ms >= 0, f"{at} is not one that there can be")
        whole = journal_checksum(window.start, lane, at_ms, packed) == checksum
        demand(whole, f"{at} does not have its checksum")
        demand(bool(packed) and len(packed) % RECORD_BYTES == 0, f"{at} holds a part of a report")
        for report in unpack(packed):
            demand(report.meter_id not in found.receipts, f"{at} holds a second report of a meter")
            found.receipts[report.meter_id] = StoredReceipt(report.digest, at_ms)
            found.entries[report.meter_id] = report.entry
            found.counts[lane] += 1
    return found


def _receipts(database: SqliteFile, window: Window) -> dict[bytes, StoredReceipt]:
    found = {}
    for meter, digest, at_ms in database.rows(
        "SELECT meter_id, digest, accepted_at_ms FROM receipts WHERE window = ?", (window.start,)
    ):
        formed = len(meter) == ID_BYTES and len(digest) == DIGEST_BYTES and at_ms >= 0
        demand(formed, f"a receipt of window {window.start} is malformed")
        found[meter] = StoredReceipt(digest, at_ms)
    return found


def _check_equivocations(
    database: SqliteFile,
    window: Window,
    journal: _Journalled,
    receipts: Mapping[bytes, StoredReceipt],
) -> None:
    at = f"an equivocation in window {window.start}"
    for meter, first, digest, second in database.rows(
        "SELECT meter_id, first, second_parameters_digest, second FROM equivocations"
        " WHERE window = ?",
        (window.start,),
    ):
        formed = (
            len(first) == len(second) == ENTRY_BYTES
            and first[:ID_BYTES] == second[:ID_BYTES] == meter
            and len(digest) == DIGEST_BYTES
        )
        demand(formed, f"{at} is malformed")
        if window.phase.settled:
            demand(meter in receipts or window.phase is Phase.POISONED, f"{at} has no first report")
        else:
            demand(journal.entries.get(meter) == first, f"{at} has another first report")
        keys = database.rows("SELECT signing_key FROM members WHERE meter_id = ?", (meter,))
        for (key,) in keys:
            signed = _is_signed(first, window.parameters_digest, window.start, key)
            demand(signed and _is_signed(second, digest, window.start, key), f"{at} is not signed")


def _is_signed(entry: bytes, parameters_digest: bytes, window_start: int, key: bytes) -> bool:
    try:
        decoded = Entry.decode(entry, parameters_digest, window_start)
    except GridveilError:
        return False
    return is_signed_by(key, decoded.claim.transcript(), decoded.signature)


def _check_horizon(database: SqliteFile, windows: list[Window]) -> None:
    rows = list(database.rows("SELECT id, start FROM forgotten"))
    demand(all(row[1] > 0 for row in rows), "the horizon of forgotten windows is malformed")
    horizon = max((start for _, start in rows), default=0)
    held = [window.start for window in windows]
    demand(horizon not in held, f"window {horizon} was forgotten and is there")
    for table in _OF_WINDOWS:
        stray = list(
            database.rows(
                f"SELECT window FROM {table} WHERE window NOT IN (SELECT start FROM windows)"  # noqa: S608 - our own names
                " LIMIT 1"
            )
        )
        demand(not stray, f"table {table} has rows of a window that is not there")


def _check_acknowledgements(database: SqliteFile) -> int:
    seen: set[tuple[int, bytes]] = set()
    for number, window, lane, packed, checksum in database.rows(
        "SELECT number, window, lane, reports, checksum FROM acknowledgements ORDER BY number"
    ):
        at = f"row {number} of the acknowledgements"
        demand(number > 0 and window > 0 and lane >= 0, f"{at} is not one that there can be")
        whole = acknowledged_checksum(window, lane, packed) == checksum
        demand(whole, f"{at} does not have its checksum")
        demand(bool(packed) and len(packed) % _ACKNOWLEDGED_BYTES == 0, f"{at} ends in the midst")
        for start in range(0, len(packed), _ACKNOWLEDGED_BYTES):
            meter = (window, packed[start : start + ID_BYTES])
            demand(meter not in seen, f"{at} acknowledges a meter again")
            seen.add(meter)
    return len(seen)


def _check_sharing(database: SqliteFile) -> None:
    """What an aggregator that shares a Redis keeps of the others, and of itself."""
    names = list(database.rows("SELECT name FROM replica UNION SELECT name FROM participants"))
    demand(all(_is_name(name) for (name,) in names), "an aggregator's name is malformed")
    reasons = list(database.rows("SELECT window, why FROM poisoned"))
    demand(all(start > 0 and why for start, why in reasons), "a poisoned window has no reason")


def _is_name(name: str) -> bool:
    return len(name) == _NAME_LETTERS and set(name) <= set("0123456789abcdef")


def _documents(database: SqliteFile, trust: Trust | None) -> dict[bytes, CityParameters]:
    documents = {}
    for digest, end_window, document, signature in database.rows(
        "SELECT digest, end_window, document, signature FROM parameters"
    ):
        try:
            found = (
                open_city_parameters(document, signature, trust.identity_key, trust.city_id)
                if trust
                else CityParameters.decode(document)
            )
        except GridveilError:
            raise damaged("city parameters are not what was signed") from None
        fits = found.digest == digest and found.epoch.end_window == end_window
        demand(fits, "city parameters are not listed as what they are")
        demand(len(signature) == SIGNATURE_BYTES, "city parameters have no signature")
        documents[digest] = found
    return documents


def _check_facts(window: Window, documents: Mapping[bytes, CityParameters]) -> None:
    at = f"window {window.start}"
    demand(window.parameters_digest in documents, f"{at} is under parameters that are not there")
    policy = documents[window.parameters_digest].policy
    slots = policy.layout.slots
    planned = replace(
        window,
        end=policy.rules.end(window.start),
        closes=policy.rules.closes(window.start),
        lanes=lane_count(window.enrolled, policy.crypto, slots),
        lane_capacity=policy.crypto.meters_per_lane(slots),
        parameter_set=policy.crypto.name,
        slots=slots,
    )
    demand(window == planned, f"{at} is not what its parameters make of it")


def _check_roster(database: SqliteFile, trust: Trust | None) -> int:
    rows = list(
        database.rows(
            "SELECT city_id, version, effective_window, count, digest, signature FROM roster"
        )
    )
    newest = max((row[1] for row in rows), default=0)
    members = []
    for meter, since, until, signing, sealing in database.rows(
        "SELECT meter_id, since, until, signing_key, sealing_key FROM members"
        " ORDER BY meter_id, since"
    ):
        keys = len(meter) == ID_BYTES and len(signing) == len(sealing) == KEY_BYTES
        times = 0 < since <= newest and (until is None or since < until <= newest)
        demand(keys and times, "an enrolment is not one that the roster can have")
        if until is None:
            members.append(Member(meter, signing, sealing))
    for *head, signature in rows:
        version = RosterVersion(*head)
        demand(version.count == len(members), "the roster has another number of members")
        demand(version.digest == roster_digest(members), "the roster has other members")
        demand(len(signature) == SIGNATURE_BYTES, "the roster has no signature")
        if trust is not None:
            _open_version(version, signature, trust)
    return len(members)


def _open_version(version: RosterVersion, signature: bytes, trust: Trust) -> None:
    try:
        open_roster_version(version.encode(), signature, trust.identity_key, trust.city_id)
    except GridveilError:
        raise damaged("the roster is not what was signed") from None


CHECKER = Checker(
    "an aggregator's store", lambda path: application_id(path) == APPLICATION_ID, check
)
