"""Entries that were checked ahead: the release is the same, byte for byte, and takes less work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from struct import Struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridveil.clock import ManualClock
from gridveil.protocol.commitment import add_points
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import split_entries
from gridveil.protocol.sealing import shared_key
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil_services.keyholder import epoch_keys
from gridveil_services.keyholder import precheck as precheck_module
from gridveil_services.keyholder.cohort import Cohort
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.seals import NOT_OPENED
from tests.support.keyholders import PreparedCity, prepare_city, state_of
from tests.support.reports import build_release, build_report

LENGTH = 900
METERS = 120


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city", meters=METERS)


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


@pytest.fixture
def keyholder(city: PreparedCity) -> Iterator[KeyHolder]:
    """At the window's close."""
    with city.open() as keyholder:
        yield keyholder


def entries_of(city: PreparedCity) -> list[bytes]:
    return list(split_entries(city.release.entries))


def precheck(city: PreparedCity, keyholder: KeyHolder, entries: Sequence[bytes]) -> int:
    """Have entries of the window checked ahead; how many meters are held then."""
    return keyholder.releases.prechecks.add(
        city.window, city.parameters.digest, city.roster_version, b"".join(entries)
    )


def refused(city: PreparedCity, keyholder: KeyHolder, **changes: object) -> Reason:
    """Why entries are not checked ahead."""
    asked: dict[str, object] = {
        "window_start": city.window,
        "parameters_digest": city.parameters.digest,
        "roster_version": city.roster_version,
        "entries": city.release.entries,
    }
    with pytest.raises(GridveilError) as refusal:
        keyholder.releases.prechecks.add(**(asked | changes))  # type: ignore[arg-type]
    return refusal.value.reason


class Exhausted:
    """A slot's layout that has no memory for the 61st."""

    def __init__(self, layout: Struct) -> None:
        self.size = layout.size
        self.unpack_from = layout.unpack_from
        self._layout = layout
        self._left = 60

    def pack(self, *fields: object) -> bytes:
        if not self._left:
            raise MemoryError
        self._left -= 1
        return self._layout.pack(*fields)


def test_all_that_is_published_is_the_same_with_and_without(
    prepared: PreparedCity, tmp_path: Path
) -> None:
    """The log with its signatures, the entries, each meter's own entry: every byte."""
    plain, ahead = prepared.copy(tmp_path / "a" / "city"), prepared.copy(tmp_path / "b" / "city")
    with plain.open() as keyholder:
        keyholder.releases.release(plain.release.messages())
    with ahead.open() as keyholder:
        assert precheck(ahead, keyholder, entries_of(ahead)) == METERS
        keyholder.releases.release(ahead.release.messages())

    def published(city: PreparedCity) -> dict[str, bytes]:
        root = city.config.published
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    assert published(plain) == published(ahead)
    assert {"entries", "own", "parameters", "log"} <= {
        name.partition("/")[0] for name in published(plain)
    }


