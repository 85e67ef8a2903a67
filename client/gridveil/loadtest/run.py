"""A whole load test: processes started, windows played, totals compared."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from gridveil.clock import Clock
from gridveil.loadtest import maker, sender
from gridveil.loadtest.city import City
from gridveil.loadtest.load import Load, places_of
from gridveil.loadtest.maker import MakerJob
from gridveil.loadtest.pool import PoolPlan
from gridveil.loadtest.schedule import begins
from gridveil.loadtest.sender import Done, SendJob, Stop, Timed, WindowSent
from gridveil.loadtest.tally import Tally
from gridveil.loadtest.totals import Compared, expected_sums, released
from gridveil.loadtest.worker import Failed, Pipe, Progress, Ready, Worker
from gridveil.operator import Outcome
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, CityPolicy, open_city_parameters
from gridveil.protocol.errors import GridveilError, InternalFault, MalformedInput, Reason
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.submission import Call
from gridveil.submission_calls import blocking_caller
from gridveil.transport import connect

_PATIENCE_S = 20.0
_PAUSE_S = 0.25
_LEAD_S = 1.0
_LEAD_S_A_REPORT = 0.0003
"""Real seconds for a process to prepare one report, generously."""
_STOP_S = 5.0
TOTALS = "totals verified"

Advance = Callable[[str, int, int], None]
"""Told what was done, how many more of it, and of how many in all."""


def _ignore(_what: str, _count: int, _of: int) -> None:
    pass


@dataclass(frozen=True)
class WindowResult:
    """What became of one window."""

    start: int
    tally: Tally
    compared: Compared | None
    """None if the test was interrupted before."""


@dataclass
class Result:
    """What a load test found."""

    load: Load
    window_s: float
    """Real seconds from one window to the next."""
    windows: list[WindowResult] = field(default_factory=list)
    total: Tally = field(default_factory=Tally)
    """Of all windows."""
    sending_s: float = 0.0
    """From each window's first intended report to its last answer, added up."""
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """CPU time of the services during the test, by role, if it is known."""
    interrupted: bool = False

    @property
    def exact(self) -> bool:
        """Whether every window's total is that of the accepted reports."""
        return all(window.compared and window.compared.exact for window in self.windows)


def run(load: Load, city: City, advance: Advance = _ignore) -> Result:
    """Run a load test to its end, or to an interrupt from the keyboard.

    Raises:
        MalformedInput: CONFIG_INVALID if this load cannot be put on this city.
        NotAuthentic: KEY_NOT_PINNED if the city is not the pinned one.
        GridveilError: a service could not be reached, or a process of the test failed.
    """
    parameters = _parameters(city.gateway)
    policy = parameters.policy
    window_s = city.clock.real(policy.window_length)
    check(load, policy, len(city.meters), city.clock)
    plan_windows(load, parameters, city.clock, time.monotonic())  # refused before it takes time
    result = Result(load, window_s)
    outcomes: dict[int, Outcome] | None = None
    with ExitStack() as stack:
        processes = _Processes(load, city, parameters, stack)
        try:
            processes.get_ready(advance)
            before = city.cpu_seconds()
            windows = plan_windows(load, parameters, city.clock, time.monotonic())
            processes.play(windows, _telling_half_way(advance, city.half_way))
            outcomes = released(city.operator, processes.windows, city.clock)
            advance(TOTALS, len(outcomes), len(processes.windows))
            result.cpu_s = _spent(before, city.cpu_seconds())
        except KeyboardInterrupt:
            result.interrupted = True
            processes.stop()
    for window in processes.windows:
        if tally := processes.tallies.get(window.number):
            compared = None
            if outcomes is not None:
                compared = _compared(policy, processes.plan, window, tally, outcomes)
            _add(result, WindowResult(window.start, tally, compared))
    return result


