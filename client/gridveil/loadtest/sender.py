"""A process that sends reports as a gateway does, and counts what became of them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from gridveil.clock import Clock
from gridveil.loadtest.load import Load
from gridveil.loadtest.maker import Batch, WantWindow, WindowMade
from gridveil.loadtest.schedule import OpenLoop
from gridveil.loadtest.tally import Prepared, Tally, heals
from gridveil.loadtest.worker import Pipe, Progress, Ready
from gridveil.pacing import next_attempt
from gridveil.profile import Profile
from gridveil.protocol.errors import GridveilError, InternalFault, Reason
from gridveil.protocol.report import FLAGS_KNOWN
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.protocol.v1.report_pb2 import Receipt
from gridveil.submission import CALL_TIMEOUT_S
from gridveil.transport import connect_async, from_rpc_error, from_status

SENT = "reports answered"
_METHOD = "/gridveil.v1.Aggregator/SubmitReports"
_ROLE = "aggregator"
_TELL_S = 0.25
"""Real seconds between two messages of progress."""
_CONNECT_S = 20.0
_AFTER_CLOSE_S = 0.05
"""Real seconds after a window's closing before its late reports are sent."""

Answers = Sequence[Receipt | GridveilError]
_draw = random.SystemRandom().random


@dataclass(frozen=True)
class SendJob:
    """What a sender is started with."""

    load: Load
    process: int
    profile: Profile
    clock: Clock
    parameters_digest: bytes


@dataclass(frozen=True)
class Timed:
    """A window of the test."""

    number: int
    start: int
    closes: float
    """Metering time."""
    begin: float
    """When its first report is meant to be sent, seconds of the machine's steady clock."""


@dataclass(frozen=True)
class WindowSent:
    """What became of a window's reports, as far as this process sent them."""

    number: int
    tally: Tally


class Stop:
    """The parent wants to have what was counted so far, and no more."""


class Done:
    """A process has nothing more to send."""


def send(parent: Pipe, maker: Pipe, job: SendJob) -> None:
    """Work until all windows are sent, or the parent says stop or hangs up."""
    ciphertexts: list[bytes] = maker.recv()
    asyncio.run(_send(parent, maker, job, ciphertexts))


