"""The aggregator's service on the wire; who may call what is at the end."""

from __future__ import annotations

from collections.abc import Iterator

from gridveil.clock import Clock
from gridveil.protocol.errors import (
    GridveilError,
    MalformedInput,
    NotFound,
    Reason,
    WrongState,
)
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.protocol.v1.aggregator_pb2 import (
    AggregateKind,
    EncryptedAggregate,
    EncryptedLane,
    GetAggregateRequest,
    GetCityParametersRequest,
    SignedCityParameters,
    SubmitReportsRequest,
    SubmitReportsResponse,
)
from gridveil.protocol.v1.report_pb2 import Receipt, Report, ReportOutcome
from gridveil_services.aggregator import rules
from gridveil_services.aggregator.city import City, SignedParameters
from gridveil_services.aggregator.ingest import Accepted, Answer, Ingest
from gridveil_services.aggregator.store.interface import Phase, Store, Window
from gridveil_services.aggregator.stream import Groups
from gridveil_services.rpc import Binding, Call, Role
from gridveil_services.rpc.errors import to_status

STREAM_GROUP = 64
"""Reports of a stream that are committed together, at the most, and that are read ahead."""
IDLE_S = 60.0


class AggregatorService:
    """``gridveil.v1.Aggregator``."""

    def __init__(
        self, city: City, store: Store, ingest: Ingest, clock: Clock, *, idle_s: float = IDLE_S
    ) -> None:
        """``idle_s``: real seconds after which a silent stream is ended."""
        self._city = city
        self._store = store
        self._ingest = ingest
        self._clock = clock
        self._idle_s = idle_s

    def submit_report(self, request: Report, call: Call) -> Receipt:
        """One report."""
        (answer,) = self._ingest.submit([request])
        if isinstance(answer, GridveilError):
            raise answer
        return _receipt(answer)

    def submit_reports(self, request: SubmitReportsRequest, call: Call) -> SubmitReportsResponse:
        """Reports of one window, each with an outcome of its own."""
        reports = list(request.reports)
        self._check_batch(len(reports))
        answers = self._ingest.submit(reports, one_window=True)
        response = SubmitReportsResponse()
        for index, answer in enumerate(answers):
            _fill(response.outcomes.add(index=index), answer)
        return response

    def stream_reports(self, requests: Iterator[Report], call: Call) -> Iterator[ReportOutcome]:
        """Reports of any window; outcomes come in the order of the reports."""
        index = 0
        for group in Groups(requests, STREAM_GROUP, self._idle_s):
            for answer in self._ingest.submit(group):
                yield _fill(ReportOutcome(index=index), answer)
                index += 1

    def get_city_parameters(
        self, request: GetCityParametersRequest, call: Call
    ) -> SignedCityParameters:
        """What the key-holder signed, to the byte."""
        signed = self._parameters(request.window_start)
        return SignedCityParameters(parameters=signed.document, signature=signed.signature)

    def get_aggregate(self, request: GetAggregateRequest, call: Call) -> EncryptedAggregate:
        """The sums of a sealed window's lanes, for the sum or, relabelled, for the mean."""
        if request.kind == AggregateKind.AGGREGATE_KIND_UNSPECIFIED:
            raise MalformedInput(Reason.FIELD_REQUIRED, "kind is required", field="kind")
        window = self._sealed(request.window_start)
        policy = self._parameters(window.start).parameters.policy
        lanes = self._store.lane_sums(window.start)
        count = sum(lane.count for lane in lanes)
        if not lanes:
            raise _no_window()
        if count < policy.min_cohort:
            raise WrongState(Reason.COHORT_TOO_SMALL, "too few meters reported")
        mean = request.kind == AggregateKind.AGGREGATE_KIND_MEAN
        return EncryptedAggregate(
            window_start=window.start,
            kind=request.kind,
            parameters_digest=window.parameters_digest,
            count=count,
            scale=float(policy.crypto.scale * (count if mean else 1)),
            lanes=[
                EncryptedLane(lane=lane.lane, count=lane.count, ciphertext=lane.ciphertext)
                for lane in lanes
            ],
        )

    def _check_batch(self, size: int) -> None:
        policy = self._city.parameters.policy
        if not size:
            raise MalformedInput(Reason.BATCH_EMPTY, "the batch is empty")
        if policy is None:
            raise rules.keyholder_unknown()
        if size > policy.batch_limit:
            raise MalformedInput(
                Reason.BATCH_TOO_LARGE, "too many reports", limit=str(policy.batch_limit)
            )

    def _parameters(self, window_start: int) -> SignedParameters:
        book = self._city.parameters
        if book.policy is None:
            raise rules.keyholder_unknown()
        start = window_start or book.policy.rules.start_at(self._clock.now())
        window = self._store.window(start)
        signed = book.named(window.parameters_digest) if window else book.serving(start)
        if signed is None:
            raise rules.key_epoch(None)
        return signed

    def _sealed(self, window_start: int) -> Window:
        window = self._store.window(window_start)
        if window is None:
            raise _no_window()
        if window.phase is Phase.OPEN:
            raise WrongState(Reason.NOT_SEALED, "the window is not sealed yet")
        return window


def binding(service: AggregatorService) -> Binding:
    """The service and the roles that may call each of its methods."""
    return Binding(
        descriptor=aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"],
        service=service,
        roles={
            "SubmitReport": {Role.METER, Role.GATEWAY},
            "SubmitReports": {Role.METER, Role.GATEWAY},
            "StreamReports": {Role.GATEWAY},
            "GetCityParameters": {Role.METER, Role.GATEWAY, Role.AUDITOR},
            "GetAggregate": {Role.KEYHOLDER, Role.AUDITOR},
        },
    )


def _receipt(answer: Accepted) -> Receipt:
    return Receipt(
        report_digest=answer.digest,
        accepted_at_ms=answer.accepted_at_ms,
        duplicate=answer.duplicate,
    )


def _fill(outcome: ReportOutcome, answer: Answer) -> ReportOutcome:
    """Filled in place: messages inside messages are copied when they are passed."""
    if isinstance(answer, GridveilError):
        outcome.error.CopyFrom(to_status(answer))
        return outcome
    receipt = outcome.receipt
    receipt.report_digest = answer.digest
    receipt.accepted_at_ms = answer.accepted_at_ms
    receipt.duplicate = answer.duplicate
    return outcome


def _no_window() -> NotFound:
    return NotFound(Reason.NOT_FOUND, "nothing is kept of this window")