def _telling_half_way(advance: Advance, half_way: Callable[[], None]) -> Advance:
    """The same, that also calls ``half_way`` once, when half of all reports are sent."""
    sent = 0

    def told(what: str, count: int, of: int) -> None:
        nonlocal sent
        before, sent = sent, sent + count * (what == sender.SENT)
        if 2 * before < of <= 2 * sent:
            half_way()
        advance(what, count, of)

    return told


def _compared(
    policy: CityPolicy,
    plan: PoolPlan,
    window: Timed,
    tally: Tally,
    outcomes: Mapping[int, Outcome],
) -> Compared:
    sums = expected_sums(policy, plan, window.number, tally.places)
    return Compared(tally.accepted, sums, outcomes.get(window.number))


def plan_windows(
    load: Load, parameters: CityParameters, clock: Clock, steady: float
) -> list[Timed]:
    """The windows of a test: the first that ends when its reports can be ready, and those after.

    Args:
        load: the test.
        parameters: of the epoch that serves them all, or CONFIG_INVALID.
        clock: metering time.
        steady: seconds of the machine's steady clock, now.
    """
    policy, now = parameters.policy, clock.now()
    rules, length = policy.rules, policy.window_length
    lead_s = _LEAD_S + load.timely / load.processes * _LEAD_S_A_REPORT
    first = rules.start_at(now)
    while clock.real(rules.end(first) - now) < lead_s:
        first += length
    count = load.windows_at(clock.real(length))
    starts = [first + at * length for at in range(count)]
    if not (parameters.epoch.serves(starts[0]) and parameters.epoch.serves(starts[-1])):
        raise _invalid(
            "the windows are not of one epoch of the city: play fewer, or begin in the next one"
        )
    ends = [steady + clock.real(rules.end(start) - now) for start in starts]
    times = begins(ends, load.sending_s or 0.0)
    return [
        Timed(at, start, rules.closes(start), begin)
        for at, (start, begin) in enumerate(zip(starts, times, strict=True))
    ]


def check(load: Load, policy: CityPolicy, meters: int, clock: Clock) -> None:
    """CONFIG_INVALID if this load cannot be put on this city."""
    if not policy.development:
        raise _invalid(
            "a load test sends made-up readings, which totals would count: the city must be a"
            " development city"
        )
    if policy.noise is not None:
        raise _invalid("the city's totals have noise: there is nothing exact to compare with")
    if load.meters - load.late < policy.min_cohort:
        raise _invalid(f"no total of this city is over fewer than {policy.min_cohort} reports")
    if meters < load.meters:
        raise _invalid(f"the fleet holds {meters} meters, and --meters is {load.meters}")
    if load.batch > policy.batch_limit:
        raise _invalid(f"--batch is at most {policy.batch_limit} in this city")
    _check_rate(load, policy, clock)


def _check_rate(load: Load, policy: CityPolicy, clock: Clock) -> None:
    if load.sending_s is None:
        return
    windows = load.windows_at(clock.real(policy.window_length))
    room = clock.real(policy.grace if windows == 1 else min(policy.grace, policy.window_length))
    # A tenth of a percent for times that are not whole binary fractions.
    if load.sending_s > room * 1.001:
        raise _invalid(
            f"{load.timely} reports a window at {load.rate:g}/s take {load.sending_s:.1f} s, and"
            f" a window has {room:.1f} s: fewer --meters, or a higher --rate"
        )


