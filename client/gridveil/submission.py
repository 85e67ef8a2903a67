"""How readings become settled reports, without any network: the same steps for every client.

A procedure that needs the aggregator is a generator: it yields a :class:`Call` and is resumed
with the reply, or with the GridveilError that the call failed with. Blocking and asyncio clients
drive the same generators, so they cannot differ in what they decide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from google.protobuf.message import Message

from gridveil.clock import Clock
from gridveil.outbox import Entry, NewEntry, Outbox, State, Verdict
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.pacing import CAP_S, Draw, first_attempt, next_attempt, system_draw
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, CityPolicy, open_city_parameters
from gridveil.protocol.errors import (
    GridveilError,
    InternalFault,
    NotAuthentic,
    Reason,
    WrongState,
)
from gridveil.protocol.report import Report, parse_report
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.reporting import check_values
from gridveil.transport import from_status

T = TypeVar("T")
Answer = report_pb2.Receipt | GridveilError
Build = Callable[[CityParameters, bytes, int, Mapping[str, int]], Report]
"""Makes the report of (parameters, meter id, window start, values)."""

CALL_TIMEOUT_S = 10.0
"""Deadline of one call, real seconds."""

KEPT_S = 3600
"""How long an ended entry is kept for the caller after its window closed."""


@dataclass(frozen=True)
class Prepared:
    """A checked reading, and its report unless that cannot be made yet."""

    meter_id: bytes
    values: Mapping[str, int]
    report: bytes | None


@dataclass(frozen=True)
class Call:
    """One unary call to the aggregator."""

    method: str
    request: Message
    timeout_s: float = CALL_TIMEOUT_S


Steps = Generator[Call, Any, T]
"""A procedure that yields calls, receives replies, and returns a T."""


def judge(entry: Entry, answer: Answer, now: float, closes: float, draw: Draw) -> Verdict:
    """What an attempt's answer makes of its entry.

    Args:
        entry: as it was before the attempt.
        answer: the receipt, or why there is none.
        now: when the answer came.
        closes: when the entry's window closes.
        draw: uniform randomness.
    """
    window, meter = entry.key
    if isinstance(answer, report_pb2.Receipt):
        return Verdict(window, meter, State.SETTLED, duplicate=answer.duplicate)
    reason = answer.reason
    if OUTCOMES[reason] is Ending.GIVE_UP:
        return Verdict(window, meter, State.GAVE_UP, reason)
    due_at = next_attempt(entry.attempts + 1, now, closes, answer.retry_after_s, draw)
    if due_at is None:
        return Verdict(window, meter, State.GAVE_UP, Reason.WINDOW_CLOSED, answered=False)
    return Verdict(window, meter, State.WAITING, reason, due_at)


class Submitter:
    """Keeps verified city parameters, records readings and brings their reports to an end."""

    def __init__(
        self,
        profile: Profile,
        outbox: Outbox,
        clock: Clock,
        build: Build,
        *,
        batches: bool = False,
        draw: Draw = system_draw,
    ) -> None:
        """``batches``: send up to the published number of reports a call, as gateways do."""
        self._profile = profile
        self._outbox = outbox
        self._clock = clock
        self._build = build
        self._batches = batches
        self._draw = draw
        self._known = self._kept_parameters()
        self._purged_at = 0.0

    def parameters(self, window_start: int) -> Steps[CityParameters]:
        """The parameters of a window's epoch, fetched and verified unless they are known.

        Raises:
            NotAuthentic: KEY_NOT_PINNED if they are not signed by the pinned key-holder, or are
                those of another city.
            WrongState: KEY_EPOCH if the answer does not serve the window.
            GridveilError: whatever the call failed with.
        """
        known = self._serving(window_start)
        return known if known else (yield from self._fetch(window_start))

    def current_parameters(self) -> Steps[CityParameters]:
        """The parameters in force now, fetched and verified. Errors as for ``parameters``."""
        return (yield from self._request(0))

    def known_policy(self) -> Steps[CityPolicy]:
        """The policy last known, of an earlier run as well; fetched if there is none."""
        if not self._known:
            yield from self._request(0)
        return self._known[0].policy

    def record(self, meter_id: bytes, window_start: int, values: Mapping[str, int]) -> Steps[None]:
        """Check, build and persist one reading; nothing is persisted if this raises.

        In a new epoch the reading is checked against the last known policy and persisted, and its
        report made when it is due: a city's meters must not all ask for parameters at once.
        Errors: those of ``parameters``, ``check_values``, ``check_open`` and ``Outbox.record``.
        """
        parameters = self._serving(window_start)
        if not self._known:
            parameters = yield from self._fetch(window_start)
        policy = (parameters or self._known[0]).policy
        check_values(policy, values)
        policy.rules.check_aligned(window_start)
        policy.rules.check_open(window_start, self._clock.now())
        # A repeated recording needs no second report; the outbox compares the values.
        known = self._outbox.find(window_start, meter_id) is not None
        digest = report = None
        if parameters is not None and not known:
            digest = parameters.digest
            report = encode_report(self._build(parameters, meter_id, window_start, values))
        self.keep(policy, digest, window_start, [Prepared(meter_id, values, report)])

    def keep(
        self,
        policy: CityPolicy,
        parameters_digest: bytes | None,
        window_start: int,
        prepared: Sequence[Prepared],
    ) -> int:
        """Persist reports of one window and epoch, to be sent together; how many are new."""
        due_at = first_attempt(policy.rules, window_start, self._clock.now(), self._draw)
        return self._outbox.record(
            [
                NewEntry(
                    window_start=window_start,
                    meter_id=one.meter_id,
                    values=one.values,
                    due_at=due_at,
                    parameters_digest=parameters_digest,
                    report=one.report,
                )
                for one in prepared
            ]
        )

    def submit_due(self, most_calls: int | None = None) -> Steps[list[Verdict]]:
        """Send what is due; the verdicts reached. ``most_calls`` bounds the calls made."""
        now = self._clock.now()
        self._purge(now)
        verdicts: list[Verdict] = []
        calls = 0
        while most_calls is None or calls < most_calls:
            batch = self._outbox.due(now, self._most())
            if not batch:
                break
            verdicts += yield from self._attempt(batch)
            calls += 1
        return verdicts

    def _attempt(self, batch: Sequence[Entry]) -> Steps[list[Verdict]]:
        now = self._clock.now()
        window = batch[0].window_start
        closes = self._policy_of(batch[0]).rules.closes(window)
        shared = self._draw()

        def draw() -> float:
            """One draw for all: what was sent together is sent together again."""
            return shared

        again = next_attempt(batch[0].attempts + 1, now, closes, None, draw)
        self._outbox.begin(batch, again or now + CAP_S)
        answers = yield from self._answers(batch)
        now = self._clock.now()
        verdicts = [
            judge(entry, answer, now, closes, draw)
            for entry, answer in zip(batch, answers, strict=True)
        ]
        self._outbox.conclude(verdicts)
        yield from self._renew(batch, answers, verdicts)
        return verdicts

    def _answers(self, batch: Sequence[Entry]) -> Steps[list[Answer]]:
        """An answer for each entry, in order."""
        if batch[0].report is None:
            return [WrongState(Reason.KEY_EPOCH, "the report is not made yet")] * len(batch)
        reports = [report_pb2.Report.FromString(entry.report or b"") for entry in batch]
        try:
            replies = yield from (self._send_all if self._batches else self._send_one)(reports)
        except GridveilError as error:
            return [error] * len(batch)
        return [
            _checked(report, reply) if isinstance(reply, report_pb2.Receipt) else reply
            for report, reply in zip(reports, replies, strict=True)
        ]

    def _send_one(self, reports: Sequence[report_pb2.Report]) -> Steps[list[Answer]]:
        (report,) = reports
        receipt: report_pb2.Receipt = yield Call("SubmitReport", report)
        return [receipt]

    def _send_all(self, reports: Sequence[report_pb2.Report]) -> Steps[list[Answer]]:
        request = aggregator_pb2.SubmitReportsRequest(reports=reports)
        reply: aggregator_pb2.SubmitReportsResponse = yield Call("SubmitReports", request)
        if [outcome.index for outcome in reply.outcomes] != list(range(len(reports))):
            raise InternalFault(Reason.INTERNAL, "the outcomes are not those of the batch")
        return [
            outcome.receipt if outcome.HasField("receipt") else from_status(outcome.error)
            for outcome in reply.outcomes
        ]

    def _renew(
        self, batch: Sequence[Entry], answers: Sequence[Answer], verdicts: Sequence[Verdict]
    ) -> Steps[None]:
        """Make the reports anew that are for another epoch than the one in force."""
        stale = [
            (entry, verdict)
            for entry, answer, verdict in zip(batch, answers, verdicts, strict=True)
            if verdict.state is State.WAITING and _asks_for_parameters(answer)
        ]
        if not stale:
            return
        window = batch[0].window_start
        try:
            parameters = yield from self._fetch(window)
        except GridveilError as error:
            # The entries wait for their next attempt, and say what it waits for.
            self._outbox.conclude([replace(v, reason=error.reason) for _, v in stale])
            return
        for entry, verdict in stale:
            self._rebuild(entry, parameters, verdict)

    def _rebuild(self, entry: Entry, parameters: CityParameters, verdict: Verdict) -> None:
        if entry.parameters_digest == parameters.digest:
            return
        try:
            report = self._build(parameters, entry.meter_id, entry.window_start, entry.values)
        except GridveilError as error:
            if OUTCOMES[error.reason] is Ending.GIVE_UP:
                ended = Verdict(*entry.key, State.GAVE_UP, error.reason, answered=False)
                self._outbox.conclude([ended])
            return
        # A report that was never sent may go at once.
        due_at = verdict.due_at if entry.report is not None else self._clock.now()
        self._outbox.replace_report(entry, parameters.digest, encode_report(report), due_at)

    def _fetch(self, window_start: int) -> Steps[CityParameters]:
        parameters = yield from self._request(window_start)
        if not parameters.epoch.serves(window_start):
            raise WrongState(Reason.KEY_EPOCH, "the parameters do not serve the window")
        return parameters

    def _request(self, window_start: int) -> Steps[CityParameters]:
        """Verified parameters; 0 asks for those in force now."""
        request = aggregator_pb2.GetCityParametersRequest(window_start=window_start)
        reply: aggregator_pb2.SignedCityParameters = yield Call("GetCityParameters", request)
        parameters = self._verified(reply.parameters, reply.signature)
        self._outbox.keep_parameters(reply.parameters, reply.signature, parameters.epoch.end_window)
        self._known = [parameters, *(p for p in self._known if p.digest != parameters.digest)]
        return parameters

    def _verified(self, encoded: bytes, signature: bytes) -> CityParameters:
        profile = self._profile
        return open_city_parameters(encoded, signature, profile.identity_key, profile.city_id)

    def _kept_parameters(self) -> list[CityParameters]:
        """Parameters of earlier runs, newest first, as far as the pinned key signed them."""
        known = []
        for encoded, signature in self._outbox.parameters():
            try:
                known.append(self._verified(encoded, signature))
            except NotAuthentic:
                continue
        return known

    def _serving(self, window_start: int) -> CityParameters | None:
        """Of epochs that overlap, the one that begins last: the other was destroyed before."""
        serving = (p for p in self._known if p.epoch.serves(window_start))
        return max(serving, key=lambda p: p.epoch.first_window, default=None)

    def _policy_of(self, entry: Entry) -> CityPolicy:
        named = (p for p in self._known if p.digest == entry.parameters_digest)
        return next(named, self._known[0]).policy

    def _most(self) -> int:
        if not self._batches:
            return 1
        return min((p.policy.batch_limit for p in self._known), default=1)

    def _purge(self, now: float) -> None:
        if not self._known or now < self._purged_at + self._known[0].policy.window_length:
            return
        rules = self._known[0].policy.rules
        self._outbox.purge(int(now) - rules.length - rules.grace - KEPT_S)
        self._known = self._kept_parameters()
        self._purged_at = now


def encode_report(report: Report) -> bytes:
    """A report as it is stored and sent."""
    return report.to_message().SerializeToString(deterministic=True)


def _asks_for_parameters(answer: Answer) -> bool:
    return (
        isinstance(answer, GridveilError) and OUTCOMES[answer.reason] is Ending.REFETCH_PARAMETERS
    )


def _checked(report: report_pb2.Report, receipt: report_pb2.Receipt) -> Answer:
    """The receipt, if it is this report's."""
    if receipt.report_digest != parse_report(report).claim.digest():
        return InternalFault(Reason.INTERNAL, "the receipt is another report's")
    return receipt
