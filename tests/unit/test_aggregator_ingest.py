"""Reports into the store: counted once, answered the same, summed exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridveil.clock import ManualClock
from gridveil.protocol.ciphertext import Residues, add, parse_ciphertext, to_bytes
from gridveil.protocol.errors import Exhausted, GridveilError, MalformedInput, Reason, Unavailable
from gridveil.protocol.parameter_sets import ParameterSet, parameter_set
from gridveil.protocol.release import Entry, LaneSum
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1 import report_pb2
from gridveil.protocol.windows import lane_of
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.ingest import Accepted, Answer
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.aggregator.summing import canonical_sum
from tests.support.aggregators import LENGTH, REPORTING, IngestHarness
from tests.support.epochs import city_keys
from tests.support.reports import WINDOW

METERS = 6
KEYS = city_keys()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[IngestHarness]:
    made = IngestHarness(tmp_path, meters=METERS, keys=KEYS, lanes=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[list[report_pb2.Report]]:
    """Two different reports of each meter."""
    maker = IngestHarness(tmp_path_factory.mktemp("maker"), meters=METERS, keys=KEYS)
    made = [[maker.report(meter) for _ in range(2)] for meter in range(METERS)]
    maker.close()
    return made


def said(answer: Answer) -> str:
    if isinstance(answer, GridveilError):
        return answer.reason.value
    return "DUPLICATE" if answer.duplicate else "ACCEPTED"


def digest(message: report_pb2.Report) -> bytes:
    return parse_report(message).claim.digest()


def expected_sums(harness: IngestHarness, counted: Sequence[report_pb2.Report]) -> list[LaneSum]:
    """What the lanes hold if exactly these reports were added, computed one at a time."""
    policy, epoch = harness.parameters.policy, harness.parameters.epoch
    lanes: dict[int, list[report_pb2.Report]] = {}
    for message in counted:
        lane = lane_of(epoch.epoch_id, WINDOW, message.meter_id, harness.window.lanes)
        lanes.setdefault(lane, []).append(message)
    crypto, slots = policy.crypto, policy.layout.slots
    sums = []
    for lane, messages in sorted(lanes.items()):
        total = np.zeros(crypto.degree + 2 * slots, dtype=object)
        for message in messages:
            residues = parse_ciphertext(message.ciphertext, crypto, slots)
            total = (total + residues.astype(object)) % crypto.modulus
        sums.append(LaneSum(lane, len(messages), to_bytes(total.astype(np.uint64))))
    return sums


def sealed(harness: IngestHarness) -> list[LaneSum]:
    harness.committer.run(lambda: harness.store.seal(WINDOW))
    return list(harness.store.lane_sums(WINDOW))


def test_a_report_is_accepted_with_its_digest_and_the_time(harness: IngestHarness) -> None:
    message = harness.report(0)
    assert harness.submit(message) == [Accepted(digest(message), REPORTING * 1000, False)]


def test_a_retry_gets_the_first_receipt_also_after_seal_release_and_restart(
    harness: IngestHarness,
) -> None:
    message = harness.report(0)
    harness.submit(message)
    first = Accepted(digest(message), REPORTING * 1000, True)
    harness.clock.move_to(REPORTING + 1)
    assert harness.submit(message) == [first]
    harness.clock.move_to(WINDOW + 10 * LENGTH)
    assert harness.submit(message) == [first]
    harness.committer.run(lambda: harness.store.seal(WINDOW))
    assert harness.submit(message) == [first]
    harness.committer.run(lambda: harness.store.settle(WINDOW, Phase.RELEASED))
    assert harness.submit(message) == [first]
    harness.restart()
    assert harness.submit(message) == [first]


def test_a_poisoned_window_gives_no_receipt_again(harness: IngestHarness) -> None:
    """It is not sure any more which reports were accepted."""
    message = harness.report(0)
    harness.submit(message)
    harness.committer.run(lambda: harness.store.seal(WINDOW))
    harness.committer.run(lambda: harness.store.settle(WINDOW, Phase.POISONED))
    assert [said(answer) for answer in harness.submit(message)] == ["WINDOW_POISONED"]


def test_another_report_of_the_meter_is_refused_and_both_are_kept(harness: IngestHarness) -> None:
    first, second, third = (harness.report(0) for _ in range(3))
    answers = [harness.submit(message)[0] for message in (first, second, third)]
    assert [said(answer) for answer in answers] == ["ACCEPTED", "EQUIVOCATION", "EQUIVOCATION"]
    assert isinstance(answers[1], GridveilError)
    assert answers[1].metadata == {"resource": digest(first).hex()}
    (record,) = harness.store.equivocations(WINDOW)
    parameters = harness.parameters.digest
    kept = [Entry.decode(entry, parameters, WINDOW) for entry in (record.first, record.second)]
    assert [entry.claim.digest() for entry in kept] == [digest(first), digest(second)]
    assert [entry.signature for entry in kept] == [first.signature, second.signature]
    assert sealed(harness) == expected_sums(harness, [first])


def test_a_bad_report_does_not_harm_its_neighbours(harness: IngestHarness) -> None:
    good = [harness.report(meter) for meter in range(4)]
    bad = harness.report(4)
    bad.signature = bytes(64)
    answers = harness.submit(good[0], bad, *good[1:])
    assert [said(answer) for answer in answers] == [
        "ACCEPTED",
        "SIGNATURE_INVALID",
        *["ACCEPTED"] * 3,
    ]
    assert sealed(harness) == expected_sums(harness, good)


def test_of_several_reports_of_a_meter_in_a_call_the_first_acceptable_one_counts(
    harness: IngestHarness,
) -> None:
    first, other = harness.report(0), harness.report(0)
    unsigned = report_pb2.Report()
    unsigned.CopyFrom(first)
    unsigned.signature = b""
    neighbour = harness.report(1)
    answers = harness.submit(unsigned, first, first, other, neighbour, first)
    assert [said(answer) for answer in answers] == [
        "SIGNATURE_MISSING",
        "ACCEPTED",
        "DUPLICATE",
        "EQUIVOCATION",
        "ACCEPTED",
        "DUPLICATE",
    ]
    assert sealed(harness) == expected_sums(harness, [first, neighbour])


def test_reports_of_several_windows_are_judged_by_their_own(harness: IngestHarness) -> None:
    here, early = harness.report(0), harness.report(1, window=WINDOW + LENGTH)
    late = harness.report(2, window=WINDOW - LENGTH)
    answers = harness.submit(early, here, late)
    assert [said(a) for a in answers] == ["WINDOW_TOO_EARLY", "ACCEPTED", "WINDOW_CLOSED"]
    with pytest.raises(MalformedInput) as refused:
        harness.ingest.submit([early, here], one_window=True)
    assert refused.value.reason is Reason.BATCH_MIXED


def test_a_full_lane_takes_as_many_as_fit(tmp_path: Path) -> None:
    harness = IngestHarness(tmp_path, meters=METERS, keys=KEYS, lanes=1, lane_capacity=4)
    messages = [harness.report(meter) for meter in range(METERS)]
    assert [said(answer) for answer in harness.submit(*messages)] == [
        *["ACCEPTED"] * 4,
        *["LANE_FULL"] * 2,
    ]
    assert sealed(harness) == expected_sums(harness, messages[:4])
    harness.close()


def test_what_comes_after_the_seal_is_refused_and_changes_nothing(harness: IngestHarness) -> None:
    first, second = harness.report(0), harness.report(1)
    harness.submit(first)
    before = sealed(harness)
    assert [said(answer) for answer in harness.submit(second)] == ["WINDOW_CLOSED"]
    assert sealed(harness) == before == expected_sums(harness, [first])


class SealsWhenAsked(ManualClock):
    """A clock that lets the window be sealed just when a call asks whether it is too late."""

    harness: IngestHarness | None = None

    def now(self) -> float:
        harness, self.harness = self.harness, None
        if harness is not None:
            harness.committer.run(lambda: harness.store.seal(WINDOW))
        return super().now()


def test_a_window_that_seals_while_a_call_is_in_progress_refuses_its_reports(
    tmp_path: Path,
) -> None:
    """The seal gets between the call's look at the window and its commit."""
    clock = SealsWhenAsked(REPORTING)
    harness = IngestHarness(tmp_path, meters=1, keys=KEYS, clock=clock)
    message = harness.report(0)
    clock.harness = harness
    assert [said(answer) for answer in harness.submit(message)] == ["WINDOW_CLOSED"]
    assert harness.store.count(WINDOW) == 0
    assert sealed(harness) == []
    harness.close()


