"""The controller's journal and what is made with it: durable first, bounded, checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from gridveil.cli.fsck import Found, check_path
from gridveil.clock import ManualClock
from gridveil.fsck import Trust, checkers
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil_services.controller.core import Basis, Gap, Settled
from gridveil_services.controller.history import History
from gridveil_services.controller.journal import RETENTION_S, Journal
from gridveil_services.controller.journal_file import read_journal
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.signalling import Signaller

CITY = b"c" * 16
START = 1_767_225_600
RULES = ControlRules(capacity_w=1_000_000, hysteresis_w=10_000, ramp_limit_w=200_000)


class Made:
    """A signaller over a journal in a folder, on a clock of its own."""

    def __init__(self, folder: Path, now: float = START) -> None:
        self.path = folder / "controller.db"
        self.clock = ManualClock(now)
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.path, CITY, int(self.clock.now()))
        history = History(RULES, self.journal.windows())
        self.signaller = Signaller(RULES, self.journal, history, self.clock)

    def reopen(self) -> None:
        self.journal.close()
        self.open()

    def settle(self, at: int, power_w: int = 930_000) -> None:
        self.clock.move_to(max(self.clock.now(), START + (at + 1) * 900 + 320))
        self.signaller.settle([Settled(0, START + at * 900, power_w // 4, 100, 100)])

    def fill(self) -> None:
        """More than a few pages hold."""
        for at in range(1, 200):
            self.settle(at, 1_200_000)

    def wait(self, seconds: float) -> None:
        self.clock.move_to(self.clock.now() + seconds)
        self.signaller.tick()

    def shown(self) -> list[bytes]:
        return [one.signal.encode() for one in self.journal.signals(0, 0, 10_000)]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    found = Made(tmp_path)
    yield found
    found.journal.close()


def test_nothing_is_signalled_before_anything_happened(made: Made) -> None:
    with pytest.raises(WrongState) as refused:
        made.signaller.newest()
    assert refused.value.reason is Reason.NO_SIGNAL


def test_a_signal_that_cannot_be_journalled_is_not_shown(made: Made) -> None:
    made.settle(0)
    with closing(apsw.Connection(str(made.path))) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT raise(abort, ''); END"
        )
        with pytest.raises(Unavailable):
            made.settle(1, 1_200_000)
    # Nor is the one before it, which is not what stands.
    with pytest.raises(Unavailable) as refused:
        made.signaller.newest()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert not made.journal.usable


def test_a_full_disk_ends_nothing_for_good(made: Made) -> None:
    made.settle(0)
    bounded = made.journal._database._connection
    bounded.pragma("max_page_count", bounded.pragma("page_count"))
    with pytest.raises(Unavailable) as refused:
        made.fill()
    assert refused.value.reason is Reason.STORE_FULL
    with pytest.raises(Unavailable):
        made.signaller.newest()

    bounded.pragma("max_page_count", 2**30)
    made.settle(200, 500_000)

    newest = made.signaller.newest()
    assert newest.signal.measured_w == 500_000
    assert newest.number == len(made.shown())


def test_a_known_window_is_acted_on_once(made: Made) -> None:
    made.settle(0)
    made.settle(0, 1_200_000)
    made.reopen()
    made.settle(0, 1_200_000)
    assert len(made.shown()) == 1


def test_a_window_that_has_not_ended_is_not_acted_on(made: Made) -> None:
    with pytest.raises(WrongState) as refused:
        made.signaller.settle([Settled(0, START, 1, 100, 100)])
    assert refused.value.reason is Reason.WINDOW_OPEN
    assert made.shown() == []


def test_a_window_from_before_the_first_start_is_kept_and_signals_nothing(made: Made) -> None:
    made.signaller.settle([Settled(0, START - 900, 1, 100, 100), Gap(0, START - 1_800, "REFUSED")])
    assert made.shown() == []
    assert [window.window_start for window in made.journal.windows()] == [
        START - 1_800,
        START - 900,
    ]


def test_a_clock_that_is_set_back_changes_no_order(made: Made) -> None:
    made.settle(0)
    first = made.signaller.newest().signal.at
    made.clock = ManualClock(START + 950)
    made.reopen()
    made.signaller.settle([Settled(0, START, 1, 100, 100)])
    made.clock.move_to(START + 2 * 900 + 1)
    made.signaller.settle([Settled(0, START + 900, 225_000, 100, 100)])
    assert made.signaller.newest().signal.at >= first


def test_what_is_older_than_the_retention_is_forgotten(made: Made) -> None:
    made.settle(0)
    made.wait(900)
    old = len(made.shown())
    made.wait(RETENTION_S + 1_800)
    late = RETENTION_S // 900 + 10
    made.settle(late)

    made.wait(86_400)

    assert old == 2
    assert len(made.shown()) == 3
    assert [window.window_start for window in made.journal.windows()] == [START + late * 900]
    newest = made.signaller.newest()
    assert (newest.number, newest.signal.basis) == (5, Basis.NEUTRAL)
    made.journal.close()
    assert [entry.number for entry in read_journal(made.path)] == [3, 4, 5]


def test_a_window_that_was_forgotten_is_not_acted_on_again(made: Made) -> None:
    made.settle(0)
    made.settle(RETENTION_S // 900 + 10)
    made.wait(86_400)
    before = made.shown()
    assert [window.window_start for window in made.journal.windows()] != [START]

    made.signaller.settle([Settled(0, START, 232_500, 100, 100)])

    assert made.shown() == before


def test_a_clock_that_is_far_ahead_for_a_moment_makes_nothing_forgotten(made: Made) -> None:
    made.fill()
    known, before = made.journal.windows(), made.shown()

    made.wait(2 * RETENTION_S)

    assert made.journal.windows() == known
    assert made.shown()[:-1] == before


def test_while_the_clock_is_set_back_no_signal_is_shown_or_made(made: Made) -> None:
    made.settle(0, 1_200_000)
    made.settle(1, 1_200_000)
    now = made.clock.now()
    watching = made.signaller.watch(0, lambda: True)
    made.clock.move_to(now - 3_600)
    made.signaller.tick()

    for ask in (
        made.signaller.newest,
        lambda: next(watching),
        lambda: made.signaller.settle([Gap(0, START - 3_600, "REFUSED")]),
    ):
        with pytest.raises(Unavailable) as refused:
            ask()
        assert refused.value.reason is Reason.STORE_UNAVAILABLE

    made.clock.move_to(now + 10)
    made.settle(2, 500_000)
    assert made.signaller.newest().number == 3


def test_a_watcher_is_told_when_the_clock_is_set_back(made: Made) -> None:
    made.settle(0)
    told: list[GridveilError] = []
    waiting = threading.Event()

    def is_active() -> bool:
        waiting.set()
        return True

    def watch() -> None:
        try:
            next(made.signaller.watch(0, is_active))
        except GridveilError as error:
            told.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert waiting.wait(10)
    made.clock.move_to(made.clock.now() - 3_600)
    made.signaller.tick()
    watcher.join(10)

    assert [error.reason for error in told] == [Reason.STORE_UNAVAILABLE]


def test_a_journal_of_another_city_is_refused(made: Made) -> None:
    made.journal.close()
    with pytest.raises(MalformedInput, match="another city"):
        Journal(made.path, b"d" * 16, START)


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with closing(apsw.Connection(str(path))) as other:
        other.execute("CREATE TABLE mine (precious)")
    before = path.read_bytes()
    with pytest.raises(MalformedInput, match="no journal"):
        Journal(path, CITY, START)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DELETE FROM journal WHERE number = 2", "a signal of the journal is missing"),
        ("UPDATE journal SET at = at + 1 WHERE number = 2", "two times"),
        ("DELETE FROM rules", "the rules of signal 1"),
        (
            "UPDATE journal SET event = CAST('{}' AS BLOB) WHERE number = 2",
            "none that a controller",
        ),
        ("UPDATE controller SET city_id = CAST('x' AS BLOB)", "one city"),
        (
            "INSERT INTO deliveries VALUES (1, 1, 1, 9, 'n', '{}', 1, 0)",
            "an object for the VTN has no known state",
        ),
    ],
)
def test_fsck_names_what_is_wrong_with_a_journal(made: Made, change: str, problem: str) -> None:
    for at in range(3):
        made.settle(at)
    made.journal.close()
    trust = Trust(CITY, bytes(32))
    found, answer = check_path(made.path, trust, checkers())
    assert (found, answer["kind"]) == (Found.WHOLE, "a controller's journal")
    with closing(apsw.Connection(str(made.path))) as database:
        database.execute(change)

    found, answer = check_path(made.path, trust, checkers())

    assert found is Found.DAMAGED
    assert problem in str(answer["problem"])


def test_the_newest_of_many_signals_are_found_without_reading_the_others(made: Made) -> None:
    made.fill()
    looks: list[None] = []

    def look() -> bool:
        looks.append(None)
        return False

    made.journal._database._connection.set_progress_handler(look, 10)
    found = made.journal.signals(int(made.clock.now()), 0, 500)
    made.journal.next_parcel()

    assert [shown.number for shown in found] == [199]
    assert len(looks) < 40


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE journal SET state = X'7b'",
        "UPDATE rules SET rules = X'7b'",
        "UPDATE journal SET signal = X'7b'",
        "INSERT INTO controller SELECT * FROM controller",
    ],
)
def test_a_journal_that_says_what_was_never_written_is_refused(made: Made, change: str) -> None:
    made.settle(0)
    made.journal.close()
    with closing(apsw.Connection(str(made.path))) as other:
        other.execute(change)

    def show() -> None:
        made.open()
        made.signaller.newest()

    with pytest.raises(IntegrityLost) as refused:
        show()
    assert refused.value.reason is Reason.PARTIAL_CORRUPT


def test_a_journal_in_use_is_not_opened_twice(made: Made) -> None:
    with pytest.raises(GridveilError) as refused:
        Journal(made.path, CITY, START)
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
