"""What a client decides, driven step by step without any network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridveil.clock import ManualClock
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Entry, Outbox, State
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.pacing import LEARN_S
from gridveil.profile import Profile, Tls
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import (
    GridveilError,
    NotAuthentic,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.reporting import ReportBuilder, signed_reading
from gridveil.submission import Call, Prepared, Steps, Submitter, encode_report, judge
from gridveil.submission_calls import run_steps
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import CITY_ID, WINDOW, city_policy

END = WINDOW + 900
CLOSES = END + 300
METER = MeterKeys.create()
NO_TLS = Tls(Path("ca"), Path("cert"), Path("key"))


@pytest.fixture(scope="module")
def city() -> CityKeys:
    return city_keys()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db", CITY_ID) as opened:
        yield opened


class Aggregator:
    """Answers calls from a list: a reply, or an error; every call is kept."""

    def __init__(self, city: CityKeys, *answers: Any) -> None:
        self.city = city
        self.answers = list(answers)
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Any:
        self.calls.append(call)
        if call.method == "GetCityParameters":
            return self.city.signed()
        answer = self.answers.pop(0)
        if isinstance(answer, GridveilError):
            raise answer
        return answer

    def sent(self) -> list[report_pb2.Report]:
        return [call.request for call in self.calls if isinstance(call.request, report_pb2.Report)]


def submitter(city: CityKeys, outbox: Outbox, clock: ManualClock, **options: Any) -> Submitter:
    profile = Profile(CITY_ID, city.identity_key, True, {}, NO_TLS)

    def build(parameters: Any, _meter: bytes, window: int, values: Any) -> Any:
        return ReportBuilder(parameters, METER).build(window, values)

    return Submitter(profile, outbox, clock, build, draw=lambda: 0.5, **options)


def record(subject: Submitter, wh: int = 412, window: int = WINDOW) -> Steps[None]:
    return subject.record(METER.meter_id, window, signed_reading(wh))


def keep_reports(subject: Submitter, parameters: CityParameters, meters: list[MeterKeys]) -> None:
    values = signed_reading(5)
    subject.keep(
        parameters.policy,
        parameters.digest,
        WINDOW,
        [
            Prepared(
                meter.meter_id,
                values,
                encode_report(ReportBuilder(parameters, meter).build(WINDOW, values)),
            )
            for meter in meters
        ],
    )


def receipt(report: report_pb2.Report) -> report_pb2.Receipt:
    return report_pb2.Receipt(report_digest=parse_report(report).claim.digest())


def the_entry(outbox: Outbox) -> Entry:
    (entry,) = outbox.entries()
    return entry


def waiting(attempts: int) -> Entry:
    return Entry(WINDOW, METER.meter_id, {}, State.WAITING, b"", attempts, 0.0, None, False)


@pytest.mark.parametrize("reason", Reason)
def test_an_answer_ends_an_entry_exactly_as_the_table_says(reason: Reason) -> None:
    verdict = judge(waiting(0), WrongState(reason, ""), END, CLOSES, lambda: 0.5)
    gives_up = OUTCOMES[reason] is Ending.GIVE_UP
    assert verdict.state is (State.GAVE_UP if gives_up else State.WAITING)
    assert verdict.reason is reason
    assert gives_up or verdict.due_at > END


def test_a_report_without_an_answer_is_given_up_a_while_after_its_window() -> None:
    lost = Unavailable(Reason.UNREACHABLE, "")
    before = judge(waiting(99), lost, CLOSES + LEARN_S - 1, CLOSES, lambda: 0.5)
    after = judge(waiting(99), lost, CLOSES + LEARN_S, CLOSES, lambda: 0.5)
    assert before.state is State.WAITING
    assert (after.state, after.reason) == (State.GAVE_UP, Reason.WINDOW_CLOSED)
    assert not after.answered


def test_the_servers_retry_info_is_honoured() -> None:
    busy = Unavailable(Reason.STORE_UNAVAILABLE, "", retry_after_s=44)
    assert judge(waiting(0), busy, END, CLOSES, lambda: 0.0).due_at == END + 44


def test_a_reading_is_persisted_before_anything_is_sent(city: CityKeys, outbox: Outbox) -> None:
    clock = ManualClock(END)
    subject, server = submitter(city, outbox, clock), Aggregator(city)
    run_steps(record(subject), server)
    assert [call.method for call in server.calls] == ["GetCityParameters"]
    clock.move_to(END + 200)
    steps = subject.submit_due()
    call = next(steps)
    assert call.method == "SubmitReport"
    assert outbox.due(1e12, 1)[0].report == call.request.SerializeToString()
    assert the_entry(outbox).attempts == 1


@pytest.mark.parametrize("other", [412, 413])
def test_parameters_of_another_key_are_refused_and_nothing_is_persisted(
    city: CityKeys, outbox: Outbox, other: int
) -> None:
    subject = submitter(city, outbox, ManualClock(END))
    impostor = city_keys(identity=type(city.identity)(bytes(32)))
    with pytest.raises(NotAuthentic) as refused:
        run_steps(record(subject, other), Aggregator(impostor))
    assert refused.value.reason is Reason.KEY_NOT_PINNED
    assert outbox.entries() == []
    assert outbox.parameters() == []


def test_parameters_of_another_city_of_the_same_key_holder_are_refused(
    city: CityKeys, outbox: Outbox
) -> None:
    subject = submitter(city, outbox, ManualClock(END))
    other = city_keys(city_policy(city_id=bytes([7]) * 16))
    with pytest.raises(NotAuthentic) as refused:
        run_steps(record(subject), Aggregator(other))
    assert refused.value.reason is Reason.KEY_NOT_PINNED
    assert outbox.entries() == []


def test_parameters_that_do_not_serve_the_window_are_refused(
    city: CityKeys, outbox: Outbox
) -> None:
    subject = submitter(city, outbox, ManualClock(END))
    with pytest.raises(WrongState) as refused:
        run_steps(record(subject), Aggregator(city_keys(first_window=WINDOW + 900)))
    assert refused.value.reason is Reason.KEY_EPOCH
    assert outbox.entries() == []


@pytest.mark.parametrize(
    ("now", "window", "reason"),
    [
        (END - 60.1, WINDOW, Reason.WINDOW_TOO_EARLY),
        (CLOSES, WINDOW, Reason.WINDOW_CLOSED),
        (END, WINDOW + 1, Reason.WINDOW_MISALIGNED),
    ],
)
def test_a_window_that_takes_no_reports_is_not_recorded(
    city: CityKeys, outbox: Outbox, now: float, window: int, reason: Reason
) -> None:
    subject = submitter(city, outbox, ManualClock(now))
    with pytest.raises(GridveilError) as refused:
        run_steps(record(subject, window=window), Aggregator(city))
    assert refused.value.reason is reason
    assert outbox.entries() == []


def test_a_wrong_reading_is_refused_before_the_aggregator_is_asked_again(
    city: CityKeys, outbox: Outbox
) -> None:
    subject, server = submitter(city, outbox, ManualClock(END)), Aggregator(city)
    run_steps(record(subject), server)
    with pytest.raises(GridveilError) as refused:
        run_steps(record(subject, 200_001, WINDOW + 1), server)
    assert refused.value.reason is Reason.READING_INVALID
    assert len(server.calls) == 1


def test_known_parameters_are_used_after_a_restart_but_checked_against_the_pin(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    run_steps(record(submitter(city, outbox, clock)), Aggregator(city))
    clock.move_to(END + 900)
    again = Aggregator(city)
    run_steps(record(submitter(city, outbox, clock), window=END), again)
    assert again.calls == []
    impostor = city_keys(identity=type(city.identity)(bytes(32)))
    repinned = submitter(impostor, outbox, clock)
    with pytest.raises(NotAuthentic):
        run_steps(record(repinned, 7, END), Aggregator(city))


def test_a_lost_answer_is_asked_for_with_the_same_bytes(city: CityKeys, outbox: Outbox) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    server = Aggregator(city, *[Unavailable(Reason.UNREACHABLE, "")] * 3)
    run_steps(record(subject), server)
    while len(server.sent()) < 3:
        clock.move_to(outbox.next_due() or 0)
        run_steps(subject.submit_due(), server)
    first, second, third = server.sent()
    assert first == second == third
    server.answers = [receipt(first)]
    clock.move_to(outbox.next_due() or 0)
    run_steps(subject.submit_due(), server)
    entry = the_entry(outbox)
    assert (entry.state, entry.attempts) == (State.SETTLED, 4)


def test_the_receipt_of_another_report_settles_nothing(city: CityKeys, outbox: Outbox) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    server = Aggregator(city, report_pb2.Receipt(report_digest=bytes(32)))
    run_steps(record(subject), server)
    clock.move_to(outbox.next_due() or 0)
    run_steps(subject.submit_due(), server)
    assert (the_entry(outbox).state, the_entry(outbox).reason) == (State.WAITING, Reason.INTERNAL)


def test_a_new_epoch_gets_the_same_reading_under_a_fresh_blinding(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    server = Aggregator(city, WrongState(Reason.KEY_EPOCH, ""))
    run_steps(record(subject), server)
    server.city = city_keys(name=b"epoch-0000000001")
    clock.move_to(outbox.next_due() or 0)
    run_steps(subject.submit_due(), server)
    (rebuilt,) = outbox.due(1e12, 1)
    assert rebuilt.parameters_digest == server.city.parameters.digest
    assert rebuilt.due_at > clock.now()
    old = parse_report(server.sent()[0])
    new = parse_report(report_pb2.Report.FromString(rebuilt.report or b""))
    values, blinding = city.open_report(old, METER.member)
    assert server.city.open_report(new, METER.member)[0] == values
    assert server.city.open_report(new, METER.member)[1] != blinding


def test_of_epochs_that_overlap_the_successor_is_used_whichever_was_fetched_last(
    city: CityKeys, outbox: Outbox
) -> None:
    """An epoch that was destroyed before its end still says that it serves the later windows."""
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    successor = city_keys(first_window=END, windows=3, name=b"epoch-0000000001")
    server = Aggregator(successor)
    run_steps(subject.parameters(END), server)
    server.city = city
    run_steps(subject.parameters(WINDOW), server)
    clock.move_to(END + 900)
    run_steps(record(subject, window=END), server)
    entry = outbox.find(END, METER.meter_id)
    assert entry is not None
    assert entry.parameters_digest == successor.parameters.digest


def test_a_claimed_change_of_epoch_without_one_changes_no_report(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    server = Aggregator(city, *[WrongState(Reason.KEY_EPOCH, "")] * 2)
    run_steps(record(subject), server)
    for _ in range(2):
        clock.move_to(outbox.next_due() or 0)
        run_steps(subject.submit_due(), server)
    assert server.sent()[0] == server.sent()[1]


def test_a_change_of_epoch_to_an_unpinned_key_keeps_the_report(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock)
    server = Aggregator(city, WrongState(Reason.KEY_EPOCH, ""))
    run_steps(record(subject), server)
    before = outbox.due(1e12, 1)[0].report
    server.city = city_keys(name=b"epoch-0000000001", identity=type(city.identity)(bytes(32)))
    clock.move_to(outbox.next_due() or 0)
    run_steps(subject.submit_due(), server)
    entry = outbox.due(1e12, 1)[0]
    assert (entry.state, entry.report) == (State.WAITING, before)


def first_window_of_a_new_epoch(
    subject: Submitter, outbox: Outbox, clock: ManualClock, server: Aggregator
) -> Entry:
    """Settle a window of a one-window epoch, and record the next one's reading, 55 Wh."""
    run_steps(record(subject), server)
    clock.move_to(outbox.next_due() or 0)
    request = next(subject.submit_due()).request
    assert isinstance(request, report_pb2.Report)
    server.answers = [receipt(request)]
    clock.move_to(outbox.next_due() or 0)
    run_steps(subject.submit_due(), server)
    asked = len(server.calls)
    clock.move_to(END + 900)
    run_steps(record(subject, 55, END), server)
    assert len(server.calls) == asked
    kept = outbox.find(END, METER.meter_id)
    assert kept is not None
    assert (kept.values, kept.parameters_digest) == (signed_reading(55), None)
    return kept


