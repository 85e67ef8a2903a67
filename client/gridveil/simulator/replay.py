"""A whole fleet's meters, played through one gateway: window by window, as time passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gridveil.clock import Clock, SystemClock
from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Outbox
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.pacing import Draw, system_draw
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import GridveilError, NotAuthentic
from gridveil.protocol.report import Report
from gridveil.reporting import ReportBuilder
from gridveil.simulator.building import Chunk, ReportFactory, default_workers
from gridveil.simulator.plan import Plan, Tally
from gridveil.simulator.readings import ReadingBounds, ReadingSource
from gridveil.submission import Submitter
from gridveil.submission_calls import blocking_caller, run_steps
from gridveil.transport import connect

_ROLE = "aggregator"
_WINDOWS_WAITING = 4
"""Windows whose reports the outbox has room for."""

_CALLS_A_TURN = 8
_NAP_S = 0.25
"""Longest wait at a time, and between two tries to fetch parameters, real seconds."""

_PATIENCE_S = 20.0
"""How long the first contact is tried for, real seconds."""

Progress = Callable[[Tally], None]


class Simulator:
    """Plays readings as a fleet's reports. Survives its own restart by its outbox.

    A window's reports are made once it has ended, in chunks of the city's batch limit, and sent
    over the first two thirds of the grace period.
    """

    def __init__(
        self,
        profile: Profile,
        fleet: Sequence[MeterKeys],
        source: ReadingSource,
        outbox: Path | str,
        *,
        clock: Clock | None = None,
        workers: int | None = None,
        draw: Draw = system_draw,
    ) -> None:
        """Open the outbox and make ready; nothing is sent yet.

        Args:
            profile: of the gateway role.
            fleet: the meters' keys.
            source: their readings.
            outbox: the outbox file, made if there is none; of this fleet alone.
            clock: metering time; the machine's if left out.
            workers: processes that make reports; 0 for none; by the fleet's size if left out.
            draw: uniform randomness in [0, 1) for jitter.
        """
        self._fleet = fleet
        self._by_id: dict[bytes, MeterKeys] | None = None
        self._source = source
        self._clock = clock or SystemClock()
        self._fetch_again = 0.0
        address = profile.endpoint(_ROLE)
        self._outbox = Outbox(
            outbox, profile.city_id, most_waiting=max(1, len(fleet)) * _WINDOWS_WAITING
        )
        self._channel = connect(address, _ROLE, profile.city_id, profile.tls)
        self._call = blocking_caller(self._channel)
        self._submitter = Submitter(
            profile, self._outbox, self._clock, self._build, batches=True, draw=draw
        )
        self._factory = ReportFactory(default_workers(len(fleet)) if workers is None else workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what is not settled stays in the outbox."""
        self._factory.__exit__(None, None, None)
        self._channel.close()
        self._outbox.close()

    def run(
        self, first_window: int | None, windows: int, progress: Progress = lambda _tally: None
    ) -> Tally:
        """Play ``windows`` windows from ``first_window`` on, and wait until all is settled.

        Args:
            first_window: Unix seconds UTC, a window start; the window in progress if left out. A
                window that is closed already counts as late; reports of an earlier run with the
                same outbox are carried on with.
            windows: how many.
            progress: called now and then with the tally so far.

        Raises:
            MalformedInput: READING_INVALID or CONFIG_INVALID from the source; WINDOW_MISALIGNED.
            NotAuthentic: KEY_NOT_PINNED if the aggregator offers parameters that the pinned
                key-holder did not sign.
            Conflict: EQUIVOCATION if the outbox holds other readings of these windows.
            Unavailable: the aggregator was out of reach from the start, or the outbox fails.
        """
        policy = self._first_contact().policy
        self._factory.warm_up()
        rules, length = policy.rules, policy.window_length
        first = rules.start_at(self._clock.now()) if first_window is None else first_window
        rules.check_aligned(first)
        starts = range(first, first + windows * length, length)
        tally = Tally()
        bounds = ReadingBounds.of_city(policy)
        plan = Plan(self._fleet, self._source, starts, rules, bounds, tally)
        shown = 0.0
        while self._turn(plan, tally):
            if time.monotonic() - shown >= _NAP_S:
                progress(tally)
                shown = time.monotonic()
        progress(tally)
        return tally

    def _first_contact(self) -> CityParameters:
        """The parameters in force; the aggregator may still be starting."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return run_steps(self._submitter.current_parameters(), self._call)
            except GridveilError as error:
                if not _heals(error) or time.monotonic() > give_up:
                    raise
                time.sleep(_NAP_S)

    def _turn(self, plan: Plan, tally: Tally) -> bool:
        """Do what can be done now; False once nothing is left."""
        fed = self._feed(plan)
        kept = self._keep_finished(0.0, tally)
        verdicts = run_steps(self._submitter.submit_due(_CALLS_A_TURN), self._call)
        for verdict in verdicts:
            tally.count(verdict)
        due_at = self._outbox.next_due()
        if due_at is None and plan.done and self._factory.idle:
            return False
        if not (fed or kept or verdicts):
            self._wait(due_at, plan, tally)
        return True

    def _feed(self, plan: Plan) -> bool:
        """Hand readings to the factory; whether there were any."""
        fed = False
        while self._factory.has_room:
            plan.advance(self._clock.now(), self._outbox)
            if plan.window is None:
                break
            parameters = self._parameters(plan.window)
            if parameters is None:
                break
            window = plan.window
            meters, wh = plan.take(parameters.policy.batch_limit)
            self._factory.add(Chunk(window, parameters, meters, wh))
            fed = True
        return fed

    def _parameters(self, window: int) -> CityParameters | None:
        """A window's parameters; None if they cannot be had at the moment."""
        if time.monotonic() < self._fetch_again:
            return None
        try:
            return run_steps(self._submitter.parameters(window), self._call)
        except GridveilError as error:
            if not _heals(error):
                raise
            self._fetch_again = time.monotonic() + _NAP_S
            return None

    def _keep_finished(self, timeout_s: float, tally: Tally) -> bool:
        """Persist the reports that are made; whether there were any."""
        finished = self._factory.finished(timeout_s)
        for built in finished:
            parameters = built.chunk.parameters
            tally.recorded += self._submitter.keep(
                parameters.policy, parameters.digest, built.chunk.window_start, built.prepared
            )
        return bool(finished)

    def _wait(self, due_at: float | None, plan: Plan, tally: Tally) -> None:
        times = [at for at in (due_at, plan.next_time()) if at is not None]
        if not self._factory.idle:
            self._keep_finished(_NAP_S / 10, tally)
        elif times:
            missing = max(0.0, min(times) - self._clock.now())
            self._clock.sleep(min(missing, _NAP_S / self._clock.real(1.0)))
        else:
            time.sleep(_NAP_S)

    def _build(
        self,
        parameters: CityParameters,
        meter_id: bytes,
        window_start: int,
        values: Mapping[str, int],
    ) -> Report:
        """Make one report anew, for another epoch."""
        if self._by_id is None:
            self._by_id = {meter.meter_id: meter for meter in self._fleet}
        return ReportBuilder(parameters, self._by_id[meter_id]).build(window_start, values)


def _heals(error: GridveilError) -> bool:
    """Whether trying again may help."""
    return not isinstance(error, NotAuthentic) and OUTCOMES[error.reason] is not Ending.GIVE_UP
