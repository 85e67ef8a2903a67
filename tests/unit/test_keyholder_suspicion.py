"""Suspicions: what speaks against a meter, what speaks for it, and what is kept of it."""

from __future__ import annotations

import math
from pathlib import Path

import apsw
import pytest

from gridveil.protocol.errors import IntegrityLost, Reason
from gridveil_services.keyholder.suspicion import MOST_BITS, Suspect, Suspicions, failed_bits

LENGTH = 900
LANES = [[bytes([lane, at]) * 8 for at in range(10)] for lane in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "suspicions.db"


@pytest.fixture
def suspicions(path: Path) -> Suspicions:
    return Suspicions(path)


def ids(found: list[Suspect]) -> list[bytes]:
    return [suspect.meter_id for suspect in found]


def rows(path: Path) -> dict[str, int]:
    database = apsw.Connection(str(path))
    tables = "suspects", "windows"
    counts = {t: database.execute(f"SELECT count(*) FROM {t}").get for t in tables}  # noqa: S608
    database.close()
    return {table: int(str(count)) for table, count in counts.items()}


@pytest.mark.parametrize("failing", [1, 3, 9])
def test_evidence_is_the_likelihood_ratio_of_spoiling_every_second_lane(failing: int) -> None:
    share = failing / 10
    spoils, honest = 1 / 2 + share / 2, share
    assert failed_bits(failing * 10, 100 - failing * 10) == pytest.approx(
        math.log2(spoils / honest)
    )


def test_an_honest_meters_score_is_expected_to_fall() -> None:
    for failing in range(1, 10):
        share = failing / 10
        assert share * failed_bits(failing, 10 - failing) - (1 - share) < 0


def test_the_meter_that_all_failing_lanes_share_leads(suspicions: Suspicions) -> None:
    liar = LANES[0][0]
    mixed = [liar, *(lane[1] for lane in LANES[1:])]
    suspicions.record(LENGTH, [LANES[0]], [], LANES[1:])
    suspicions.record(2 * LENGTH, [mixed], [], [LANES[0][1:]])
    first, second = suspicions.ranking(2)
    assert (first.meter_id, first.failed, first.windows) == (liar, 2, 2)
    assert first.score > second.score


def test_a_lane_that_opens_clears_its_meters(suspicions: Suspicions, path: Path) -> None:
    suspicions.record(LENGTH, [LANES[0]], [], LANES[1:])
    for at in range(2, 5):
        suspicions.record(at * LENGTH, [], [], LANES)
    assert suspicions.ranking(100) == []
    assert rows(path)["suspects"] == 0


def test_a_window_in_which_every_lane_fails_teaches_nothing(suspicions: Suspicions) -> None:
    suspicions.record(LENGTH, LANES, [], [])
    assert suspicions.ranking(100) == []


def test_good_windows_of_the_past_hide_no_meter(path: Path, tmp_path: Path) -> None:
    """A meter that breaks after a month scores as one that breaks on its first day."""
    old, new = Suspicions(path), Suspicions(tmp_path / "new.db")
    for at in range(1, 100):
        old.record(at * LENGTH, [], [], LANES)
    for suspicions in (old, new):
        suspicions.record(100 * LENGTH, [LANES[3]], [], LANES[:3] + LANES[4:])
    assert old.ranking(100) == new.ranking(100)


def test_no_score_exceeds_its_bound(suspicions: Suspicions) -> None:
    for at in range(1, 60):
        suspicions.record(at * LENGTH, [LANES[0]], [], LANES[1:])
    assert {suspect.score for suspect in suspicions.ranking(100)} == {MOST_BITS}


def test_a_signed_seal_that_does_not_open_goes_before_all_scores(suspicions: Suspicions) -> None:
    proven = LANES[5][5]
    for at in range(1, 9):
        suspicions.record(at * LENGTH, [LANES[0]], [], LANES[1:5])
    suspicions.record(9 * LENGTH, [], [proven], LANES[:5] + LANES[6:])
    first, second = suspicions.ranking(2)
    assert (first.meter_id, first.proven, first.score) == (proven, 1, 0)
    assert second.score > 10
    for at in range(10, 20):  # and no lane that opens undoes a signature
        suspicions.record(at * LENGTH, [], [], LANES)
    first = suspicions.ranking(100)[0]
    assert (first.meter_id, first.proven, first.score) == (proven, 1, 0)


def test_a_window_counts_once(suspicions: Suspicions, path: Path) -> None:
    for _ in range(2):
        suspicions.record(LENGTH, [LANES[0]], [LANES[1][0]], LANES[2:])
        suspicions.record(2 * LENGTH, [], [], LANES)
    known = suspicions.ranking(100)
    suspicions.close()
    again = Suspicions(path)
    again.record(LENGTH, [LANES[0]], [LANES[1][0]], LANES[2:])
    assert again.ranking(100) == known


def test_what_was_recorded_outlives_the_process(suspicions: Suspicions, path: Path) -> None:
    suspicions.record(LENGTH, [LANES[0]], [LANES[1][0]], LANES[2:])
    known = suspicions.ranking(100)
    assert len(known) == 11
    assert Suspicions(path).ranking(100) == known


def test_the_store_does_not_grow_with_windows(suspicions: Suspicions, path: Path) -> None:
    for at in range(1, 2_000):
        lane = at % 10
        suspicions.record(at * LENGTH, [LANES[lane]], [], LANES[:lane] + LANES[lane + 1 :])
    assert rows(path)["suspects"] <= 100
    assert rows(path)["windows"] <= 7 * 96 + 2


def test_nothing_is_kept_of_meters_that_were_withdrawn(path: Path) -> None:
    withdrawn: set[bytes] = set()

    def is_enrolled(meter_id: bytes) -> bool:
        return meter_id not in withdrawn

    suspicions = Suspicions(path, is_enrolled)
    suspicions.record(LENGTH, [LANES[0]], [LANES[1][0], LANES[1][1]], LANES[2:])
    withdrawn |= {LANES[0][0], LANES[1][0]}
    suspicions.forget(sorted(withdrawn))
    # The window in progress at the withdrawal still counts them.
    suspicions.record(2 * LENGTH, [LANES[0]], [LANES[1][0]], LANES[2:])
    assert not withdrawn & set(ids(suspicions.ranking(100)))
    withdrawn.add(LANES[1][1])  # and a crash came before it was forgotten
    suspicions.close()
    again = Suspicions(path, is_enrolled)
    assert len(again.ranking(100)) == 9
    assert rows(path)["suspects"] == 9


def test_that_a_hint_cannot_be_written_stops_no_release(suspicions: Suspicions, path: Path) -> None:
    suspicions.record(LENGTH, [LANES[0]], [], LANES[1:])
    known = suspicions.ranking(100)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    suspicions.record(2 * LENGTH, [LANES[0]], [], LANES[1:])
    assert suspicions.ranking(100) == known
    other.execute("ROLLBACK")
    suspicions.record(2 * LENGTH, [LANES[0]], [], LANES[1:])
    assert suspicions.ranking(1)[0].failed == 2


def test_a_damaged_store_is_refused_and_says_what_to_do(suspicions: Suspicions, path: Path) -> None:
    suspicions.record(LENGTH, LANES[:5], [], LANES[5:])
    suspicions.close()
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(IntegrityLost, match=r"move suspicions\.db away") as error:
        Suspicions(path)
    assert error.value.reason is Reason.PARTIAL_CORRUPT


def test_suspects_are_counted_once_each_by_what_speaks_against_them(
    suspicions: Suspicions,
) -> None:
    assert suspicions.count(10) == (0, 0)
    proven, liar = LANES[1][0], LANES[0][0]
    suspicions.record(LENGTH, [], [proven], LANES)
    assert suspicions.count(10) == (0, 1)
    for at in range(2, 9):
        others = [lane[at % 10] for lane in LANES[1:]]
        suspicions.record(at * LENGTH, [[liar, proven, *others]], [], [LANES[0][1:], *LANES[2:]])
    assert suspicions.count(10) == (1, 1)
    assert suspicions.count(MOST_BITS + 1) == (0, 1)
