"""What the log says of epochs, rosters and policies: once, in order, and known after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.protocol.city import CityParameters, Epoch
from gridveil.protocol.errors import Conflict, IntegrityLost, Reason
from gridveil.protocol.release import RegisterTotal, Total
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.v1.log_pb2 import (
    DestructionCause,
    EpochCreated,
    EpochDestroyed,
    LogRecord,
    RosterChanged,
)
from gridveil_services.keyholder.ledger import Ledger, LoggedEpoch
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.reports import CITY_ID, city_policy

W, LENGTH = 900, 900
DIGEST = bytes([1] * 32)
SETTLED = DestructionCause.DESTRUCTION_CAUSE_SETTLED
SPENT = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
SIGNER = LogSigner(CITY_ID, SigningKey(b"k" * 32))


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder / "log", ManualClock(1000), SIGNER)


def parameters(name: int, first: int = W, end: int = W + 10 * LENGTH) -> CityParameters:
    epoch = Epoch(bytes([name] * 16), first, end, bytes([9] * 32), b"public key")
    return CityParameters(city_policy(), epoch)


ONE, OTHER = parameters(1), parameters(2, W + 10 * LENGTH, W + 20 * LENGTH)
ID = ONE.epoch.epoch_id


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path)
    opened.epoch_created(ONE)
    opened.epoch_created(OTHER)
    yield opened
    opened.close()


def records(folder: Path, kind: str) -> list[LogRecord]:
    found = LogReader(folder / "log").poll()
    return [record for record in found if record.WhichOneof("event") == kind]


def total(window: int) -> bytes:
    return Total(
        city_id=CITY_ID,
        epoch_id=ID,
        parameters_digest=ONE.digest,
        window_start=window,
        window_length=LENGTH,
        roster_version=1,
        enrolled=100,
        count=100,
        lanes=3,
        left_out=(1,),
        release_digest=DIGEST,
        entries_root=bytes(32),
        registers=(RegisterTotal("import_wh", "Wh", 5),),
        blinding=bytes(32),
    ).encode()


def release(ledger: Ledger, window: int, failures: int, named: CityParameters = ONE) -> None:
    ledger.claim(window, DIGEST, named.digest, 1)
    ledger.released(window, total(window), bytes(64), failures)


def refuse(ledger: Ledger, window: int, failures: int, named: CityParameters = ONE) -> None:
    ledger.claim(window, DIGEST, named.digest, 1)
    ledger.refused(window, DIGEST, failures)


# Failures.


def test_failures_of_totals_and_refusals_add_up_for_their_own_epoch(ledger: Ledger) -> None:
    release(ledger, W, 1)
    refuse(ledger, W + LENGTH, 2)
    refuse(ledger, W + 2 * LENGTH, 0)
    refuse(ledger, W + 11 * LENGTH, 1, OTHER)
    assert {e.epoch_id[0]: e.failures for e in ledger.epochs().values()} == {1: 3, 2: 1}


def test_failures_of_parameters_that_no_epoch_has_are_nobodys(ledger: Ledger) -> None:
    ledger.claim(W, DIGEST, bytes(32), 1)
    ledger.refused(W, DIGEST, 3)
    assert [epoch.failures for epoch in ledger.epochs().values()] == [0, 0]


def test_a_claim_alone_counts_nothing(ledger: Ledger) -> None:
    ledger.claim(W, DIGEST, ONE.digest, 1)
    assert ledger.epochs()[ID].failures == 0


@pytest.mark.parametrize(("failures", "left"), [(0, 5), (4, 1), (5, 0), (9, 0)])
def test_of_a_budget_nothing_is_left_when_it_is_spent_or_the_epoch_destroyed(
    failures: int, left: int
) -> None:
    epoch = LoggedEpoch(ID, ONE.digest, W, 2 * W, failures=failures)
    assert epoch.failures_left(5) == left
    assert replace(epoch, destroyed=True).failures_left(5) == 0


# The end of an epoch.


def test_a_destroyed_epoch_serves_no_window_from_its_successors_first_on(ledger: Ledger) -> None:
    ledger.epoch_destroyed(ID, SPENT, W + 3 * LENGTH)
    epoch = ledger.epoch_of(ONE.digest)
    assert epoch is not None
    assert epoch.destroyed
    served = [window for window in range(0, 20 * LENGTH, LENGTH) if epoch.serves(window)]
    assert served == [W, W + LENGTH, W + 2 * LENGTH]


@pytest.mark.parametrize(
    ("epoch_id", "end"),
    [
        (bytes(16), W + LENGTH),
        (ID, W - LENGTH),
        (ID, ONE.epoch.end_window + LENGTH),
    ],
    ids=["an epoch that nobody made", "before its first window", "after its last window"],
)
def test_an_impossible_end_is_not_recorded(
    ledger: Ledger, tmp_path: Path, epoch_id: bytes, end: int
) -> None:
    with pytest.raises(Conflict):
        ledger.epoch_destroyed(epoch_id, SETTLED, end)
    assert not ledger.epochs()[ID].destroyed
    assert not records(tmp_path, "epoch_destroyed")
    assert not ledger.failed


def test_an_epoch_is_destroyed_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.epoch_destroyed(ID, SPENT, W + 3 * LENGTH)
    with pytest.raises(Conflict):
        ledger.epoch_destroyed(ID, SETTLED, W + 2 * LENGTH)
    (record,) = records(tmp_path, "epoch_destroyed")
    assert record.epoch_destroyed.cause == SPENT
    assert ledger.epochs()[ID].end_window == W + 3 * LENGTH


# Roster and policy.


def version(number: int) -> RosterVersion:
    return RosterVersion(CITY_ID, number, W, 100 + number, bytes([number] * 32))


def test_each_roster_version_is_recorded_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.roster_changed(version(1), enrolled=101, withdrawn=0)
    ledger.roster_changed(version(1), enrolled=101, withdrawn=0)
    ledger.roster_changed(version(3), enrolled=3, withdrawn=1)
    ledger.roster_changed(version(2), enrolled=2, withdrawn=1)
    found = [record.roster_changed for record in records(tmp_path, "roster_changed")]
    assert [(r.version, r.count, r.enrolled, r.withdrawn) for r in found] == [
        (1, 101, 101, 0),
        (3, 103, 3, 1),
    ]
    assert found[1].roster_digest == version(3).digest
    assert found[1].effective_window == W


def test_a_policy_is_stated_when_it_changes_and_when_it_changes_back(
    ledger: Ledger, tmp_path: Path
) -> None:
    one, other = city_policy(), city_policy(failure_budget=2)
    for policy, refusals in ((one, 5), (one, 5), (other, 5), (other, 5), (one, 5), (one, 6)):
        ledger.policy_stated(policy, refusals)
    stated = [record.policy_stated for record in records(tmp_path, "policy_stated")]
    assert [found.policy for found in stated] == [
        one.encode(),
        other.encode(),
        one.encode(),
        one.encode(),
    ]
    assert [found.refusals_per_day for found in stated] == [5, 5, 5, 6]


# A restart.


def test_a_restart_knows_failures_ends_roster_and_policy(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    first.epoch_created(ONE)
    first.epoch_created(OTHER)
    release(first, W, 2)
    refuse(first, W + LENGTH, 3)
    first.epoch_destroyed(ID, SPENT, W + 3 * LENGTH)
    refuse(first, W + 11 * LENGTH, 1, OTHER)
    first.claim(W + 12 * LENGTH, DIGEST, OTHER.digest, 1)
    first.roster_changed(version(2), enrolled=2, withdrawn=0)
    first.policy_stated(city_policy(), 5)
    known, size = first.epochs(), len(LogReader(tmp_path / "log").poll())
    first.close()
    second = open_ledger(tmp_path)
    assert second.epochs() == known
    assert second.epochs()[ID].failures == 5
    second.roster_changed(version(2), enrolled=2, withdrawn=0)
    second.policy_stated(city_policy(), 5)
    assert len(LogReader(tmp_path / "log").poll()) == size, "nothing was said again"
    second.refused(W + 12 * LENGTH, DIGEST, 1)
    assert second.epochs()[OTHER.epoch.epoch_id].failures == 2
    second.close()


def created() -> LogRecord:
    epoch = EpochCreated(
        epoch_id=ID, parameters_digest=ONE.digest, first_window=W, end_window=W + LENGTH
    )
    return LogRecord(epoch_created=epoch)


def destroyed(end: int = W + LENGTH) -> LogRecord:
    return LogRecord(epoch_destroyed=EpochDestroyed(epoch_id=ID, cause=SPENT, end_window=end))


def changed(number: int) -> LogRecord:
    return LogRecord(roster_changed=RosterChanged(version=number))


CONTRADICTIONS: dict[str, Callable[[], list[LogRecord]]] = {
    "destroyed before it was made": lambda: [destroyed(), created()],
    "destroyed twice": lambda: [created(), destroyed(), destroyed()],
    "ends after its last window": lambda: [created(), destroyed(W + 2 * LENGTH)],
    "an older roster version": lambda: [changed(2), changed(1)],
    "the same roster version": lambda: [changed(2), changed(2)],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_log_that_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    writer = LogWriter(tmp_path / "log", SIGNER)
    writer.append(*CONTRADICTIONS[name]())
    writer.close()
    with pytest.raises(IntegrityLost) as refusal:
        open_ledger(tmp_path)
    assert refusal.value.reason is Reason.LOG_CORRUPT