def test_too_many_reports_in_progress_are_refused_before_any_work(harness: IngestHarness) -> None:
    crowded = Committer(harness.store, harness.clock, most_in_progress=3)
    with crowded, crowded.place(2):
        with crowded.place(1), pytest.raises(Exhausted) as refused, crowded.place(1):
            pass
        assert refused.value.reason is Reason.OVERLOADED
        assert refused.value.retry_after_s
        with crowded.place(1):
            pass


def submit_until_refused(
    harness: IngestHarness,
) -> tuple[list[report_pb2.Report], GridveilError]:
    """One report after the other; the accepted ones, and why a call was refused."""
    accepted: list[report_pb2.Report] = []
    for meter in range(len(harness.meters)):
        message = harness.report(meter)
        try:
            assert [said(answer) for answer in harness.submit(message)] == ["ACCEPTED"]
        except Unavailable as refused:
            return accepted, refused
        accepted.append(message)
    raise AssertionError("no call was refused")


def test_a_full_store_refuses_the_calls_that_wait_for_it(tmp_path: Path) -> None:
    harness = IngestHarness(tmp_path, meters=200, keys=KEYS, max_bytes=110_000, lanes=1)
    accepted, refused = submit_until_refused(harness)
    assert refused.reason is Reason.STORE_FULL
    assert 0 < len(accepted) < 200
    assert harness.store.count(WINDOW) == len(accepted)
    assert [said(answer) for answer in harness.submit(accepted[0])] == ["DUPLICATE"]
    harness.close()