async def _send(parent: Pipe, maker: Pipe, job: SendJob, ciphertexts: list[bytes]) -> None:
    profile = job.profile
    async with connect_async(
        profile.endpoint(_ROLE), _ROLE, profile.city_id, profile.tls
    ) as channel:
        with suppress(TimeoutError):  # the calls say what is wrong
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
        parent.send(Ready())
        windows: list[Timed] = await asyncio.to_thread(parent.recv)
        sender = Sender(job, channel, ciphertexts, windows, maker)
        stopped = asyncio.create_task(asyncio.to_thread(_wait_for_stop, parent))
        sending = asyncio.create_task(sender.run(parent.send))
        await asyncio.wait({stopped, sending}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            for number, tally in sender.open.items():
                parent.send(WindowSent(number, tally))
        else:
            sending.result()
        parent.send(Done())
        await stopped


def _wait_for_stop(parent: Pipe) -> None:
    with suppress(EOFError, OSError):
        parent.recv()


class Sender:
    """Sends the windows of a test, one after the other; late reports beside the next ones."""

    def __init__(
        self,
        job: SendJob,
        channel: grpc.aio.Channel,
        ciphertexts: Sequence[bytes],
        windows: Sequence[Timed],
        maker: Pipe,
    ) -> None:
        self._job = job
        self._call: Any = channel.unary_unary(
            _METHOD, response_deserializer=aggregator_pb2.SubmitReportsResponse.FromString
        )
        self._ciphertexts = ciphertexts
        self._windows = windows
        self._maker = maker
        self._supply = {window.number: _Supply() for window in windows}
        self.open: dict[int, Tally] = {}
        """Windows that were begun and not ended."""
        self._answered = 0

    async def run(self, tell: Callable[[Any], None]) -> None:
        """Send all windows; each is told once all of its reports are settled or given up."""
        threading.Thread(target=self._take, args=(asyncio.get_running_loop(),), daemon=True).start()
        self._ask(0)
        async with asyncio.TaskGroup() as ends:
            telling = ends.create_task(self._tell_progress(tell))
            endings = []
            for window in self._windows:
                tally = self.open[window.number] = Tally(begun=window.begin)
                await _sleep_until(window.begin)
                self._ask(window.number + 1)
                calls = await self._send_timely(window, tally)
                endings.append(ends.create_task(self._end(window, tally, calls, tell)))
            await asyncio.gather(*endings)
            telling.cancel()
        tell(Progress(SENT, self._answered))

    def _ask(self, number: int) -> None:
        """Have a window's reports made while those before it are sent."""
        if number < len(self._windows):
            self._maker.send(WantWindow(number, self._windows[number].start))

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        """What the maker makes, as it comes; runs in a thread."""
        with suppress(EOFError, OSError, RuntimeError):
            while True:
                made: Batch | WindowMade = self._maker.recv()
                loop.call_soon_threadsafe(self._supply[made.number].put, made)

    async def _tell_progress(self, tell: Callable[[Any], None]) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            count, self._answered = self._answered, 0
            tell(Progress(SENT, count))

    async def _send_timely(self, window: Timed, tally: Tally) -> list[asyncio.Task[None]]:
        """Send a window's reports in time; the calls whose answers are not awaited here."""
        if self._job.load.rate is None:
            await self._closed_loop(window, tally)
            return []
        return await self._open_loop(window, tally, self._job.load.rate)

    async def _open_loop(
        self, window: Timed, tally: Tally, rate: float
    ) -> list[asyncio.Task[None]]:
        """Each call at its time, whatever became of those before."""
        load, process = self._job.load, self._job.process
        schedule = OpenLoop(window.begin, rate, load.batch, load.processes)
        calls: list[asyncio.Task[None]] = []
        while batch := await self._supply[window.number].timely.get():
            intended = schedule.intended(process, len(calls))
            await asyncio.sleep(schedule.wait(process, len(calls), time.monotonic()))
            tally.behind_s = max(tally.behind_s, time.monotonic() - intended)
            calls.append(asyncio.create_task(self._deliver(window, tally, batch, intended)))
        return calls

    async def _closed_loop(self, window: Timed, tally: Tally) -> None:
        """So many calls in flight, always."""
        supply = self._supply[window.number]

        async def one_after_the_other() -> None:
            while batch := await supply.timely.get():
                await self._deliver(window, tally, batch, time.monotonic())
            supply.timely.put_nowait(None)  # for the others

        await asyncio.gather(*(one_after_the_other() for _ in range(self._job.load.in_flight)))

    async def _end(
        self,
        window: Timed,
        tally: Tally,
        calls: Sequence[asyncio.Task[None]],
        tell: Callable[[Any], None],
    ) -> None:
        await asyncio.gather(*calls)
        clock = self._job.clock
        late = self._supply[window.number].late
        if batch := await late.get():
            await asyncio.sleep(clock.real(window.closes - clock.now()) + _AFTER_CLOSE_S)
            while batch is not None:
                await self._deliver(window, tally, batch, None)
                batch = await late.get()
        tell(WindowSent(window.number, self.open.pop(window.number)))
        del self._supply[window.number]

    async def _deliver(
        self, window: Timed, tally: Tally, batch: Batch, intended: float | None
    ) -> None:
        """Send reports until each is settled, by the rules of the client.

        Args:
            window: theirs.
            tally: of the window.
            batch: the reports.
            intended: when they were meant to be sent; None if it does not count.
        """
        left, attempts, clock = batch.reports, 0, self._job.clock
        tally.sent += len(left)
        while True:
            answers = await self._attempt(window, tally, left)
            attempts += 1
            again = self._judge(tally, left, answers, intended)
            if not again:
                return
            reports = [report for report, _ in again]
            asked = max((error.retry_after_s or 0.0 for _, error in again), default=0.0)
            due = next_attempt(attempts, clock.now(), window.closes, asked, _draw)
            if due is None:
                for report, error in again:
                    tally.unsettled(report, error.reason)
                return
            tally.retries.update(error.reason for _, error in again)
            await asyncio.sleep(clock.real(due - clock.now()))
            left = reports

    def _judge(
        self,
        tally: Tally,
        reports: Sequence[Prepared],
        answers: Answers,
        intended: float | None,
    ) -> list[tuple[Prepared, GridveilError]]:
        """Count what is settled; the reports to be sent again are returned."""
        now, again = time.monotonic(), []
        for report, answer in zip(reports, answers, strict=True):
            if isinstance(answer, GridveilError) and heals(answer):
                again.append((report, answer))
            else:
                tally.settle(report, answer)
        settled = len(reports) - len(again)
        self._answered += settled
        if settled and intended is not None:
            tally.answered(now - intended, settled, now)
        return again

    async def _attempt(self, window: Timed, tally: Tally, reports: Sequence[Prepared]) -> Answers:
        message = self._message(window.start, reports)
        tally.reports_in_calls += len(reports)
        tally.bytes_in_calls += len(message)
        try:
            reply: aggregator_pb2.SubmitReportsResponse = await self._call(
                message, timeout=CALL_TIMEOUT_S
            )
        except grpc.RpcError as error:
            return [from_rpc_error(error)] * len(reports)
        if [outcome.index for outcome in reply.outcomes] != list(range(len(reports))):
            fault = InternalFault(Reason.INTERNAL, "the outcomes are not those of the batch")
            return [fault] * len(reports)
        return [
            outcome.receipt if outcome.HasField("receipt") else from_status(outcome.error)
            for outcome in reply.outcomes
        ]

    def _message(self, window_start: int, reports: Sequence[Prepared]) -> bytes:
        request = aggregator_pb2.SubmitReportsRequest()
        for report in reports:
            request.reports.add(
                parameters_digest=self._job.parameters_digest,
                window_start=window_start,
                meter_id=report.meter_id,
                flags=FLAGS_KNOWN,
                commitment_hash=report.commitment_hash,
                sealed_commitment=report.sealed_commitment,
                ciphertext=self._ciphertexts[report.pooled],
                signature=report.signature,
            )
        return request.SerializeToString()


class _Supply:
    """The batches of one window as they are made; None after the last."""

    def __init__(self) -> None:
        self.timely: asyncio.Queue[Batch | None] = asyncio.Queue()
        self.late: asyncio.Queue[Batch | None] = asyncio.Queue()

    def put(self, made: Batch | WindowMade) -> None:
        if isinstance(made, WindowMade):
            self.timely.put_nowait(None)
            self.late.put_nowait(None)
        else:
            (self.late if made.late else self.timely).put_nowait(made)


async def _sleep_until(steady: float) -> None:
    await asyncio.sleep(max(0.0, steady - time.monotonic()))
