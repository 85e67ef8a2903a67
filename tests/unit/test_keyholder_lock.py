"""The ledger locks by what its log says, whenever it reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason, Unavailable
from gridveil.protocol.v1.log_pb2 import LogRecord, ReleaseIntent, WindowRefused
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.policy import Status
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.log_records import policy_stated, unlocked
from tests.support.reports import city_policy

SIGNER = LogSigner(bytes(16), SigningKey(b"k" * 32))
DIGEST = bytes([1] * 32)
LENGTH, DAY = 900, 86_400


class Restarting:
    """A ledger on a clock that is moved, which can be opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(1_000_000)
        self._window = 0
        self._open()

    def restart(self) -> None:
        self.ledger.close()
        self._open()

    def wait(self, seconds: float) -> None:
        self.clock.move_to(self.clock.now() + seconds)

    def claim(self) -> int:
        self._window += LENGTH
        self.ledger.claim(self._window, DIGEST, bytes(32), 1)
        return self._window

    def refuse(self) -> None:
        self.ledger.refused(self.claim(), DIGEST)

    def records(self) -> list[LogRecord]:
        return list(LogReader(self.folder / "log").poll())

    def _open(self) -> None:
        self.ledger = Ledger(self.folder / "log", self.clock, SIGNER)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Restarting]:
    made = Restarting(tmp_path)
    made.ledger.policy_stated(city_policy(), 3)
    yield made
    made.ledger.close()


def lock(city: Restarting) -> int:
    for _ in range(3):
        city.refuse()
    assert city.ledger.locked_at is not None
    return city.ledger.locked_at


def assert_locked(city: Restarting) -> None:
    size = len(city.records())
    with pytest.raises(Unavailable) as refusal:
        city.claim()
    assert refusal.value.reason is Reason.KEYHOLDER_LOCKED
    assert refusal.value.retry_after_s is None
    assert len(city.records()) == size, "nothing was claimed"
    assert not city.ledger.failed


def test_the_last_refusal_of_the_budget_locks_over_restarts_and_days(city: Restarting) -> None:
    for _ in range(2):
        city.refuse()
        assert city.ledger.locked_at is None
        city.restart()
    city.refuse()
    assert city.ledger.locked_at == len(city.records()) - 1
    for _ in range(2):
        assert_locked(city)
        city.restart()
        city.wait(30 * DAY)


def test_refusals_that_are_a_day_apart_never_lock(city: Restarting) -> None:
    for _ in range(9):
        city.refuse()
        city.wait(DAY / 2)
        city.restart()
    assert city.ledger.locked_at is None


def test_windows_expire_and_claims_are_settled_while_it_is_locked(city: Restarting) -> None:
    claimed = city.claim()
    lock(city)
    city.ledger.expire([claimed, 90_000])
    city.ledger.refused(claimed, DIGEST)
    found = [city.ledger.state(window).status for window in (claimed, 90_000)]
    assert found == [Status.REFUSED, Status.EXPIRED]
    city.restart()
    assert_locked(city)


def test_an_unlocking_names_its_lock_in_the_log_and_lasts(city: Restarting) -> None:
    locked_at = lock(city)
    city.ledger.unlock(locked_at)
    assert city.records()[-1].keyholder_unlocked.locked_at_index == locked_at
    city.refuse()
    city.restart()
    city.refuse()
    city.refuse()
    assert_locked(city)


def test_the_same_unlocking_again_changes_nothing(city: Restarting) -> None:
    locked_at = lock(city)
    for _ in range(2):
        city.ledger.unlock(locked_at)
        city.restart()
    assert [r.WhichOneof("event") for r in city.records()].count("keyholder_unlocked") == 1


def test_no_index_but_that_of_the_lock_unlocks(city: Restarting) -> None:
    with pytest.raises(GridveilError) as refusal:
        city.ledger.unlock(0)
    assert refusal.value.reason is Reason.CONFIG_INVALID
    first = lock(city)
    for wrong in (0, first - 1, first + 1):
        with pytest.raises(Unavailable) as told:
            city.ledger.unlock(wrong)
        assert told.value.reason is Reason.KEYHOLDER_LOCKED
    city.ledger.unlock(first)
    lock(city)
    with pytest.raises(Unavailable):
        city.ledger.unlock(first)
    assert_locked(city)


def test_a_budget_of_today_unlocks_nothing(city: Restarting) -> None:
    lock(city)
    city.ledger.policy_stated(city_policy(), 96)
    city.restart()
    assert_locked(city)


def intent(window: int) -> LogRecord:
    return LogRecord(intent=ReleaseIntent(window_start=window, release_digest=DIGEST))


def refused(window: int) -> LogRecord:
    return LogRecord(refused=WindowRefused(window_start=window, release_digest=DIGEST))


LOCKED = [policy_stated(city_policy(), 1), intent(900), refused(900)]


@pytest.mark.parametrize(
    "records",
    [
        [*LOCKED, intent(1800)],
        [*LOCKED, unlocked(1)],
        [*LOCKED, unlocked(2), unlocked(2)],
        [*LOCKED[:2], unlocked(2)],
        [unlocked(0)],
        [policy_stated(city_policy(), 97)],
    ],
    ids=[
        "a claim while locked",
        "another unlocking",
        "a second unlocking",
        "an unlocking before the lock",
        "an unlocking of nothing",
        "an impossible budget",
    ],
)
def test_a_log_that_contradicts_its_locks_is_refused(
    tmp_path: Path, records: list[LogRecord]
) -> None:
    writer = LogWriter(tmp_path / "log", SIGNER)
    writer.append(*records)
    writer.close()
    with pytest.raises(IntegrityLost) as refusal:
        Ledger(tmp_path / "log", ManualClock(1000), SIGNER)
    assert refusal.value.reason is Reason.LOG_CORRUPT
