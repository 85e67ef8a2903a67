"""Deadlines and bounds: nobody waits for ever, and nobody's calls take everybody's workers."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest

from gridveil import transport
from gridveil.protocol.errors import Exhausted, Reason, Unavailable
from gridveil.protocol.v1 import report_pb2, totals_pb2
from gridveil_services.rpc import Call, Patience, Role
from tests.support.http2 import HostileClient
from tests.support.rpc import (
    HEALTH_CHECK,
    HEALTH_WATCH,
    RELEASE,
    STREAM,
    SUBMIT,
    WATCH,
    Caller,
    Certificates,
    failure,
    refusal,
    serving,
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("city"))


class Gate:
    """Handlers that wait until the test lets them go on."""

    def __init__(self) -> None:
        self.entered: queue.Queue[Call] = queue.Queue()
        self.open = threading.Event()
        self.ended: queue.Queue[Call] = queue.Queue()

    def unary(self, _request: Any, call: Call) -> report_pb2.Receipt:
        self.entered.put(call)
        self.open.wait(30)
        return report_pb2.Receipt(duplicate=True)

    def upload(self, messages: Iterator[Any], call: Call) -> Any:
        self.entered.put(call)
        try:
            for _ in messages:
                pass
        finally:
            self.ended.put(call)
        return report_pb2.Receipt()

    def watch(self, _request: Any, call: Call) -> Iterator[totals_pb2.WindowOutcome]:
        """As a service waits for news: until there are some or the call is over."""
        over = threading.Event()
        call.on_end(over.set)
        self.entered.put(call)
        try:
            yield totals_pb2.WindowOutcome(window_start=1)
            over.wait(30)
        finally:
            self.ended.put(call)

    def flood(self, _request: Any, call: Call) -> Iterator[totals_pb2.WindowOutcome]:
        self.entered.put(call)
        try:
            while True:
                yield totals_pb2.WindowOutcome(total={"total": bytes(100_000)})
        finally:
            self.ended.put(call)

    def handlers(self) -> dict[str, Any]:
        return {
            "submit_report": self.unary,
            "release": self.upload,
            "watch_totals": self.watch,
        }


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def silence() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


class TestDeadlines:
    def test_call_without_a_deadline_is_handled_under_the_servers_cap(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        gate.open.set()
        with serving(certificates, gate.handlers(), patience=Patience(call_s=17)) as (_, caller):
            caller.unary(SUBMIT)
            remaining = gate.entered.get(timeout=10).time_remaining()
            assert remaining is not None
            assert remaining <= 17

    def test_handler_sees_the_callers_deadline(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        gate.open.set()
        with serving(certificates, gate.handlers()) as (_, caller):
            caller.unary(SUBMIT, timeout=20)
            remaining = gate.entered.get(timeout=10).time_remaining()
            assert remaining is not None
            assert remaining <= 20

    def test_call_that_outlasts_the_cap_is_cut_off(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), patience=Patience(call_s=0.5)) as (_, caller):
            assert failure(lambda: caller.unary(SUBMIT)).code() is grpc.StatusCode.CANCELLED
            assert not gate.entered.get(timeout=1).is_active()

    def test_stream_without_a_deadline_has_none(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers()) as (_, caller):
            stream = caller.watch(WATCH)
            assert gate.entered.get(timeout=10).time_remaining() is None
            stream.cancel()

    @pytest.mark.parametrize("timeout", [0, 1e-9, 0.05])
    @pytest.mark.parametrize("path", [SUBMIT, WATCH, RELEASE])
    def test_too_little_time_is_refused_before_any_work(
        self, certificates: Certificates, gate: Gate, timeout: float, path: str
    ) -> None:
        gate.open.set()
        with serving(certificates, gate.handlers()) as (_, caller):
            error = failure(lambda: list(caller.stream(path, iter([b""]), timeout=timeout)))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert caller.unary(HEALTH_CHECK)
        assert gate.entered.empty()

    def test_time_spent_waiting_for_a_worker_counts(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), workers=1) as (_, caller):
            first = caller.start(SUBMIT)
            gate.entered.get(timeout=10)
            error = failure(lambda: caller.unary(SUBMIT, timeout=0.3))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            gate.open.set()
            assert first.result()
            assert caller.unary(SUBMIT)
        assert gate.entered.qsize() == 1, "the late call was worked on"

    def test_handler_notices_that_the_deadline_has_passed(self, certificates: Certificates) -> None:
        noticed: queue.Queue[bool] = queue.Queue()

        def handler(_request: Any, call: Call) -> report_pb2.Receipt:
            over = threading.Event()
            call.on_end(over.set)
            noticed.put(over.wait(30) and not call.is_active())
            return report_pb2.Receipt()

        with serving(certificates, {"submit_report": handler}, workers=1) as (_, caller):
            error = failure(lambda: caller.unary(SUBMIT, timeout=0.5))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert noticed.get(timeout=30)

    def test_handler_notices_that_the_caller_has_left(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers()) as (_, caller):
            future = caller.start(SUBMIT)
            call = gate.entered.get(timeout=10)
            assert call.is_active()
            over = threading.Event()
            call.on_end(over.set)
            future.cancel()
            assert over.wait(30)
            assert not call.is_active()
            late = threading.Event()
            call.on_end(late.set)
            assert late.is_set()


class TestUnaryCalls:
    def test_as_many_as_workers_and_backlog_are_taken_and_others_are_told_when_to_retry(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), workers=2, backlog=3) as (_, caller):
            calls = [caller.start(SUBMIT) for _ in range(12)]
            eventually(lambda: sum(call.done() for call in calls) >= 7)
            refused = [refusal(call.result) for call in calls if call.done()]
            assert [error.reason for error in refused] == [Reason.OVERLOADED] * 7
            assert all(isinstance(e, Exhausted) and e.retry_after_s for e in refused)
            assert gate.entered.qsize() <= 2
            gate.open.set()
            eventually(lambda: all(call.done() for call in calls))
            assert [call.exception() for call in calls].count(None) == 5
            assert eventually(lambda: caller.unary(SUBMIT))

    def test_calls_whose_callers_left_do_not_pile_up(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        """A handler keeps its worker after the deadline; the queue must stay bounded."""
        with serving(certificates, gate.handlers(), workers=1, backlog=1) as (_, caller):
            handled = caller.start(SUBMIT)
            gate.entered.get(timeout=10)
            handled.cancel()
            only_one_waits(caller).cancel()
            hear_all_before(caller)
            assert refusal(lambda: caller.unary(SUBMIT)).reason is Reason.OVERLOADED
            gate.open.set()
            assert eventually(lambda: caller.unary(SUBMIT))

    def test_call_whose_caller_left_while_it_waited_is_not_worked_on(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), workers=1, backlog=1) as (_, caller):
            first = caller.start(SUBMIT)
            gate.entered.get(timeout=10)
            only_one_waits(caller).cancel()
            hear_all_before(caller)
            gate.open.set()
            assert first.result()
            assert eventually(lambda: caller.unary(SUBMIT))
        assert gate.entered.qsize() == 1

    def test_senders_that_stall_keep_nobody_from_work_and_are_given_up(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        gate.open.set()
        patience = Patience(body_s=2)
        with serving(certificates, gate.handlers(), workers=1, backlog=4, patience=patience) as (
            _,
            caller,
        ):
            stalled = [caller.upload(SUBMIT, silence()) for _ in range(4)]
            assert caller.unary(SUBMIT)
            for call in stalled:
                assert failure(call.result).code() is grpc.StatusCode.CANCELLED
            assert gate.entered.qsize() == 1

    def test_sender_that_never_says_that_this_was_all_is_given_up(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        gate.open.set()
        with serving(certificates, gate.handlers(), patience=Patience(body_s=0.5)) as (_, caller):
            messages = itertools.chain([b""], silence())
            assert failure(caller.upload(SUBMIT, messages).result).code() is (
                grpc.StatusCode.CANCELLED
            )
            assert gate.entered.empty()

    def test_answers_that_nobody_takes_are_bounded_and_given_up(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        """HTTP/2 flow control lets a client leave answers with the server."""
        gate.open.set()
        patience = Patience(take_s=3)
        with (
            serving(certificates, gate.handlers(), workers=1, backlog=1, patience=patience) as (
                running,
                caller,
            ),
            HostileClient(str(running.address), certificates.tls(Role.METER)) as hostile,
        ):
            streams = {hostile.call(SUBMIT) for _ in range(2)}
            for _ in streams:
                gate.entered.get(timeout=30)
            assert refusal(lambda: caller.unary(SUBMIT)).reason is Reason.OVERLOADED
            hostile.wait_for_resets(streams)
            assert eventually(lambda: caller.unary(SUBMIT))

    def test_handlers_may_keep_their_calls(self, certificates: Certificates, gate: Gate) -> None:
        """A call that kept its HTTP/2 stream would block its connection after 128 of them."""
        gate.open.set()
        with serving(certificates, gate.handlers()) as (_, caller):
            assert all(caller.unary(SUBMIT) for _ in range(300))
        assert not any(gate.entered.get(timeout=1).is_active() for _ in range(300))

    def test_callback_that_fails_costs_no_place(
        self, certificates: Certificates, gate: Gate, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def handler(_request: Any, call: Call) -> report_pb2.Receipt:
            call.on_end(queue.Queue[None]().get_nowait)
            call.on_end(gate.open.set)
            return report_pb2.Receipt(duplicate=True)

        with serving(certificates, {"submit_report": handler}, workers=1, backlog=1) as (_, caller):
            for _ in range(5):
                assert eventually(lambda: caller.unary(SUBMIT))
        assert gate.open.is_set()
        assert "a callback failed" in capfd.readouterr().err

    def test_health_is_answered_while_all_workers_are_busy(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), workers=1, backlog=0) as (_, caller):
            busy = caller.start(SUBMIT)
            gate.entered.get(timeout=10)
            assert caller.unary(HEALTH_CHECK) == b"\x08\x01"
            gate.open.set()
            assert busy.result()


class TestStreams:
    def test_streams_are_bounded_and_take_no_workers(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        gate.open.set()
        with serving(certificates, gate.handlers(), workers=1, backlog=0, max_streams=3) as (
            _,
            caller,
        ):
            streams = [caller.watch(WATCH) for _ in range(3)]
            for stream in streams:
                assert next(stream)
            for path in (WATCH, STREAM, RELEASE):
                error = refusal(functools.partial(list, caller.stream(path, iter([b""]))))
                assert isinstance(error, Exhausted)
                assert error.reason is Reason.OVERLOADED
                assert error.retry_after_s
            assert caller.unary(SUBMIT)
            streams[0].cancel()
            gate.ended.get(timeout=30)
            assert eventually(lambda: next(caller.watch(WATCH)))

    def test_handler_of_a_stream_ends_with_its_caller(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers()) as (_, caller):
            stream = caller.watch(WATCH)
            call = gate.entered.get(timeout=10)
            stream.cancel()
            assert gate.ended.get(timeout=30) is call
            assert not call.is_active()

    def test_handler_of_an_upload_notices_that_its_sender_left(
        self, certificates: Certificates
    ) -> None:
        """By an error of its iterator or, if the library takes it for an end, by its call."""
        seen: queue.Queue[bool] = queue.Queue()
        entered = threading.Event()

        def handler(messages: Iterator[Any], call: Call) -> Any:
            over = threading.Event()
            call.on_end(over.set)
            entered.set()
            try:
                list(messages)
            except Unavailable as error:
                seen.put(error.reason is Reason.UNREACHABLE)
                raise
            seen.put(over.wait(30) and not call.is_active())

        with serving(certificates, {"release": handler}) as (_, caller):
            upload = caller.upload(RELEASE, silence())
            assert entered.wait(10)
            upload.cancel()
            assert seen.get(timeout=60)

    def test_idle_sender_is_given_up_also_while_another_thread_reads(
        self, certificates: Certificates
    ) -> None:
        def handler(reports: Iterator[Any], _call: Call) -> Iterator[report_pb2.ReportOutcome]:
            reader = threading.Thread(target=exhaust, args=(reports,))
            reader.start()
            for index in range(3):
                time.sleep(0.1)
                yield report_pb2.ReportOutcome(index=index)
            reader.join(30)
            yield report_pb2.ReportOutcome(index=int(reader.is_alive()))

        with serving(certificates, {"stream_reports": handler}, patience=Patience(idle_s=0.5)) as (
            _,
            caller,
        ):
            error = failure(functools.partial(list, caller.stream(STREAM, silence())))
            assert error.code() is grpc.StatusCode.CANCELLED

    def test_sender_that_is_idle_too_long_is_given_up(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers(), patience=Patience(idle_s=0.5)) as (_, caller):
            upload = caller.upload(RELEASE, silence())
            assert failure(upload.result).code() is grpc.StatusCode.CANCELLED
            gate.ended.get(timeout=30)

    def test_reader_that_does_not_read_is_given_up_and_stops_the_handler(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        handlers = {"watch_totals": gate.flood}
        with serving(certificates, handlers, patience=Patience(take_s=0.5)) as (_, caller):
            stream = caller.watch(WATCH)
            gate.ended.get(timeout=30)
            assert failure(lambda: list(stream)).code() is grpc.StatusCode.CANCELLED

    def test_reader_that_reads_slowly_is_not_given_up(self, certificates: Certificates) -> None:
        def handler(_request: Any, _call: Call) -> Iterator[totals_pb2.WindowOutcome]:
            for window in range(12):
                time.sleep(0.2)
                yield totals_pb2.WindowOutcome(window_start=window)

        patience = Patience(call_s=2, body_s=2, idle_s=2, take_s=2)
        with serving(certificates, {"watch_totals": handler}, patience=patience) as (_, caller):
            assert len(list(caller.watch(WATCH))) == 12

    def test_watchers_of_health_are_bounded_on_their_own(
        self, certificates: Certificates, gate: Gate
    ) -> None:
        with serving(certificates, gate.handlers()) as (_, caller):
            watchers = [caller.watch(HEALTH_WATCH) for _ in range(4)]
            assert [next(watcher) for watcher in watchers] == [b"\x08\x01"] * 4
            error = refusal(lambda: next(caller.watch(HEALTH_WATCH)))
            assert error.reason is Reason.OVERLOADED
            assert caller.unary(HEALTH_CHECK)
            assert next(caller.watch(WATCH))


def test_connections_are_bounded(certificates: Certificates, gate: Gate) -> None:
    gate.open.set()
    with serving(certificates, gate.handlers(), max_connections=3) as (running, first):
        callers = [first, *(Caller(str(running.address), certificates) for _ in range(5))]
        outcomes = [outcome(caller) for caller in callers]
        assert outcomes[0] is None
        assert 1 <= outcomes.count(None) <= 3
        assert set(outcomes) == {None, Reason.UNREACHABLE}
        for caller in callers[1:]:
            caller.close()
        assert eventually(lambda: Caller(str(running.address), certificates).unary(SUBMIT))


def test_flood_is_refused_and_the_server_goes_on(certificates: Certificates, gate: Gate) -> None:
    gate.open.set()
    with serving(certificates, gate.handlers()) as (_, caller), ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: outcome(caller), range(400)))
        assert set(outcomes) <= {None, Reason.OVERLOADED}
        assert None in outcomes
        assert eventually(lambda: caller.unary(SUBMIT))


def only_one_waits(caller: Caller) -> Any:
    """The one call of two that a server without a worker but with a place to wait keeps."""
    two = [caller.start(SUBMIT) for _ in range(2)]
    refused = eventually(lambda: [call for call in two if call.done()])
    assert [refusal(call.result).reason for call in refused] == [Reason.OVERLOADED]
    (waiting,) = (call for call in two if call not in refused)
    return waiting


def hear_all_before(caller: Caller) -> None:
    """Let the server hear what was said on this connection: it hears a new call after that."""
    assert caller.unary(HEALTH_CHECK)


def exhaust(messages: Iterator[Any]) -> None:
    with suppress(Unavailable):
        list(messages)


def outcome(caller: Any) -> Reason | None:
    try:
        caller.unary(SUBMIT)
    except grpc.RpcError as error:
        return transport.from_rpc_error(error).reason
    return None


def eventually(attempt: Any) -> Any:
    """The first true result of ``attempt``; places are given back a moment after the answer."""
    for _ in range(300):
        try:
            if result := attempt():
                return result
        except (grpc.RpcError, pytest.fail.Exception):
            pass
        time.sleep(0.1)
    return pytest.fail("it never happened")