def test_what_was_checked_ahead_is_known_when_the_release_comes(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    """Every commitment and the sum of every lane: nothing of it is left to do."""
    entries = entries_of(city)
    Random(1).shuffle(entries)
    for at in range(0, METERS, 17):
        precheck(city, keyholder, entries[at : at + 17])
    header = city.release.header
    found = keyholder.releases.prechecks.of(header)
    assert found is not None
    with ThreadPoolExecutor(2) as pool:
        cohort = Cohort(header, city.parameters, keyholder.roster.members, pool, found)
        cohort.accept(city.release.entries, cohort.examine(city.release.entries))
    known = cohort.known()
    points = [known.commitments[at : at + 32] for at in range(0, 32 * METERS, 32)]
    assert NOT_OPENED not in points
    for lane in city.release.lanes:
        assert known.sums[lane.lane] == add_points(points[: lane.count])
        del points[: lane.count]
    assert not points


def test_what_comes_late_is_added_to_the_sum_of_what_was_checked_ahead(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    entries = entries_of(city)
    ahead = [*entries[:1], *entries[2:-1]]
    precheck(city, keyholder, ahead)
    with ThreadPoolExecutor(2) as pool:
        found = keyholder.releases.prechecks.of(city.release.header)
        members = keyholder.roster.members
        cohort = Cohort(city.release.header, city.parameters, members, pool, found)
        cohort.accept(city.release.entries, cohort.examine(city.release.entries))
    assert cohort.known().sums.keys() == {lane.lane for lane in city.release.lanes}
    keyholder.releases.release(city.release.messages())
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_a_sum_that_was_cut_short_is_not_used(
    city: PreparedCity, keyholder: KeyHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out after a commitment was added, and its entry comes again."""
    entries = entries_of(city)

    with monkeypatch.context() as patch:
        patch.setattr(precheck_module, "_SLOT", Exhausted(precheck_module._SLOT))
        with pytest.raises(MemoryError):
            precheck(city, keyholder, entries)
    assert precheck(city, keyholder, entries) == METERS
    keyholder.releases.release(city.release.messages())
    total = city.totals()[city.window]
    assert total.left_out == ()
    assert tuple(r.sum for r in total.registers) == city.truth


@given(
    ahead=st.sets(st.integers(0, METERS - 1)),
    released=st.sets(st.integers(0, METERS - 1), min_size=100),
    chunk=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_checked_ahead_the_total_is_that_of_the_released(
    prepared: PreparedCity,
    tmp_path_factory: pytest.TempPathFactory,
    ahead: set[int],
    released: set[int],
    chunk: int,
    seed: int,
) -> None:
    city = prepared.copy(tmp_path_factory.mktemp("given") / "city")
    by_meter = {entry[:16]: entry for entry in entries_of(city)}
    entries = [by_meter[city.meters[at].meter_id] for at in ahead]
    Random(seed).shuffle(entries)
    release = build_release(
        city.parameters,
        city.roster_version,
        [city.reports[at] for at in sorted(released)],
        enrolled=METERS,
    )
    with city.open() as keyholder:
        for at in range(0, len(entries), chunk):
            precheck(city, keyholder, entries[at : at + chunk])
        assert keyholder.releases.prechecks.held(city.window) == len(ahead)
        keyholder.releases.release(release.messages())
    total = city.totals()[city.window]
    assert total.count == len(released)
    assert total.sum("import_wh") == sum(300 + 7 * at for at in released)


def test_the_same_entries_again_change_nothing(city: PreparedCity, keyholder: KeyHolder) -> None:
    entries = entries_of(city)
    assert precheck(city, keyholder, entries[:30]) == 30
    assert precheck(city, keyholder, entries[10:40]) == 40
    assert precheck(city, keyholder, [entries[3], entries[3], entries[50], entries[50]]) == 41


def test_of_a_meter_the_first_entry_is_held(city: PreparedCity, keyholder: KeyHolder) -> None:
    """Another one is checked with its release, and counts if it is released."""
    precheck(city, keyholder, entries_of(city))
    other = build_report(city.parameters, city.meters[5], city.window, [9_000, 0])
    release = build_release(city.parameters, city.roster_version, city.reports_with(other))
    (entry,) = set(split_entries(release.entries)) - set(entries_of(city))
    assert precheck(city, keyholder, [entry]) == METERS
    keyholder.releases.release(release.messages())
    total = city.totals()[city.window]
    assert total.sum("import_wh") == city.truth[0] - (300 + 7 * 5) + 9_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: entry[:-1] + bytes([entry[-1] ^ 1]), Reason.SIGNATURE_INVALID),
        (lambda entry: entry[:40] + bytes([entry[40] ^ 1]) + entry[41:], Reason.SIGNATURE_INVALID),
        (lambda entry: bytes(16) + entry[16:], Reason.COHORT_INVALID),
        (lambda entry: entry[:16] + b"\1" + entry[17:], Reason.FIELD_RANGE),
    ],
)
def test_of_entries_with_a_bad_one_among_them_those_before_it_are_held(
    city: PreparedCity, keyholder: KeyHolder, change: object, reason: Reason
) -> None:
    """So that the same entries again, for ever, cost one look at the bad one."""
    entries = entries_of(city)
    entries[60] = change(entries[60])  # type: ignore[operator]
    for _ in range(2):
        assert refused(city, keyholder, entries=b"".join(entries)) is reason
        assert keyholder.releases.prechecks.held(city.window) == 60
    keyholder.releases.release(city.release.messages())
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_entries_of_other_parameters_rosters_or_windows_are_refused(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    assert refused(city, keyholder, parameters_digest=bytes(32)) is Reason.KEY_EPOCH
    next_epoch = keyholder.ring.for_window(city.window + 86_400)
    assert next_epoch is not None
    tomorrow = next_epoch.parameters.digest
    assert refused(city, keyholder, parameters_digest=tomorrow) is Reason.KEY_EPOCH
    version = city.roster_version + 1
    assert refused(city, keyholder, roster_version=version) is Reason.ROSTER_VERSION
    assert refused(city, keyholder, window_start=city.window + 1) is Reason.WINDOW_MISALIGNED
    later = city.window + LENGTH  # ended, and reports of it are taken
    assert refused(city, keyholder, window_start=later) is Reason.WINDOW_TOO_EARLY
    assert keyholder.releases.prechecks.windows() == []


def test_entries_are_taken_while_reports_are_and_until_the_window_expires(
    city: PreparedCity,
) -> None:
    opens = city.config.policy.rules.opens(city.window)
    clock = ManualClock(opens - 1)
    with city.open(clock) as keyholder:
        assert refused(city, keyholder) is Reason.WINDOW_TOO_EARLY
        clock.move_to(opens)
        assert precheck(city, keyholder, entries_of(city)) == METERS
        clock.move_to(city.expires)
        assert refused(city, keyholder) is Reason.WINDOW_EXPIRED
        keyholder.upkeep.tick()
        assert keyholder.releases.prechecks.windows() == []


def test_entries_of_a_destroyed_epoch_are_refused_and_what_was_held_opens_nothing(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    precheck(city, keyholder, entries_of(city)[:50])
    cause = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
    keyholder.ring.retire(city.parameters.epoch.epoch_id, cause, city.closes)
    assert refused(city, keyholder) is Reason.KEY_EPOCH
    with pytest.raises(GridveilError) as refusal:
        keyholder.releases.release(city.release.messages())
    assert refusal.value.reason in {Reason.REFUSED, Reason.WINDOW_EXPIRED}
    assert keyholder.ring.decryptions(city.window) == 0


def test_keys_that_are_destroyed_meanwhile_open_no_seal_and_keep_no_key(
    city: PreparedCity, keyholder: KeyHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keyholder.ring.by_digest(city.parameters.digest)
    assert keys is not None
    derive = shared_key

    def destroyed_meanwhile(*arguments: Any) -> bytes:
        key = derive(*arguments)
        keys.destroy()
        return key

    monkeypatch.setattr(epoch_keys, "shared_key", destroyed_meanwhile)
    keys._shared = epoch_keys._SharedKeys()  # as before any were derived ahead
    assert refused(city, keyholder) is Reason.KEY_EPOCH
    assert keyholder.releases.prechecks.windows() == []
    assert all(keys._shared.get(place) is None for place in range(METERS))


def test_a_release_that_was_cut_short_leaves_what_was_checked_ahead(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    precheck(city, keyholder, entries_of(city))
    with pytest.raises(GridveilError) as refusal:
        keyholder.releases.release(replace(city.release, digest=bytes(32)).messages())
    assert refusal.value.reason is Reason.DIGEST_MISMATCH
    assert keyholder.releases.prechecks.held(city.window) == METERS


def test_of_entries_that_come_at_once_those_of_one_call_are_checked(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    """The others are told to come again, and wait for nobody."""
    entries = entries_of(city)

    def ask(at: int) -> Reason | None:
        try:
            precheck(city, keyholder, entries[at : at + 30])
        except GridveilError as refusal:
            return refusal.reason
        return None

    with ThreadPoolExecutor(4) as pool:
        answers = Counter(pool.map(ask, [0, 30, 60, 90] * 40))
    assert answers.keys() == {None, Reason.OVERLOADED}
    for at in range(0, METERS, 30):
        ask(at)
    keyholder.releases.release(city.release.messages())
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_nothing_durable_changes_until_the_release(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    before = state_of(city)
    precheck(city, keyholder, entries_of(city))
    assert state_of(city) == before
    keyholder.releases.release(city.release.messages())
    assert keyholder.releases.prechecks.windows() == []


def test_meters_enrolled_after_the_window_began_are_no_trouble(
    city: PreparedCity, keyholder: KeyHolder
) -> None:
    """They are beyond what is held of the window, and of no roster that it knows."""
    entries = entries_of(city)
    precheck(city, keyholder, entries[:60])
    newcomer = replace(
        city.meters[0].member, meter_id=bytes(range(16)), signing_key=city.identity_key
    )
    keyholder.roster.enrol([newcomer])
    assert precheck(city, keyholder, entries[60:]) == METERS
    assert (
        refused(city, keyholder, entries=newcomer.meter_id + entries[0][16:])
        is Reason.COHORT_INVALID
    )
    keyholder.releases.release(city.release.messages())
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth
