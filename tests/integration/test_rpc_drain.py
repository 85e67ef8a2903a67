"""A server that stops: what runs ends, what comes is told so, and the process is gone."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gridveil.profile import Tls
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.v1 import keyholder_pb2, report_pb2, totals_pb2
from gridveil_services.rpc import Call, Role, Server
from tests.support.rpc import (
    CITY,
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
    server,
    serving,
)

IS_BUSY = "/gridveil.v1.Aggregator/GetAggregate"
SIGNAL = 7_777
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("city"))


class Slow:
    """Handlers that go on when the test says so."""

    def __init__(self) -> None:
        self.entered: queue.Queue[Call] = queue.Queue()
        self.open = threading.Event()

    def unary(self, _request: Any, call: Call) -> report_pb2.Receipt:
        self.entered.put(call)
        self.open.wait(30)
        return report_pb2.Receipt(duplicate=True)

    def upload(self, messages: Iterator[Any], call: Call) -> keyholder_pb2.ReleaseReceipt:
        self.entered.put(call)
        return keyholder_pb2.ReleaseReceipt(replayed=len(list(messages)) == 2)

    def watch(self, _request: Any, call: Call) -> Iterator[totals_pb2.WindowOutcome]:
        over = threading.Event()
        call.on_end(over.set)
        self.entered.put(call)
        while call.is_active():
            yield totals_pb2.WindowOutcome(window_start=1)
            over.wait(30)

    def stream(self, reports: Iterator[Any], call: Call) -> Iterator[report_pb2.ReportOutcome]:
        for index, _ in enumerate(reports):
            self.entered.put(call)
            self.open.wait(30)
            yield report_pb2.ReportOutcome(index=index)

    def handlers(self) -> dict[str, Any]:
        return {
            "submit_report": self.unary,
            "release": self.upload,
            "watch_totals": self.watch,
            "stream_reports": self.stream,
        }


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.open.set()


@contextmanager
def draining(running: Server, grace_s: float = 30) -> Iterator[Callable[[], bool]]:
    """While a server drains; gives what waits for its outcome."""
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(running.drain, grace_s)
        yield lambda: outcome.result(timeout=60)


def test_call_in_progress_ends_and_new_ones_are_told_to_come_back(
    certificates: Certificates, slow: Slow
) -> None:
    with serving(certificates, slow.handlers()) as (running, caller):
        watcher = caller.watch(HEALTH_WATCH)
        assert next(watcher) == SERVING
        first = caller.start(SUBMIT)
        slow.entered.get(timeout=10)
        with draining(running) as outcome:
            assert next(watcher) == NOT_SERVING
            assert caller.unary(HEALTH_CHECK) == NOT_SERVING
            for path in (SUBMIT, WATCH, RELEASE):
                error = refusal(list_of(caller.stream(path, iter([b""]))))
                assert isinstance(error, Unavailable)
                assert error.reason is Reason.DRAINING
                assert error.retry_after_s
            assert not first.done()
            slow.open.set()
            assert report_pb2.Receipt.FromString(first.result(timeout=30)).duplicate
            assert outcome()
        assert failure(lambda: caller.unary(SUBMIT)).code() is grpc.StatusCode.UNAVAILABLE


def test_upload_in_progress_ends(certificates: Certificates, slow: Slow) -> None:
    more: queue.Queue[bytes] = queue.Queue()

    def parts() -> Iterator[bytes]:
        yield b""
        yield more.get(timeout=30)

    with serving(certificates, slow.handlers()) as (running, caller):
        watcher = caller.watch(HEALTH_WATCH)
        assert next(watcher) == SERVING
        upload = caller.upload(RELEASE, parts())
        slow.entered.get(timeout=10)
        with draining(running) as outcome:
            assert next(watcher) == NOT_SERVING
            more.put(b"")
            assert keyholder_pb2.ReleaseReceipt.FromString(upload.result()).replayed
            assert outcome()


def test_watchers_are_told_to_come_back_at_once(certificates: Certificates, slow: Slow) -> None:
    with serving(certificates, slow.handlers()) as (running, caller):
        watcher = caller.watch(WATCH)
        call = slow.entered.get(timeout=10)
        next(watcher)
        assert running.drain(3600)
        assert refusal(list_of(watcher)).reason is Reason.DRAINING
        assert not call.is_active()


def test_report_in_progress_on_a_stream_is_answered_before_it_ends(
    certificates: Certificates, slow: Slow
) -> None:
    with serving(certificates, slow.handlers()) as (running, caller):
        watcher = caller.watch(HEALTH_WATCH)
        assert next(watcher) == SERVING
        stream = caller.stream(STREAM, iter([b"", b""]))
        slow.entered.get(timeout=10)
        with draining(running) as outcome:
            assert next(watcher) == NOT_SERVING
            slow.open.set()
            assert report_pb2.ReportOutcome.FromString(next(stream)).index == 0
            assert refusal(list_of(stream)).reason is Reason.DRAINING
            assert outcome()
            assert slow.entered.empty(), "the next report was read while draining"


def test_idle_stream_does_not_hold_the_server_up(certificates: Certificates, slow: Slow) -> None:
    stop, idle = threading.Event(), threading.Event()

    def silent() -> Iterator[bytes]:
        yield b""
        stop.wait(7200)

    def handler(reports: Iterator[Any], _call: Call) -> Iterator[report_pb2.ReportOutcome]:
        next(reports)
        yield report_pb2.ReportOutcome()
        idle.set()
        next(reports)

    with serving(certificates, {"stream_reports": handler}) as (running, caller):
        stream = caller.stream(STREAM, silent())
        next(stream)
        assert idle.wait(30)
        time.sleep(0.3)
        assert running.drain(3600)
        assert failure(list_of(stream)).code() in {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNAVAILABLE,
        }
        stop.set()


def test_call_that_outlasts_the_grace_is_cut_off(certificates: Certificates) -> None:
    entered: queue.Queue[Call] = queue.Queue()

    def handler(_request: Any, call: Call) -> report_pb2.Receipt:
        over = threading.Event()
        call.on_end(over.set)
        entered.put(call)
        over.wait(60)
        return report_pb2.Receipt()

    with serving(certificates, {"submit_report": handler}) as (running, caller):
        call = caller.start(SUBMIT)
        entered.get(timeout=10)
        assert running.drain(0.2)
        assert failure(call.result).code() in {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNAVAILABLE,
        }


def test_handler_that_does_not_end_is_told_of(certificates: Certificates, slow: Slow) -> None:
    with serving(certificates, slow.handlers()) as (running, caller):
        call = caller.start(SUBMIT)
        slow.entered.get(timeout=10)
        assert not running.drain(0.1)
        slow.open.set()
        assert failure(call.result)


def test_draining_twice_is_harmless(certificates: Certificates) -> None:
    with serving(certificates, {}) as (running, _):
        assert running.drain(1)
        assert running.drain(1)
        assert running.wait(10)


def test_service_that_is_not_ready_is_not_serving(certificates: Certificates, slow: Slow) -> None:
    slow.open.set()
    with serving(certificates, slow.handlers()) as (running, caller):
        running.set_ready(False)
        assert caller.unary(HEALTH_CHECK) == NOT_SERVING
        assert caller.unary(SUBMIT), "health is advice, not a lock"
        running.set_ready(True)
        assert caller.unary(HEALTH_CHECK) == SERVING


def test_health_knows_each_service_and_no_other(certificates: Certificates) -> None:
    with serving(certificates, {}) as (_, caller):
        known = b"gridveil.v1.Aggregator"
        assert caller.unary(HEALTH_CHECK, b"\x0a" + bytes([len(known)]) + known) == SERVING
        error = failure(lambda: caller.unary(HEALTH_CHECK, b"\x0a\x01x"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert next(caller.watch(HEALTH_WATCH, b"\x0a\x01x")) == b"\x08\x03"


def test_health_can_be_left_out(certificates: Certificates) -> None:
    with serving(certificates, {}, health=False) as (_, caller):
        code = failure(lambda: caller.unary(HEALTH_CHECK)).code()
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_stopped_port_is_free_for_the_next_server(certificates: Certificates, slow: Slow) -> None:
    slow.open.set()
    first = server(certificates, slow.handlers())
    address = first.start()
    caller = Caller(address, certificates)
    assert caller.unary(SUBMIT)
    assert first.drain(5)
    with server(certificates, slow.handlers(), listen=address) as second:
        second.start()
        assert caller.unary(SUBMIT, wait_for_ready=True, timeout=30)


class Process:
    """A server in a process of its own, of the program below."""

    def __init__(self, certificates: Certificates) -> None:
        folder = certificates.folder / "process"
        certificates.write("process", certificates.issue(Role.AGGREGATOR))
        self.running = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.running.stdout is not None
        self.line = json.loads(self.running.stdout.readline())
        self.caller = Caller(self.line["address"], certificates)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Exit code, rest of stdout, stderr."""
        self.running.send_signal(number)
        out, err = self.running.communicate(timeout=60)
        return self.running.returncode, out, err


@pytest.fixture
def process(certificates: Certificates) -> Iterator[Process]:
    process = Process(certificates)
    yield process
    process.running.kill()
    process.running.communicate()


class TestProcess:
    def test_serving_line_says_where(self, process: Process) -> None:
        assert process.line["event"] == "serving"
        assert process.line["role"] == "aggregator"
        assert process.caller.unary(HEALTH_CHECK) == SERVING

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signal_drains_and_exits_well(self, process: Process, number: signal.Signals) -> None:
        first = process.caller.start(SUBMIT)
        watcher = process.caller.watch(HEALTH_WATCH)
        assert next(watcher) == SERVING
        wait_until_serving_a_call(process)
        code, out, err = process.end(number)
        assert first.result()
        assert (code, out) == (0, "drain begins\nstopped\n")
        events = [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")]
        assert events == ["draining"]

    def test_handler_that_does_not_end_does_not_keep_the_process(self, process: Process) -> None:
        stuck = process.caller.start(SUBMIT, report_pb2.Report(flags=60).SerializeToString())
        wait_until_serving_a_call(process)
        code, out, err = process.end(signal.SIGTERM)
        assert (code, out) == (1, "drain begins\n")
        assert "a handler did not end" in err
        assert failure(stuck.result).code() is grpc.StatusCode.UNAVAILABLE

    def test_signal_that_another_thread_is_given_drains_all_the_same(
        self, process: Process
    ) -> None:
        call = process.caller.start(SUBMIT, report_pb2.Report(flags=SIGNAL).SerializeToString())
        out, _ = process.running.communicate(timeout=60)
        assert (process.running.returncode, out) == (0, "drain begins\nstopped\n")
        assert call.done()

    def test_second_signal_ends_it_at_once(self, process: Process) -> None:
        stuck = process.caller.start(SUBMIT, report_pb2.Report(flags=60).SerializeToString())
        wait_until_serving_a_call(process)
        process.running.send_signal(signal.SIGTERM)
        assert process.running.stdout is not None
        assert process.running.stdout.readline() == "drain begins\n"
        assert process.end(signal.SIGTERM)[0] == -signal.SIGTERM
        assert failure(stuck.result).code() is grpc.StatusCode.UNAVAILABLE


def wait_until_serving_a_call(process: Process) -> None:
    while not process.caller.unary(IS_BUSY):
        time.sleep(0.02)


def list_of(stream: Any) -> Callable[[], list[Any]]:
    return lambda: list(stream)


def main(folder: Path) -> None:
    """The program: handlers that sleep as many seconds as a report's flags say, at least a bit.

    With ``SIGNAL`` the thread of the handler is given a signal instead.
    """
    from gridveil.protocol.v1 import aggregator_pb2
    from gridveil_services.rpc import Binding, ServerOptions, run_until_signal
    from tests.support.rpc import Handlers

    busy = threading.Event()

    def submit(report: report_pb2.Report, _call: Call) -> report_pb2.Receipt:
        busy.set()
        if report.flags == SIGNAL:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            return report_pb2.Receipt()
        time.sleep(report.flags or 0.3)
        return report_pb2.Receipt(duplicate=True)

    def is_busy(_request: Any, _call: Call) -> aggregator_pb2.EncryptedAggregate:
        return aggregator_pb2.EncryptedAggregate(count=int(busy.is_set()))

    descriptor = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
    binding = Binding(
        descriptor,
        Handlers({"submit_report": submit, "get_aggregate": is_busy}),
        {name: {Role.METER} for name in descriptor.methods_by_name},
    )
    options = ServerOptions(
        listen="127.0.0.1:0",
        tls=Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"),
        city_id=CITY,
        role=Role.AGGREGATOR,
        max_message_bytes=1 << 20,
    )
    with Server([binding], options) as running:
        run_until_signal(running, lambda: print("drain begins", flush=True), grace_s=2)
    print("stopped", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
