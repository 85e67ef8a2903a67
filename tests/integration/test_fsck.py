"""gridveil fsck calls whole what is whole, and names what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import Template
from typing import Any

import apsw
import pytest

from gridveil.cli.fsck import Found, check_path
from gridveil.fsck import Trust, checkers
from gridveil.outbox import NewEntry, Outbox, State, Verdict
from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.aggregator.serve import STORE_FILE
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.aggregator.store.redis.journal import Journal
from gridveil_services.aggregator.store.redis.pins import Pins
from gridveil_services.aggregator.store.schema import SCHEMA
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.reports import WINDOW

METERS = 110
SEALED, OPEN = WINDOW + LENGTH, WINDOW + 2 * LENGTH
FLIPS = 300
WINDOWS = {"RELEASED": WINDOW, "SEALED": SEALED, "OPEN": OPEN}
"""As they are called in edits."""
Table = dict[str, tuple[list[str], list[tuple[Any, ...]]]]


@dataclass(frozen=True)
class Stores:
    """A city that was stopped: one window released, one sealed, one open."""

    folder: Path
    trust: Trust

    @property
    def store(self) -> Path:
        return self.folder / "aggregator" / "state" / STORE_FILE

    @property
    def published(self) -> Path:
        return self.folder / "keyholder" / "published"

    @property
    def log(self) -> Path:
        return self.published / "log"

    @property
    def state(self) -> Path:
        return self.folder / "keyholder" / "state"

    @property
    def roster(self) -> Path:
        return self.state / "roster.db"

    @property
    def outbox(self) -> Path:
        return self.folder / "outbox.db"

    def copy(self, folder: Path) -> Stores:
        """The same, free to be broken."""
        shutil.copytree(self.folder, folder)
        return Stores(folder, self.trust)

    def check(self, path: Path, *, trusting: bool = True) -> tuple[Found, str]:
        """What fsck finds, and what it says of it."""
        found, answer = check_path(path, self.trust if trusting else None, checkers())
        return found, str(answer.get("problem", ""))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("stores")
    with LocalCity.create(folder, meters=METERS) as city:
        for window in (WINDOW, SEALED, OPEN):
            city.enter_window(window)
            submit(city, window, METERS)
            if window == SEALED:
                equivocate(city, window)
            if window != OPEN:
                city.clock.move_to(city.stored_window(window).closes)
                city.aggregator.sealer.step()
            if window == WINDOW:
                city.aggregator.releaser.step()
        fill_outbox(city, city.paths.folder / "outbox.db")
        config = city.aggregator_config
        stores = Stores(city.paths.folder, Trust(config.city_id, config.identity_key))
        phases = [window.phase for window in city.aggregator.store.windows()]
        assert phases == [Phase.RELEASED, Phase.SEALED, Phase.OPEN]
    share(stores.store)
    return stores


def share(path: Path) -> None:
    """As if the aggregator shared a Redis with others: acknowledgements, names, a reason."""
    database = Database(path, SCHEMA)
    meters = {bytes([number]) * 16: bytes(32) for number in range(3)}
    journal = Journal(database)
    for window in (SEALED, OPEN):
        journal.add({(window, 0): meters})
    pins = Pins(database)
    pins.saw(OPEN, [pins.name()])
    database.close()


def submit(city: LocalCity, window: int, meters: int) -> None:
    reports = [city.report(meter, window) for meter in range(meters)]
    city.stub("gateway").SubmitReports(aggregator_pb2.SubmitReportsRequest(reports=reports))


def equivocate(city: LocalCity, window: int) -> None:
    """One meter signs another report; it is kept beside the first."""
    submit(city, window, 1)
    assert len(city.aggregator.store.equivocations(window)) == 1


def fill_outbox(city: LocalCity, path: Path) -> None:
    """Entries that wait with a report and without, and one that has ended."""
    parameters = city.parameters()
    with Outbox(path, parameters.policy.city_id) as outbox:
        for at in range(3):
            message = city.report(at)
            digest, report = parameters.digest, message.SerializeToString()
            values = {"import_wh": 250, "export_wh": 0}
            late = at == 1
            entry = NewEntry(
                WINDOW,
                message.meter_id,
                values,
                0.0,
                None if late else digest,
                None if late else report,
            )
            outbox.record([entry])
        outbox.conclude([Verdict(WINDOW, message.meter_id, State.SETTLED)])
        signed = city.keyholder.ring.for_window(WINDOW)
        assert signed is not None
        outbox.keep_parameters(parameters.encode(), signed.signature, parameters.epoch.end_window)


@pytest.fixture
def stores(whole: Stores, tmp_path: Path) -> Stores:
    return whole.copy(tmp_path / "copy")


KINDS = ("store", "published", "log", "state", "roster", "outbox")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_is_whole_and_is_not_touched(stores: Stores, kind: str) -> None:
    before = contents(stores.folder)
    assert stores.check(getattr(stores, kind)) == (Found.WHOLE, "")
    assert contents(stores.folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OF_STORE = {
    "UPDATE lanes SET sum = zeroblob(length(sum))": "does not have its checksum",
    "UPDATE lanes SET count = count - 1": "does not have its checksum",
    "UPDATE lanes SET lane = lane + 1000": "not one that the window can have",
    "UPDATE lanes SET checksum = zeroblob(32)": "does not have its checksum",
    "DELETE FROM lanes WHERE window = $OPEN AND lane = 0": "counts other reports",
    "DELETE FROM lanes WHERE window = $RELEASED AND lane = 0": "counts other reports",
    "DELETE FROM journal WHERE window = $OPEN": "counts other reports than its journal",
    "UPDATE journal SET reports = zeroblob(length(reports))": "does not have its checksum",
    "UPDATE journal SET accepted_at_ms = 5": "does not have its checksum",
    "UPDATE journal SET lane = 1 - lane": "does not have its checksum",
    "UPDATE journal SET checksum = zeroblob(32)": "does not have its checksum",
    "INSERT INTO journal (window, lane, accepted_at_ms, reports, checksum)"
    " SELECT window, lane, accepted_at_ms, reports, checksum FROM journal": "a second report",
    "UPDATE receipts SET digest = zeroblob(32) WHERE window = $SEALED": "other receipts",
    "UPDATE receipts SET accepted_at_ms = 5 WHERE window = $SEALED": "other receipts",
    "DELETE FROM receipts WHERE window = $RELEASED AND meter_id ="
    " (SELECT min(meter_id) FROM receipts)": "other reports than receipts",
    "UPDATE receipts SET digest = x'00'": "malformed",
    "INSERT INTO receipts VALUES ($OPEN, zeroblob(16), zeroblob(32), 1)": "is open and has",
    "UPDATE windows SET phase = 3 WHERE start = $SEALED": "settled and has a journal",
    "UPDATE windows SET phase = 2 WHERE start = $OPEN": "other receipts than its journal",
    "UPDATE windows SET phase = 1 WHERE start = $SEALED": "open and has stored receipts",
    "UPDATE windows SET phase = 1 WHERE start = $RELEASED": "open and has stored receipts",
    "UPDATE windows SET phase = 2 WHERE start = $RELEASED": "counts other reports",
    "UPDATE windows SET phase = 4 WHERE start = $RELEASED": "sums that should be deleted",
    "UPDATE windows SET phase = 6 WHERE start = $RELEASED": "sums that should be deleted",
    "UPDATE windows SET phase = 9": "no known phase",
    "DELETE FROM windows WHERE start = $RELEASED": "rows of a window that is not there",
    "INSERT INTO forgotten VALUES (1, $RELEASED)": "was forgotten and is there",
    "INSERT INTO forgotten VALUES (1, -5)": "horizon",
    'UPDATE windows SET "end" = "end" + 900': "has other times",
    "UPDATE windows SET closes = closes + 1": "not what its parameters make of it",
    "UPDATE windows SET lanes = lanes + 1": "not what its parameters make of it",
    "UPDATE windows SET lane_capacity = 5": "not one that the window can have",
    "UPDATE windows SET parameter_set = 'ckks-1'": "not described as a window can be",
    "UPDATE windows SET slots = slots * 2": "no ciphertext of the window",
    "UPDATE windows SET parameters_digest = zeroblob(32)": "not signed",
    "UPDATE windows SET parameters_digest = zeroblob(32) WHERE start = $OPEN": "not there",
    "UPDATE equivocations SET second = zeroblob(195)": "malformed",
    "UPDATE equivocations SET first = second": "another first report",
    "UPDATE equivocations SET second = CAST(substr(second, 1, 195) || x'FF' AS BLOB)": "not signed",
    "UPDATE equivocations SET second_parameters_digest = zeroblob(32)": "not signed",
    "UPDATE equivocations SET meter_id = zeroblob(16)": "malformed",
    "UPDATE parameters SET document = substr(document, 2)": "not what was signed",
    "UPDATE parameters SET signature = zeroblob(64)": "not what was signed",
    "UPDATE parameters SET digest = zeroblob(32)": "not listed as what they are",
    "UPDATE parameters SET end_window = 1": "not listed as what they are",
    "DELETE FROM parameters": "under parameters that are not there",
    "UPDATE members SET signing_key = zeroblob(32)": "",
    "UPDATE members SET sealing_key = zeroblob(32)": "other members",
    "UPDATE members SET until = 1": "an enrolment",
    "DELETE FROM members WHERE meter_id = (SELECT max(meter_id) FROM members)": "members",
    "UPDATE roster SET digest = zeroblob(32)": "other members",
    "UPDATE roster SET count = count + 1": "another number of members",
    "UPDATE roster SET version = version + 1": "not what was signed",
    "UPDATE roster SET effective_window = 1": "not what was signed",
    "UPDATE roster SET city_id = zeroblob(16)": "not what was signed",
    "UPDATE roster SET signature = zeroblob(64)": "not what was signed",
    "UPDATE acknowledgements SET window = window + 900": "does not have its checksum",
    "UPDATE acknowledgements SET lane = 1": "does not have its checksum",
    "UPDATE acknowledgements SET reports = zeroblob(144)": "does not have its checksum",
    "UPDATE acknowledgements SET checksum = zeroblob(32)": "does not have its checksum",
    "INSERT INTO acknowledgements (window, lane, reports, checksum)"
    " SELECT window, lane, reports, checksum FROM acknowledgements": "acknowledges a meter again",
    "UPDATE replica SET name = 'x'": "name is malformed",
    "INSERT INTO poisoned VALUES (900, '')": "has no reason",
    "DROP INDEX journal_by_lane": "not those it should have",
    "DROP TABLE equivocations": "not those it should have",
}
OF_OUTBOX = {
    "UPDATE entries SET state = 7": "no known state",
    "UPDATE entries SET state = 1 WHERE state = 0": "",
    "UPDATE entries SET state = 0, answered = 0 WHERE state = 1": "waits without its report",
    "UPDATE entries SET reading = '{'": "holds no reading",
    "UPDATE entries SET epoch = x'00'": "malformed",
    "UPDATE entries SET epoch = zeroblob(32)": "",
    "UPDATE entries SET reason = 'BECAUSE'": "no known reason",
    "UPDATE entries SET answered = 1": "another end than its state",
    "UPDATE entries SET attempts = -1": "malformed",
    "UPDATE entries SET due = 9e999": "malformed",
    "UPDATE entries SET window = window + 900": "",
    "DELETE FROM entries WHERE state = 0": "a report has no entry",
    "DELETE FROM reports": "waits without its report",
    "UPDATE reports SET report = x'00'": "malformed",
    "UPDATE city SET city_id = zeroblob(16)": "another city",
    "INSERT INTO city SELECT city_id FROM city": "does not name one city",
    "UPDATE parameters SET encoded = x'00'": "not what was signed",
    "UPDATE parameters SET signature = zeroblob(64)": "not what was signed",
    "UPDATE parameters SET end_window = 5": "not listed as what they are",
}
OF_ROSTER = {
    "UPDATE meters SET signing_key = randomblob(32)": "other members",
    "UPDATE meters SET withdrawn = 1": "malformed",
    "DELETE FROM meters WHERE place = 0": "other members",
    "UPDATE versions SET count = 1": "other members",
    "UPDATE versions SET version = version + 1": "missing",
    "UPDATE city SET city_id = zeroblob(16)": "another city",
}
EDITS = [
    pytest.param(kind, edit, says, id=f"{kind}: {edit[:60]}")
    for kind, edits in (("store", OF_STORE), ("outbox", OF_OUTBOX), ("roster", OF_ROSTER))
    for edit, says in edits.items()
]


@pytest.mark.parametrize(("kind", "edit", "says"), EDITS)
def test_a_changed_row_is_named(stores: Stores, kind: str, edit: str, says: str) -> None:
    path = getattr(stores, kind)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(Template(edit).substitute(WINDOWS))
        assert connection.changes() or edit.startswith("DROP")
    found, problem = stores.check(path)
    assert found is Found.DAMAGED
    assert says in problem
    assert "\n" not in problem


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def only(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.is_file())


FILES: dict[str, tuple[str, Callable[[Stores], object], str]] = {
    "store cut short": ("store", lambda s: cut(s.store, 4096), ""),
    "outbox cut short": ("outbox", lambda s: cut(s.outbox, 4096), ""),
    "records cut short": ("log", lambda s: cut(s.log / "records", 1), "broken"),
    "record flipped": ("log", lambda s: flip(s.log / "records", 100), "broken"),
    "head flipped": ("log", lambda s: flip(s.log / "head", -1), "head"),
    "head gone": ("log", lambda s: (s.log / "head").unlink(), "head is gone"),
    "checkpoint gone": ("log", lambda s: (s.log / "checkpoint").unlink(), "checkpoint is gone"),
    "checkpoint flipped": ("log", lambda s: flip(s.log / "checkpoint", 60), "not signed"),
    "records appended twice": ("log", lambda s: repeat_last(s.log), ""),
    "parameters flipped": (
        "published",
        lambda s: flip(only(s.published / "parameters"), 300),
        "not what was signed",
    ),
    "parameters gone": (
        "published",
        lambda s: only(s.published / "parameters").unlink(),
        "are not there",
    ),
    "entries flipped": ("published", lambda s: flip(only(s.published / "entries"), 9), "not those"),
    "entries cut short": ("published", lambda s: cut(only(s.published / "entries"), 1), "as many"),
    "own entries flipped": ("published", lambda s: flip(only(s.published / "own"), 9), "not those"),
    "own entries cut short": ("published", lambda s: cut(only(s.published / "own"), 1), "as many"),
    "a strange file": (
        "published",
        lambda s: (s.published / "entries" / "x").touch(),
        "of no window",
    ),
    "a strange spool": ("state", lambda s: (s.state / "spool" / "x").mkdir(), "no name of one"),
}


def repeat_last(log: Path) -> None:
    """A log that says it has its last record twice."""
    from gridveil_services.releaselog.framing import EMPTY, Head, encode_frame, read_frames

    with (log / "records").open("rb") as file:
        frames = list(read_frames(file, EMPTY))
    frame, head = encode_frame(Head.load(log / "head"), frames[-1][1])
    with (log / "records").open("ab") as file:
        file.write(frame)
    (log / "head").write_bytes(head.encode())


@pytest.mark.parametrize("damage", FILES)
def test_a_changed_file_is_named(stores: Stores, damage: str) -> None:
    kind, change, says = FILES[damage]
    change(stores)
    found, problem = stores.check(getattr(stores, kind))
    assert found is Found.DAMAGED, problem
    assert says in problem


NOT_COVERED = {
    ("receipts", "digest"),
    ("receipts", "accepted_at_ms"),
    ("receipts", "meter_id"),
    ("windows", "roster_version"),
    ("windows", "enrolled"),
    ("members", "since"),
    ("replica", "name"),
    ("participants", "name"),
    ("participants", "window"),
}
"""Columns of the store that nothing else tells of: of a settled window, and of what is told once.