class _Processes:
    """Pairs of processes: one prepares reports, the other sends them."""

    def __init__(
        self, load: Load, city: City, parameters: CityParameters, stack: ExitStack
    ) -> None:
        self.plan = PoolPlan.of(load, parameters.policy)
        self.windows: list[Timed] = []
        self._makers: list[Worker] = []
        self._senders: list[Worker] = []
        self.tallies: dict[int, Tally] = {}
        """What became of the windows' reports, by number."""
        self._load = load
        self._totals = {
            maker.METERS: load.meters,
            maker.CIPHERTEXTS: self.plan.each * load.processes,
        }
        encoded, digest = parameters.encode(), parameters.digest
        for process in range(load.processes):
            theirs, ours = multiprocessing.get_context("spawn").Pipe()
            meters = [city.meters[place] for place in places_of(load, process)]
            neighbour = city.meters[(process + 1) % load.meters]
            job = MakerJob(load, process, encoded, meters, neighbour)
            self._makers.append(Worker(f"maker {process}", maker.make, theirs, job))
            stack.callback(self._makers[-1].stop)
            send = SendJob(load, process, city.gateway, city.clock, digest)
            self._senders.append(Worker(f"sender {process}", sender.send, ours, send))
            stack.callback(self._senders[-1].stop)
            theirs.close()
            ours.close()

    def get_ready(self, advance: Advance) -> None:
        """Wait until meters, ciphertexts and connections are ready."""
        self._listen({w.pipe for w in (*self._makers, *self._senders)}, Ready, advance)

    def play(self, windows: list[Timed], advance: Advance) -> None:
        """Send all windows."""
        self.windows = windows
        each = self._load.timely + self._load.late
        self._totals[sender.SENT] = each * len(windows)
        for worker in self._senders:
            worker.pipe.send(windows)
        self._listen({worker.pipe for worker in self._senders}, Done, advance)
        for window in windows:
            tally = self.tallies.setdefault(window.number, Tally())
            if missing := each - tally.settled:
                tally.errors["was not sent, or not counted"] += abs(missing)

    def stop(self) -> None:
        """End early, and take in what was counted so far."""
        waiting = {worker.pipe for worker in self._senders} if self.windows else set()
        try:
            for pipe in waiting:
                pipe.send(Stop())
            self._listen(waiting, Done, _ignore, time.monotonic() + _STOP_S)
        except (OSError, GridveilError, KeyboardInterrupt):
            pass

    def _listen(
        self,
        pipes: set[Pipe],
        last: type[Ready | Done],
        advance: Advance,
        until: float | None = None,
    ) -> None:
        """Take in what processes tell until each has said the last of it."""
        waiting = {*pipes, *(worker.pipe for worker in self._makers)} if pipes else set()
        while pipes and (until is None or time.monotonic() < until):
            ready = wait(list(waiting), _PAUSE_S)
            for pipe in [pipe for pipe in waiting if pipe in ready]:
                said = _receive(pipe)
                if isinstance(said, last):
                    pipes.discard(pipe)
                elif isinstance(said, Progress):
                    advance(said.what, said.done, self._totals[said.what])
                elif isinstance(said, WindowSent):
                    self.tallies.setdefault(said.number, Tally()).add(said.tally)


def _receive(pipe: Pipe) -> object:
    try:
        said = pipe.recv()
    except (EOFError, OSError):
        raise InternalFault(Reason.INTERNAL, "a process of the load test ended") from None
    if isinstance(said, Failed):
        raise InternalFault(Reason.INTERNAL, f"a process of the load test failed: {said.why}")
    return said


def _parameters(profile: Profile) -> CityParameters:
    """The verified parameters in force; the aggregator may still be starting."""
    until = time.monotonic() + _PATIENCE_S
    address = profile.endpoint("aggregator")
    with connect(address, "aggregator", profile.city_id, profile.tls) as channel:
        call = blocking_caller(channel)
        while True:
            try:
                request = aggregator_pb2.GetCityParametersRequest()
                reply = call(Call("GetCityParameters", request))
                break
            except GridveilError:
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)
    return open_city_parameters(
        reply.parameters, reply.signature, profile.identity_key, profile.city_id
    )


def _spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU time by role; without those that were started again meanwhile."""
    spent = {role: used - before.get(role, 0.0) for role, used in after.items()}
    return {role: seconds for role, seconds in spent.items() if seconds >= 0}


def _add(result: Result, window: WindowResult) -> None:
    tally = window.tally
    result.windows.append(window)
    result.total.add(tally)
    if tally.begun is not None and tally.ended is not None:
        result.sending_s += tally.ended - tally.begun


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
