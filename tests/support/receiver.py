"""A real gRPC server that receives reports and can be told to fail, for tests of clients.

It keeps the aggregator's promises to a client (a first receipt, a duplicate, an equivocation, a
closed window) over mutual TLS, without a store, sums or a key-holder behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gridveil.clock import Clock
from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import Conflict, GridveilError, Reason, WrongState
from gridveil.protocol.report import Report, parse_report
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil_services.bootstrap.certificates import Authority
from gridveil_services.rpc import Binding, Call, Role, Server, ServerOptions
from gridveil_services.rpc.errors import to_status
from tests.support.epochs import CityKeys

CLIENTS = {Role.METER, Role.GATEWAY}


@dataclass
class Receiver:
    """The service. Its fields are what tests set and look at."""

    keys: CityKeys
    clock: Clock
    accepted: dict[tuple[int, bytes], Report] = field(default_factory=dict)
    calls: list[tuple[str, float]] = field(default_factory=list)
    """Every call that arrived: its name and when."""
    seen: list[Report] = field(default_factory=list)
    """Every report that arrived, in order, refused ones included."""
    before: Callable[[Report], None] = lambda _report: None
    """Raises to refuse a report before it is taken."""
    after: Callable[[Report], None] = lambda _report: None
    """Raises once it is taken: the answer is lost."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get_city_parameters(
        self, _request: aggregator_pb2.GetCityParametersRequest, _call: Call
    ) -> aggregator_pb2.SignedCityParameters:
        self.calls.append(("GetCityParameters", self.clock.now()))
        return self.keys.signed()

    def submit_report(self, request: report_pb2.Report, _call: Call) -> report_pb2.Receipt:
        self.calls.append(("SubmitReport", self.clock.now()))
        return self._take(request)

    def submit_reports(
        self, request: aggregator_pb2.SubmitReportsRequest, _call: Call
    ) -> aggregator_pb2.SubmitReportsResponse:
        self.calls.append(("SubmitReports", self.clock.now()))
        outcomes = [self._outcome(at, report) for at, report in enumerate(request.reports)]
        return aggregator_pb2.SubmitReportsResponse(outcomes=outcomes)

    def stream_reports(
        self, requests: Iterator[report_pb2.Report], _call: Call
    ) -> Iterator[report_pb2.ReportOutcome]:
        for at, report in enumerate(requests):
            yield self._outcome(at, report)

    def get_aggregate(
        self, _request: aggregator_pb2.GetAggregateRequest, _call: Call
    ) -> aggregator_pb2.EncryptedAggregate:
        raise WrongState(Reason.NOT_SEALED, "this receiver never seals")

    def _outcome(self, at: int, message: report_pb2.Report) -> report_pb2.ReportOutcome:
        try:
            return report_pb2.ReportOutcome(index=at, receipt=self._take(message))
        except GridveilError as error:
            return report_pb2.ReportOutcome(index=at, error=to_status(error))

    def _take(self, message: report_pb2.Report) -> report_pb2.Receipt:
        report = parse_report(message)
        key = report.claim.window_start, report.claim.meter_id
        with self._lock:
            self.seen.append(report)
            self.before(report)
            first = self.accepted.get(key)
            if first is None:
                self._check(report)
                self.accepted[key] = report
            elif first.claim != report.claim:
                raise Conflict(Reason.EQUIVOCATION, "another report of the window stands")
            self.after(report)
        return report_pb2.Receipt(
            report_digest=report.claim.digest(), accepted_at_ms=1, duplicate=first is not None
        )

    def _check(self, report: Report) -> None:
        if report.claim.parameters_digest != self.keys.parameters.digest:
            raise WrongState(Reason.KEY_EPOCH, "another epoch is in force")
        rules = self.keys.parameters.policy.rules
        rules.check_open(report.claim.window_start, self.clock.now())


@dataclass(frozen=True)
class Certificates:
    """TLS identities of every role of a city, below one folder."""

    folder: Path
    city_id: bytes

    @classmethod
    def make(cls, folder: Path, city_id: bytes) -> Certificates:
        """Issue them."""
        start = datetime.now(UTC) - timedelta(hours=1)
        end = start + timedelta(days=2)
        authority = Authority.create(city_id, start, end)
        (folder / "ca.pem").write_bytes(authority.certificate_pem)
        for role in Role:
            issued = authority.issue(role, "test", valid_from=start, valid_until=end)
            (folder / f"{role}.pem").write_bytes(issued.certificate_pem)
            (folder / f"{role}-key.pem").write_bytes(issued.key_pem)
        return cls(folder, city_id)

    def tls(self, role: Role) -> Tls:
        """The identity of a role."""
        return Tls(
            self.folder / "ca.pem", self.folder / f"{role}.pem", self.folder / f"{role}-key.pem"
        )

    def profile(self, role: Role, keys: CityKeys, address: str) -> Profile:
        """A client's profile."""
        return Profile(
            self.city_id, keys.identity_key, True, {"aggregator": address}, self.tls(role)
        )


@contextmanager
def serving(
    receiver: Receiver, certificates: Certificates, listen: str = "127.0.0.1:0"
) -> Iterator[str]:
    """Serve it; the address."""
    options = ServerOptions(
        listen=listen,
        tls=certificates.tls(Role.AGGREGATOR),
        city_id=certificates.city_id,
        role=Role.AGGREGATOR,
        max_message_bytes=4 * 2**20,
    )
    binding = Binding(
        descriptor=aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"],
        service=receiver,
        roles={
            "SubmitReport": CLIENTS,
            "SubmitReports": CLIENTS,
            "StreamReports": {Role.GATEWAY},
            "GetCityParameters": CLIENTS,
            "GetAggregate": {Role.AUDITOR},
        },
    )
    with Server([binding], options) as server:
        yield server.start()