Said in the docstring of the store's check and in docs/operations.md.
"""


def test_any_flipped_byte_of_a_store_is_noticed_or_harmless_or_one_of_those_not_covered(
    stores: Stores,
) -> None:
    """Harmless: SQLite reads the same rows as before."""
    chance, data = Random(3), stores.store.read_bytes()
    rows = dump(stores.store)
    assert rows is not None
    results = {"noticed": 0, "harmless": 0, "not covered": 0}
    for _ in range(FLIPS):
        at = chance.randrange(100, len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        stores.store.write_bytes(flipped)
        if stores.check(stores.store)[0] is not Found.WHOLE:
            results["noticed"] += 1
            continue
        changed = differing(rows, dump(stores.store))
        assert changed <= NOT_COVERED, f"byte {at}: {changed - NOT_COVERED}"
        results["not covered" if changed else "harmless"] += 1
    print(results)
    assert results["noticed"] > FLIPS / 2


def dump(path: Path) -> Table | None:
    """All rows of a file; None if SQLite cannot read them."""
    with closing(apsw.Connection(f"{path.as_uri()}?immutable=1", flags=0x41)) as connection:
        try:
            names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            return {
                str(name): (
                    [str(row[1]) for row in connection.execute(f"PRAGMA table_info({name})")],
                    connection.execute(f"SELECT * FROM {name}").fetchall(),  # noqa: S608
                )
                for (name,) in names.fetchall()
            }
        except apsw.Error:
            return None


def differing(before: Table, after: Table | None) -> set[tuple[str, str]]:
    """Columns in which rows differ."""
    if after is None or before.keys() != after.keys():
        return {("", "")}
    found = set()
    for table, (columns, rows) in before.items():
        others = after[table][1]
        if len(rows) != len(others):
            return {(table, "")}
        for row, other in zip(rows, others, strict=True):
            found |= {(table, c) for c, a, b in zip(columns, row, other, strict=True) if a != b}
    return found


def test_any_flipped_byte_of_a_release_log_is_noticed(stores: Stores) -> None:
    """Apart from the space that a checkpoint's text leaves, and there is none."""
    chance = Random(4)
    files = {path: path.read_bytes() for path in sorted(stores.log.iterdir())}
    assert {path.name for path in files} == {"records", "head", "checkpoint"}
    for _ in range(FLIPS):
        path = chance.choice(sorted(files))
        at = chance.randrange(len(files[path]))
        flipped = bytearray(files[path])
        flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert stores.check(stores.log)[0] is Found.DAMAGED, f"byte {at} of {path.name}"
        path.write_bytes(files[path])
    assert stores.check(stores.log)[0] is Found.WHOLE


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """A store, freshly killed."""
    shutil.copytree(killed_once, tmp_path / "killed")
    return tmp_path / "killed" / "aggregator.db"


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as a kill leaves it: most of it is in the write-ahead log."""
    program = (
        "import os, sys, pathlib\n"
        "from tests.support.store_model import *\n"
        "opened = Opened(pathlib.Path(sys.argv[1]))\n"
        "worker = Worker(opened, World(), Random(5))\n"
        "log = pathlib.Path(sys.argv[1], 'aggregator.db-wal')\n"
        "while log.stat().st_size < 300_000: worker.step()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    folder = tmp_path_factory.mktemp("killed") / "store"
    ran = subprocess.run([sys.executable, "-c", program, folder], check=False)
    assert ran.returncode == -9
    assert (folder / "aggregator.db-wal").stat().st_size >= 300_000
    return folder


def test_a_log_beside_the_store_is_read_and_not_touched(killed: Path) -> None:
    before = contents(killed.parent)
    found, answer = check_path(killed, None, checkers())
    assert found is Found.WHOLE, answer
    assert answer["checked"]["windows"] > 0
    assert contents(killed.parent) == before


def test_a_store_on_a_medium_that_cannot_be_written_is_checked(killed: Path) -> None:
    killed.parent.chmod(0o500)
    try:
        assert check_path(killed, None, checkers())[0] is Found.WHOLE
    finally:
        killed.parent.chmod(0o700)


def test_a_broken_page_in_the_midst_of_the_log_is_noticed(killed: Path) -> None:
    """SQLite would forget the commits behind it without a word."""
    flip(killed.with_name("aggregator.db-wal"), 2_000)
    found, answer = check_path(killed, None, checkers())
    assert found is Found.DAMAGED
    assert "write-ahead log is damaged" in answer["problem"]


def test_a_log_that_ends_in_the_midst_of_a_page_is_that_of_a_crash(killed: Path) -> None:
    cut(killed.with_name("aggregator.db-wal"), 1_000)
    assert check_path(killed, None, checkers())[0] is Found.WHOLE


def run(*arguments: object) -> tuple[int, str]:
    """The command itself: its exit code, and what it prints."""
    command = [sys.executable, "-m", "gridveil.cli", "fsck", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not ran.stderr
    return ran.returncode, ran.stdout


def test_the_command_says_whole_damaged_or_not_checked_a_line_each(stores: Stores) -> None:
    profile = stores.folder / "auditor"
    paths = [stores.store, stores.published, stores.state, stores.outbox]
    code, said = run(*paths, "--profile", profile)
    assert code == 0, said
    assert [line.split(": ")[1].split(" (")[0] for line in said.splitlines()] == ["whole"] * 4
    flip(stores.log / "records", 100)
    stranger = stores.folder / "ca"
    # Damage says more than doubt.
    code, said = run("--json", stores.published, stranger, stores.store, "--profile", profile)
    assert code == 1
    answers = [json.loads(line) for line in said.splitlines()]
    assert [answer["result"] for answer in answers] == ["damaged", "not_checked", "whole"]
    assert answers[2]["checked"]["windows"] == 3


def test_what_it_does_not_know_or_cannot_check_is_not_called_whole(stores: Stores) -> None:
    stranger = stores.folder / "stranger"
    stranger.write_text("text")
    assert stores.check(stranger)[0] is Found.NOT_CHECKED
    assert stores.check(stores.folder / "nothing")[0] is Found.NOT_CHECKED
    found, problem = stores.check(stores.log, trusting=False)
    assert found is Found.NOT_CHECKED
    assert "takes --profile" in problem
    code, said = run(stranger, stores.store)
    assert code == 2
    assert said.splitlines()[1].split(": ")[1].startswith("whole")


def test_a_store_in_use_is_refused_and_a_checked_one_cannot_be_opened(stores: Stores) -> None:
    database = Database(stores.store, SCHEMA)
    try:
        found, problem = stores.check(stores.store)
    finally:
        database.close()
    assert found is Found.NOT_CHECKED
    assert "in use" in problem or "a process uses it" in problem


def test_nothing_that_is_wrong_is_told_with_a_reading_or_a_key(stores: Stores) -> None:
    """Whatever the rows hold: messages name windows, lanes and numbers of rows."""
    with closing(apsw.Connection(str(stores.outbox))) as connection:
        connection.execute("UPDATE entries SET reading = 'secret-4711'")
    found, problem = stores.check(stores.outbox)
    assert found is Found.DAMAGED
    assert "4711" not in problem