def test_the_report_of_a_new_epoch_is_made_when_it_is_due_not_when_all_meters_record(
    outbox: Outbox,
) -> None:
    clock = ManualClock(END)
    short = city_keys(windows=1)
    subject, server = submitter(short, outbox, clock), Aggregator(short)
    kept = first_window_of_a_new_epoch(subject, outbox, clock, server)
    server.city = city_keys(first_window=END, name=b"epoch-0000000001")
    server.answers = [Unavailable(Reason.UNREACHABLE, "")]
    clock.move_to(kept.due_at)
    run_steps(subject.submit_due(), server)
    run_steps(subject.submit_due(), server)
    (sent,) = [report for report in server.sent() if report.window_start == END]
    values, _ = server.city.open_report(parse_report(sent), METER.member)
    assert values == [55, 0]


def test_a_reading_of_a_new_epoch_is_not_encrypted_for_an_unpinned_key(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    short = city_keys(windows=1)
    subject, server = submitter(short, outbox, clock), Aggregator(short)
    kept = first_window_of_a_new_epoch(subject, outbox, clock, server)
    server.city = city_keys(first_window=END, identity=type(city.identity)(bytes(32)))
    clock.move_to(kept.due_at)
    run_steps(subject.submit_due(), server)
    (entry,) = outbox.due(1e12, 1)
    assert (entry.state, entry.reason) == (State.WAITING, Reason.KEY_NOT_PINNED)
    assert entry.report is None


def test_without_any_parameters_an_unreachable_aggregator_is_an_error(
    city: CityKeys, outbox: Outbox
) -> None:
    def unreachable(_call: Call) -> Any:
        raise Unavailable(Reason.UNREACHABLE, "")

    with pytest.raises(Unavailable):
        run_steps(record(submitter(city, outbox, ManualClock(END))), unreachable)
    assert outbox.entries() == []


def test_a_gateway_sends_one_batch_and_reads_an_outcome_for_each(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    subject, server = submitter(city, outbox, clock, batches=True), Aggregator(city)
    parameters = run_steps(subject.parameters(WINDOW), server)
    meters = [MeterKeys.create() for _ in range(3)]
    keep_reports(subject, parameters, meters)
    clock.move_to(outbox.next_due() or 0)
    steps = subject.submit_due()
    call = next(steps)
    assert isinstance(call.request, aggregator_pb2.SubmitReportsRequest)
    sent = list(call.request.reports)
    assert len(sent) == 3
    outcomes = [report_pb2.ReportOutcome(index=n, receipt=receipt(r)) for n, r in enumerate(sent)]
    outcomes[1].error.code = 9
    with pytest.raises(StopIteration):
        steps.send(aggregator_pb2.SubmitReportsResponse(outcomes=outcomes))
    states = {entry.meter_id: entry.state for entry in outbox.entries()}
    assert [states[report.meter_id] for report in sent] == [
        State.SETTLED,
        State.WAITING,
        State.SETTLED,
    ]


@pytest.mark.parametrize("indices", [[], [0], [0, 1, 2, 3], [1, 0, 2], [0, 0, 0]])
def test_outcomes_that_do_not_match_the_batch_settle_nothing(
    city: CityKeys, outbox: Outbox, indices: list[int]
) -> None:
    clock = ManualClock(END)
    subject = submitter(city, outbox, clock, batches=True)
    parameters = run_steps(subject.parameters(WINDOW), Aggregator(city))
    meters = [MeterKeys.create() for _ in range(3)]
    keep_reports(subject, parameters, meters)
    clock.move_to(outbox.next_due() or 0)
    steps = subject.submit_due()
    request = next(steps).request
    assert isinstance(request, aggregator_pb2.SubmitReportsRequest)
    sent = list(request.reports)
    outcomes = [report_pb2.ReportOutcome(index=n, receipt=receipt(sent[n % 3])) for n in indices]
    with pytest.raises(StopIteration):
        steps.send(aggregator_pb2.SubmitReportsResponse(outcomes=outcomes))
    assert {entry.state for entry in outbox.entries()} == {State.WAITING}


def test_ended_entries_are_forgotten_an_hour_after_their_window_closed(
    city: CityKeys, outbox: Outbox
) -> None:
    clock = ManualClock(END)
    subject, server = submitter(city, outbox, clock), Aggregator(city)
    run_steps(record(subject), server)
    clock.move_to(outbox.next_due() or 0)
    steps = subject.submit_due()
    request = next(steps).request
    assert isinstance(request, report_pb2.Report)
    with pytest.raises(StopIteration):
        steps.send(receipt(request))
    for now, left in ((CLOSES + 3600, 1), (CLOSES + 5400, 0)):
        clock.move_to(now)
        run_steps(subject.submit_due(), server)
        assert len(outbox.entries()) == left
