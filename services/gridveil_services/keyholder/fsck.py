"""Whether a key-holder's state folder is whole, without any of its keys.

What is sealed under the key-encrypting key is looked at by the key-holder alone, at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gridveil.fsck import Checker, Trust, damaged, demand
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, KEY_BYTES
from gridveil.protocol.roster import Member, roster_digest
from gridveil.sqlite_file import application_id, opened
from gridveil_services.keyholder.roster_store import APPLICATION_ID, SCHEMA, SCHEMA_VERSION
from gridveil_services.keyholder.spool import SpoolFolder, is_complete

_ROSTER = "roster.db"
_SPOOL = "spool"
_METERS = (
    "SELECT meter_id, signing_key, sealing_key, enrolled, withdrawn FROM meters ORDER BY meter_id"
)


def check_roster(path: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a whole roster; see :class:`gridveil.fsck.Checker`."""
    with opened(path, SCHEMA_VERSION, SCHEMA) as database:
        cities = list(database.rows("SELECT city_id FROM city"))
        demand(len(cities) == 1 and len(cities[0][0]) == ID_BYTES, "it does not name one city")
        if trust is not None:
            demand(cities[0][0] == trust.city_id, "it is of another city")
        versions = list(
            database.rows(
                "SELECT version, effective_window, count, digest FROM versions ORDER BY version"
            )
        )
        meters = list(database.rows(_METERS))
    numbers = [version for version, *_ in versions]
    demand(numbers == list(range(1, len(numbers) + 1)), "a version of the roster is missing")
    for meter, signing, sealing, enrolled, withdrawn in meters:
        keys = len(meter) == ID_BYTES and len(signing) == len(sealing) == KEY_BYTES
        demand(keys and 0 < enrolled < withdrawn, "an enrolment is malformed")
    effective = 0
    for version, effective_window, count, digest in versions:
        members = [Member(*row[:3]) for row in meters if row[3] <= version < row[4]]
        at = f"version {version} of the roster"
        demand(effective_window >= effective, f"{at} is in force before the one before it")
        demand((count, digest) == (len(members), roster_digest(members)), f"{at} has other members")
        effective = effective_window
    return {"versions": len(versions), "meters": len(meters)}


def check_state(folder: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read the roster and the releases on their way in of a key-holder's state folder."""
    found = check_roster(folder / _ROSTER, trust) if (folder / _ROSTER).exists() else {}
    whole = unfinished = 0
    for path in sorted((folder / _SPOOL).iterdir()) if (folder / _SPOOL).is_dir() else ():
        window, _, digest = path.name.partition("-")
        named = window.isascii() and window.isdigit() and len(digest) == 2 * DIGEST_BYTES
        demand(named, "a release on its way in has no name of one")
        if not is_complete(path):
            unfinished += 1
            continue
        whole += _is_whole(folder / _SPOOL, int(window), digest)
    return {**found, "releases": whole, "unfinished": unfinished}


def _is_whole(spool: Path, window: int, digest: str) -> bool:
    try:
        release = SpoolFolder(spool).find_whole(window, bytes.fromhex(digest))
    except (GridveilError, ValueError):
        release = None
    if release is None:
        raise damaged(
            f"the release of window {window} on its way in is not the one it is named for"
        )
    return True


ROSTER = Checker(
    "a key-holder's roster", lambda path: application_id(path) == APPLICATION_ID, check_roster
)
STATE = Checker(
    "a key-holder's state",
    lambda path: (path / _ROSTER).is_file() or (path / _SPOOL).is_dir(),
    check_state,
)
