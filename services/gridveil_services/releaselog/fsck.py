"""Whether a release log, and what is published beside it, is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from gridveil.fsck import Checker, Trust, damaged, demand, unused
from gridveil.log_audit import LogAudit
from gridveil.protocol.checkpoint import TreeHead, log_key, open_checkpoint
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.merkle import Tree, TreeHasher, leaf_hash
from gridveil.protocol.own_entry import SEALED_ENTRY_BYTES, TAG_BYTES
from gridveil.protocol.release import OPENED_ENTRY_BYTES, Total
from gridveil.protocol.v1.aggregator_pb2 import SignedCityParameters
from gridveil_services.releaselog.framing import (
    CHECKPOINT,
    EMPTY,
    HEAD,
    RECORDS,
    BrokenFrame,
    Head,
    corrupt,
    parse_record,
    read_frames,
    read_records,
)

_LOG = "log"
_PARAMETERS = "parameters"
_OPENED = ("entries", "public")
_OWN = "own"
_ROW_BYTES = TAG_BYTES + 4 + SEALED_ENTRY_BYTES


def check_log(folder: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a whole log; see :class:`gridveil.fsck.Checker`."""
    with unused(folder / RECORDS):
        kinds, _ = _read_log(folder, _needed(trust))
    return dict(sorted(kinds.items()))


def check_published(folder: Path, trust: Trust | None) -> Mapping[str, int]:
    """Read a log and all that is published beside it."""
    trust = _needed(trust)
    with unused(folder / _LOG / RECORDS):
        kinds, totals = _read_log(folder / _LOG, trust)
        parameters = _check_parameters(folder / _PARAMETERS, trust)
        for total in totals.values():
            named = total.parameters_digest.hex() in parameters
            demand(named, f"the parameters of window {total.window_start} are not there")
        files = Counter(dict.fromkeys((*_OPENED, _OWN), 0))
        for name in _OPENED:
            for path, total in _of_totals(folder / name, totals):
                _check_opened(path, total)
                files[name] += 1
        for path, total in _of_totals(folder / _OWN, totals):
            _check_own(path, total)
            files[_OWN] += 1
    return {**dict(sorted(kinds.items())), "parameters": len(parameters), **files}


def _needed(trust: Trust | None) -> Trust:
    if trust is None:
        raise MalformedInput(Reason.CONFIG_INVALID, "to check what was signed takes --profile")
    return trust


def _read_log(folder: Path, trust: Trust) -> tuple[Counter[str], dict[int, Total]]:
    """Audit every record; how many of each kind, and the totals by window."""
    checkpoint = _checkpoint(folder, trust)
    audit, totals = LogAudit(*trust), {}
    try:
        head = Head.load(folder / HEAD)
    except FileNotFoundError:
        raise corrupt("its head is gone") from None
    with (folder / RECORDS).open("rb") as file:
        for logged in read_records(file, EMPTY, head):
            if audit.size == checkpoint.size:
                audit.check(checkpoint)
            record = audit.add(logged.payload)
            if record.HasField("released"):
                total = Total.decode(record.released.total.total)
                totals[total.window_start] = total
        acknowledged = audit.size
        # What a crash left after the head: the next start takes it in.
        with suppress(BrokenFrame):
            for _, payload in read_frames(file, head):
                parse_record(payload)
    demand(checkpoint.size <= acknowledged, "the release log has fewer records than were signed")
    if checkpoint.size == acknowledged:
        audit.check(checkpoint)
    return audit.kinds, totals


def _checkpoint(folder: Path, trust: Trust) -> TreeHead:
    try:
        data = (folder / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        raise corrupt("its checkpoint is gone") from None
    try:
        return open_checkpoint(data, log_key(*trust)).head
    except GridveilError:
        raise corrupt("its checkpoint is not signed by the city's key-holder") from None


def _check_parameters(folder: Path, trust: Trust) -> set[str]:
    found = set()
    for path in _files(folder):
        try:
            signed = SignedCityParameters.FromString(path.read_bytes())
            opened = open_city_parameters(
                signed.parameters, signed.signature, trust.identity_key, trust.city_id
            )
        except (DecodeError, GridveilError):
            raise damaged("published parameters are not what was signed") from None
        demand(path.name == opened.digest.hex(), "published parameters are not those of their name")
        found.add(path.name)
    return found


def _of_totals(folder: Path, totals: Mapping[int, Total]) -> Iterator[tuple[Path, Total]]:
    """The files of windows that were released; one that a crash left without a total is none."""
    for path in _files(folder):
        demand(path.name.isascii() and path.name.isdigit(), "a published file is of no window")
        if (total := totals.get(int(path.name))) is not None:
            yield path, total


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix != ".new")


def _check_opened(path: Path, total: Total) -> None:
    at = f"the published entries of window {total.window_start}"
    demand(path.stat().st_size == total.count * OPENED_ENTRY_BYTES, f"{at} are not as many")
    tree = TreeHasher()
    with path.open("rb") as file:
        while entry := file.read(OPENED_ENTRY_BYTES):
            tree.append(leaf_hash(entry))
    demand(tree.root() == total.entries_root, f"{at} are not those of the total")


def _check_own(path: Path, total: Total) -> None:
    """The leaves against the total; the rows are sealed, of them only order and numbers."""
    at = f"the meters' own entries of window {total.window_start}"
    size = total.count * (DIGEST_BYTES + _ROW_BYTES)
    demand(path.stat().st_size == size, f"{at} are not as many")
    with path.open("rb") as file:
        leaves = file.read(total.count * DIGEST_BYTES)
        rows = [file.read(_ROW_BYTES) for _ in range(total.count)]
    tree = Tree(leaves[at : at + DIGEST_BYTES] for at in range(0, len(leaves), DIGEST_BYTES))
    demand(tree.root(tree.size) == total.entries_root, f"{at} are not those of the total")
    indices = sorted(int.from_bytes(row[TAG_BYTES : TAG_BYTES + 4], "little") for row in rows)
    demand(rows == sorted(rows) and indices == list(range(total.count)), f"{at} are out of order")


LOG = Checker(
    "a release log",
    lambda path: (path / RECORDS).is_file() or (path / CHECKPOINT).is_file(),
    check_log,
)
PUBLISHED = Checker(
    "what a key-holder publishes", lambda path: (path / _LOG).is_dir(), check_published
)