def test_nothing_is_taken_in_after_the_committer_closed(harness: IngestHarness) -> None:
    harness.committer.close()
    with pytest.raises(Unavailable) as refused:
        harness.submit(harness.report(0))
    assert refused.value.reason is Reason.DRAINING


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.lists(st.tuples(st.integers(0, METERS - 1), st.integers(0, 1)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    restarts=st.sets(st.integers(0, 5)),
)
def test_any_grouping_retry_and_restart_counts_each_meter_once(
    pool: list[list[report_pb2.Report]],
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[list[tuple[int, int]]],
    restarts: set[int],
) -> None:
    harness = IngestHarness(tmp_path_factory.mktemp("ingest"), meters=METERS, keys=KEYS, lanes=2)
    model: dict[int, int] = {}
    for at, call in enumerate(calls):
        answers = harness.submit(*(pool[meter][version] for meter, version in call))
        for (meter, version), answer in zip(call, answers, strict=True):
            stands = model.setdefault(meter, version)
            assert said(answer) in (
                ("ACCEPTED", "DUPLICATE") if stands == version else ("EQUIVOCATION",)
            )
        if at in restarts:
            harness.restart()
    counted = [pool[meter][version] for meter, version in model.items()]
    assert harness.store.count(WINDOW) == len(counted)
    assert sealed(harness) == expected_sums(harness, counted)
    harness.close()


def test_eight_calls_at_once_count_each_meter_once(
    harness: IngestHarness, pool: list[list[report_pb2.Report]]
) -> None:
    """Every call brings every meter, in its own order, half of them with the other report."""
    start = threading.Barrier(8)

    def call(at: int) -> list[tuple[bytes, Answer]]:
        order = [(meter + at) % METERS for meter in range(METERS)]
        messages = [pool[meter][(meter + at) % 2] for meter in order]
        start.wait()
        answers = harness.submit(*messages)
        return [(digest(m), answer) for m, answer in zip(messages, answers, strict=True)]

    with ThreadPoolExecutor(8) as threads:
        results = [pair for result in threads.map(call, range(8)) for pair in result]
    accepted = [found for found, answer in results if said(answer) == "ACCEPTED"]
    assert len(accepted) == len(set(accepted)) == METERS
    for found, answer in results:
        expected = {"ACCEPTED", "DUPLICATE"} if found in accepted else {"EQUIVOCATION"}
        assert said(answer) in expected
    counted = [report for reports in pool for report in reports if digest(report) in accepted]
    assert sealed(harness) == expected_sums(harness, counted)
    assert len(harness.store.equivocations(WINDOW)) == METERS


class TestSums:
    """Checked together or one at a time: the same."""

    @pytest.mark.parametrize("name", ["ckks-2048", "ckks-4096"])
    @pytest.mark.parametrize("count", [1, 2, 15, 16, 40])
    def test_together_and_one_at_a_time_agree(self, name: str, count: int) -> None:
        crypto = parameter_set(name)
        rows = self.rows(crypto, count)
        expected = add(rows, crypto)
        found = canonical_sum([to_bytes(row) for row in rows], crypto, 64)
        assert found is not None
        assert np.array_equal(found, expected)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda row: to_bytes(row)[:-8],
            lambda row: to_bytes(row) + bytes(8),
            lambda row: to_bytes(np.where(np.arange(len(row)) == 5, 1125899906826241, row)),
            lambda row: to_bytes(np.where(np.arange(len(row)) < 128, row, 0)),
            lambda row: b"",
        ],
    )
    def test_one_that_is_not_canonical_spoils_the_sum(self, spoil: object) -> None:
        assert callable(spoil)
        crypto = parameter_set("ckks-2048")
        rows = [to_bytes(row) for row in self.rows(crypto, 4)]
        rows[2] = spoil(np.frombuffer(rows[2], dtype="<u8"))
        assert canonical_sum(rows, crypto, 64) is None
        with pytest.raises(MalformedInput):
            parse_ciphertext(rows[2], crypto, 64)

    def test_a_zero_at_the_end_is_not_a_zero_polynomial(self) -> None:
        crypto = parameter_set("ckks-2048")
        rows = self.rows(crypto, 3)
        rows[1][-1] = 0
        assert canonical_sum([to_bytes(row) for row in rows], crypto, 64) is not None
        assert canonical_sum([], crypto, 64) is None

    def rows(self, crypto: ParameterSet, count: int) -> list[Residues]:
        source = np.random.default_rng(count)
        shape = (count, 128 + crypto.degree)
        return list(source.integers(crypto.modulus - 9, crypto.modulus, shape, dtype=np.uint64))
