"""The roster changes by whole signed versions, from the next window on, and forgets nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.protocol.errors import (
    Conflict,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotFound,
    Reason,
)
from gridveil.protocol.roster import Member, open_roster_version, roster_digest
from gridveil.protocol.windows import WindowRules
from gridveil_services.keyholder.roster_store import RosterStore, check_member_keys
from tests.support.reports import CITY_ID, make_members

RULES = WindowRules(900, 300, 60)
START = 1_700_000_100
KEY = SigningKey(bytes(32))
MEMBERS = [meter.member for meter in make_members(30)]


def open_store(path: Path, clock: ManualClock) -> RosterStore:
    return RosterStore(path, CITY_ID, RULES, KEY, clock)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[RosterStore]:
    opened = open_store(tmp_path / "roster.db", clock)
    yield opened
    opened.close()


def members_of(store: RosterStore, version: int) -> set[Member]:
    head = store.version(version)
    assert head is not None
    return set(store.change(0, head).added)


def test_a_version_is_in_force_from_the_next_window_on(
    store: RosterStore, clock: ManualClock
) -> None:
    assert store.in_force(START + 900) is None
    first = store.enrol(MEMBERS[:2])
    assert (first.version, first.effective_window, first.count) == (1, START + 900, 2)
    clock.move_to(START + 899.9)
    second = store.enrol(MEMBERS[2:3])
    assert second.effective_window == START + 900
    clock.move_to(START + 900)
    third = store.enrol(MEMBERS[3:4])
    assert third.effective_window == START + 1800
    assert store.in_force(START) is None
    assert store.in_force(START + 900) == second
    assert store.in_force(START + 1800) == third
    assert store.in_force(START + 90_000) == third


def test_a_clock_that_went_back_does_not_change_the_past(
    store: RosterStore, clock: ManualClock
) -> None:
    first = store.enrol(MEMBERS[:1])
    clock.move_to(START - 90_000)
    assert store.enrol(MEMBERS[1:2]).effective_window == first.effective_window


def test_a_version_is_signed_and_names_its_members(store: RosterStore) -> None:
    version = store.enrol(MEMBERS)
    opened = open_roster_version(
        version.encode(), store.sign(version), bytes(KEY.verify_key), CITY_ID
    )
    assert opened.digest == roster_digest(sorted(MEMBERS))


def test_enrolling_the_same_meters_again_changes_nothing(store: RosterStore) -> None:
    version = store.enrol(MEMBERS[:5])
    assert store.enrol(MEMBERS[:5]) == version
    assert store.enrol([*MEMBERS[:2], MEMBERS[1]]) == version


def test_a_retry_with_further_meters_adds_only_those(store: RosterStore) -> None:
    store.enrol(MEMBERS[:5])
    version = store.enrol(MEMBERS[3:8])
    assert (version.version, version.count) == (2, 8)


@pytest.mark.parametrize(
    "intruder",
    [
        Member(MEMBERS[0].meter_id, MEMBERS[9].signing_key, MEMBERS[0].sealing_key),
        Member(MEMBERS[0].meter_id, MEMBERS[0].signing_key, MEMBERS[9].sealing_key),
        Member(MEMBERS[9].meter_id, MEMBERS[0].signing_key, MEMBERS[9].sealing_key),
    ],
    ids=["other signing key", "other sealing key", "signing key of another meter"],
)
def test_an_id_or_key_in_use_is_refused_and_nothing_changes(
    store: RosterStore, intruder: Member
) -> None:
    version = store.enrol(MEMBERS[:3])
    with pytest.raises(Conflict) as refusal:
        store.enrol([MEMBERS[4], intruder])
    assert refusal.value.reason is Reason.METER_EXISTS
    assert store.in_force(START + 900) == version
    assert members_of(store, 1) == set(MEMBERS[:3])
    assert store.enrol(MEMBERS[4:5]).count == 4


def test_two_meters_in_one_call_cannot_share_a_signing_key(store: RosterStore) -> None:
    other = Member(MEMBERS[1].meter_id, MEMBERS[0].signing_key, MEMBERS[1].sealing_key)
    with pytest.raises(Conflict):
        store.enrol([MEMBERS[0], other])
    assert store.first_in_force is None


def test_a_withdrawal_takes_effect_with_the_next_window(
    store: RosterStore, clock: ManualClock
) -> None:
    store.enrol(MEMBERS[:5])
    clock.move_to(START + 900)
    version = store.withdraw([MEMBERS[0].meter_id, MEMBERS[1].meter_id])
    assert (version.version, version.count, version.effective_window) == (2, 3, START + 1800)
    assert members_of(store, 1) == set(MEMBERS[:5])
    assert members_of(store, 2) == set(MEMBERS[2:5])
    assert store.members.place_in(1, MEMBERS[0].meter_id) is not None
    assert store.members.place_in(2, MEMBERS[0].meter_id) is None


def test_a_withdrawal_can_be_repeated(store: RosterStore) -> None:
    store.enrol(MEMBERS[:5])
    version = store.withdraw([MEMBERS[0].meter_id])
    assert store.withdraw([MEMBERS[0].meter_id]) == version


def test_withdrawing_an_unknown_meter_changes_nothing(store: RosterStore) -> None:
    store.enrol(MEMBERS[:5])
    with pytest.raises(NotFound):
        store.withdraw([MEMBERS[0].meter_id, MEMBERS[9].meter_id])
    assert members_of(store, 1) == set(MEMBERS[:5])
    assert store.version(2) is None


def test_a_withdrawn_id_never_comes_back(store: RosterStore) -> None:
    store.enrol(MEMBERS[:2])
    store.withdraw([MEMBERS[0].meter_id])
    with pytest.raises(Conflict) as refusal:
        store.enrol(MEMBERS[:1])
    assert refusal.value.reason is Reason.METER_EXISTS


def test_any_two_versions_are_one_change_apart(store: RosterStore, clock: ManualClock) -> None:
    source = random.Random(5)
    history: list[set[Member]] = [set()]
    never = list(MEMBERS)
    while never:
        clock.move_to(clock.now() + 300)
        present = history[-1]
        if present and source.random() < 0.4:
            leaving = set(source.sample(sorted(present), source.randint(1, len(present))))
            store.withdraw([member.meter_id for member in leaving])
            history.append(present - leaving)
        else:
            arriving = {never.pop() for _ in range(min(len(never), source.randint(1, 4)))}
            store.enrol(sorted(arriving))
            history.append(present | arriving)
    for known, before in enumerate(history):
        for version, after in enumerate(history[1:], start=1):
            head = store.version(version)
            assert head is not None
            assert (head.count, head.digest) == (len(after), roster_digest(sorted(after)))
            change = store.change(known, head)
            assert change.added == sorted(after - before)
            assert change.removed == sorted(member.meter_id for member in before - after)


def test_a_change_from_an_unknown_version_is_refused(store: RosterStore) -> None:
    version = store.enrol(MEMBERS[:1])
    with pytest.raises(NotFound):
        store.change(2, version)


def test_a_restart_remembers_everything(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "roster.db"
    store = open_store(path, clock)
    store.enrol(MEMBERS[:9])
    clock.move_to(START + 1000)
    store.withdraw([MEMBERS[4].meter_id])
    kept = [store.version(1), store.version(2)]
    held = [members_of(store, 1), members_of(store, 2)]
    store.close()
    again = open_store(path, clock)
    assert [again.version(1), again.version(2)] == kept
    assert [members_of(again, 1), members_of(again, 2)] == held
    assert again.enrol(MEMBERS[9:10]).version == 3
    again.close()


def test_every_commit_reaches_the_disk_before_it_is_answered(store: RosterStore) -> None:
    database = store._database
    assert database.pragma("synchronous") == 2
    assert database.pragma("journal_mode") == "wal"


def test_a_damaged_or_foreign_roster_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "roster.db"
    store = open_store(path, clock)
    store.enrol(MEMBERS)
    store.close()
    for change in (
        "UPDATE meters SET withdrawn = 1 WHERE place = 3",
        "UPDATE meters SET signing_key = zeroblob(32) WHERE place = 3",
        "DELETE FROM meters WHERE place = 29",
        "DELETE FROM versions",
        "UPDATE versions SET count = 29",
        "UPDATE city SET city_id = zeroblob(16)",
        "PRAGMA user_version = 9",
        "PRAGMA application_id = 9",
        "DROP TABLE versions",
    ):
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)
        database = apsw.Connection(str(copy))
        database.execute(change)
        database.close()
        with pytest.raises(GridveilError):
            open_store(copy, clock).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes(3000) + whole[8000:])
    with pytest.raises(IntegrityLost):
        open_store(path, clock)


def test_another_window_length_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "roster.db"
    open_store(path, clock).close()
    with pytest.raises(MalformedInput) as refusal:
        RosterStore(path, CITY_ID, WindowRules(1800, 300, 60), KEY, clock)
    assert refusal.value.reason is Reason.CONFIG_INVALID


P = 2**255 - 19


@pytest.mark.parametrize(
    ("signing_key", "sealing_key"),
    [
        (bytes(32), MEMBERS[0].sealing_key),
        ((1).to_bytes(32, "little"), MEMBERS[0].sealing_key),
        (b"\xff" * 32, MEMBERS[0].sealing_key),
        (MEMBERS[0].signing_key, P.to_bytes(32, "little")),
        (MEMBERS[0].signing_key, (P + 9).to_bytes(32, "little")),
        (MEMBERS[0].signing_key, b"\xff" * 32),
    ],
    ids=["Ed25519 zero", "Ed25519 one", "Ed25519 non-canonical", "X25519 p", "p + 9", "2^256 - 1"],
)
def test_keys_that_no_meter_can_have_made_are_refused(
    store: RosterStore, signing_key: bytes, sealing_key: bytes
) -> None:
    with pytest.raises(MalformedInput) as refusal:
        store.enrol([MEMBERS[1], Member(bytes(16), signing_key, sealing_key)])
    assert refusal.value.reason is Reason.FIELD_FORMAT
    assert store.first_in_force is None


def test_honest_keys_pass() -> None:
    for member in MEMBERS:
        check_member_keys(member)
