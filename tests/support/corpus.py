"""A city whose services have something to lose, and valid calls to every method of each.

    with serving_city(tmp_path) as city:
        city.services["totals"].boundary.call(...)

WINDOW is released, the one after it sealed and not released, the one after that takes reports.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from random import Random

import apsw
import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from gridveil.profile import Profile
from gridveil.protocol.release import Entry
from gridveil.protocol.report import Report, parse_report
from gridveil.protocol.v1 import (
    aggregator_pb2,
    controller_pb2,
    keyholder_pb2,
    report_pb2,
    totals_pb2,
    transparency_pb2,
)
from gridveil.transport import connect
from gridveil_services.keyholder.serve import make_server
from gridveil_services.rpc import Role
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity, store_digest
from tests.support.boundary import Boundary
from tests.support.controllers import RunningController, running_controller
from tests.support.mutations import CANARY, random_message
from tests.support.reports import WINDOW, BuiltRelease, build_release

RELEASED, SEALED, OPEN = WINDOW, WINDOW + LENGTH, WINDOW + 2 * LENGTH
METERS, WITHDRAWN = 120, 2
READING = 187_654
"""Of every meter: no other number of a test has these digits."""
INTERNALS = re.compile(
    rb"Traceback|\.py\b|sqlite|SELECT |INSERT |Errno|/tmp/|0x7f[0-9a-f]{6}|b'\\x"
    rb"|(?<![0-9a-f])%d(?![0-9a-f])" % READING
)
"""What no refusal and no log line about one may show."""
CHUNK = 47
"""Entries in a message."""
NAMES = {
    "aggregator": "Aggregator",
    "keyholder": "KeyHolder",
    "roster": "Roster",
    "totals": "Totals",
    "log": "ReleaseLog",
    "controller": "Controller",
    "health": "Health",
}
"""The services of a city, and what they are called on the wire."""


@dataclass(frozen=True)
class Base:
    """A valid call: its messages, and who may make it."""

    messages: Sequence[bytes]
    role: Role


@dataclass
class Service:
    """One service of a running city."""

    name: str
    boundary: Boundary
    server: str
    """The role that serves it."""
    address: str
    cheap: Callable[[], object]
    """Changes when the durable state does; asked after every call."""
    digest: Callable[[], object]
    """All of the durable state."""
    corpus: dict[str, list[Base]] = field(default_factory=dict)

    def add(self, method: str, role: Role, *messages: object) -> None:
        """A valid call of a method."""
        encoded = [message.SerializeToString() for message in messages]  # type: ignore[attr-defined]
        self.corpus.setdefault(self.path(method), []).append(Base(encoded, role))

    def path(self, method: str) -> str:
        """The path of a method by its name."""
        (found,) = (path for path in self.paths if path.endswith("/" + method))
        return found

    @cached_property
    def paths(self) -> list[str]:
        """Every method."""
        ending = f".{NAMES[self.name]}"
        return [p for p in self.boundary.methods if p.split("/")[1].endswith(ending)]

    def base(self, path: str, chance: Random) -> Base:
        """A valid call, or one with some values if there is none of the method."""
        known = self.corpus.get(path)
        if known:
            return chance.choice(known)
        message = random_message(request_type(path), chance)
        return Base([message.SerializeToString()], min(self.boundary.methods[path].roles))


def request_type(path: str) -> type[Message]:
    """What a method takes."""
    service, name = path[1:].split("/")
    rpc = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return GetMessageClass(rpc.input_type)


class ServingCity:
    """Aggregator, key-holder, totals and controller of one city in this process."""

    def __init__(
        self,
        local: LocalCity,
        totals: TotalsProcess,
        totals_address: str,
        controller: RunningController,
    ) -> None:
        self.local = local
        self._controller = controller
        local.clock.move_to(WINDOW - 10.0)
        roster = local.keyholder.roster
        roster.withdraw([meter.meter_id for meter in local.meters[METERS:]])
        self._report(RELEASED)
        local.aggregator.sealer.step()
        local.aggregator.releaser.step()
        self.sealed_reports = self._report(SEALED)
        local.aggregator.sealer.step()
        self.open_reports = self._report(OPEN, 6)
        version = roster.in_force(SEALED)
        assert version is not None
        parsed = [parse_report(message) for message in self.sealed_reports]
        self.release: BuiltRelease = build_release(
            local.parameters(SEALED), version.version, parsed
        )
        self._make_services(totals, totals_address)

    def certificate(self, role: Role) -> bytes:
        """A role's, PEM."""
        return (self.local.paths.tls(role) / "cert.pem").read_bytes()

    def channel(self, service: Service, role: Role) -> grpc.Channel:
        """A connection to a service with a role's certificate."""
        tls = Profile.load(self.local.paths.profile("meter")).tls
        folder = self.local.paths.tls(role)
        own = replace(tls, certificate=folder / "cert.pem", key=folder / "key.pem")
        city_id = self.local.aggregator_config.city_id
        return connect(service.address, service.server, city_id, own)

    def canaries(self) -> list[bytes]:
        """Secrets as bytes, hex and base64; and what mutations put into fields."""
        config = self.local.keyholder_config
        secrets = [config.key_encrypting_key_file.read_bytes()]
        for meter in self.local.meters[:20]:
            secrets += [bytes(meter.signing_key), meter.sealing_secret]
        shown = [form for s in secrets for form in (s, s.hex().encode(), base64.b64encode(s))]
        return [*shown, CANARY, CANARY[:20], str(config.state.parent).encode()]

    def held(self) -> int:
        """Entry bytes that the key-holder holds of the sealed window's release."""
        progress = self.local.keyholder.releases.progress(SEALED, self.release.digest)
        assert progress is not None, "the release went through"
        return progress

    def release_messages(self) -> list[bytes]:
        """The rest of the sealed window's release, as an aggregator would send it now."""
        size = CHUNK * (len(self.release.entries) // METERS)
        return [m.SerializeToString() for m in self.release.messages(self.held(), size)]

    def _report(self, window: int, meters: int = METERS) -> list[report_pb2.Report]:
        local = self.local
        local.enter_window(window)
        reports = [local.report(at, window, (READING, 0)) for at in range(meters)]
        batch = aggregator_pb2.SubmitReportsRequest(reports=reports)
        reply = local.stub("gateway").SubmitReports(batch)
        assert all(outcome.HasField("receipt") for outcome in reply.outcomes)
        return reports

    def _make_services(self, totals: TotalsProcess, totals_address: str) -> None:
        local = self.local
        aggregator = Boundary(local.aggregator.server)
        keyholder = Boundary(make_server(local.keyholder, local.keyholder_config))
        store = local.aggregator_config.state / "aggregator.db"
        state, published = local.keyholder_config.state, local.keyholder_config.published
        stored, rostered = _version(store), _version(state / "roster.db")
        log = [published / "log" / name for name in ("records", "head")]

        def kept() -> object:
            return [(s.st_size, s.st_mtime_ns) for s in (p.stat() for p in log)], rostered()

        def all_kept() -> object:
            return _files(state, published)

        def shown() -> object:
            return _files(published)

        make = Service
        found = [
            make(
                "aggregator",
                aggregator,
                "aggregator",
                local.address,
                stored,
                lambda: store_digest(store),
            ),
            make(
                "keyholder",
                keyholder,
                "keyholder",
                local.keyholder_config.listen,
                kept,
                all_kept,
            ),
            make("roster", keyholder, "keyholder", local.keyholder_config.listen, kept, all_kept),
            make("totals", Boundary(totals.server), "totals", totals_address, kept, shown),
            make("log", Boundary(totals.server), "totals", totals_address, kept, shown),
            make(
                "controller",
                Boundary(self._controller.process.server),
                "controller",
                self._controller.address,
                _version(self._controller.journal),
                lambda: store_digest(self._controller.journal),
            ),
            make("health", Boundary(totals.server), "totals", totals_address, kept, shown),
        ]
        self.services = {service.name: service for service in found}
        self._fill()

    def _fill(self) -> None:
        services = self.services
        self._fill_aggregator(services["aggregator"])
        digest = self.release.digest
        keyholder = services["keyholder"]
        for window in (OPEN, 0):
            asked = aggregator_pb2.GetCityParametersRequest(window_start=window)
            keyholder.add("GetCityParameters", Role.AGGREGATOR, asked)
        progress = keyholder_pb2.GetReleaseProgressRequest
        keyholder.add(
            "GetReleaseProgress",
            Role.AGGREGATOR,
            progress(window_start=SEALED, release_digest=digest),
        )
        taking = self.local.stored_window(OPEN)
        parsed = [parse_report(message) for message in self.open_reports]
        keyholder.add(
            "PrecheckEntries",
            Role.AGGREGATOR,
            keyholder_pb2.PrecheckEntriesRequest(
                window_start=OPEN,
                parameters_digest=taking.parameters_digest,
                roster_version=taking.roster_version,
                entries=b"".join(Entry(r.claim, r.signature).encode() for r in parsed),
            ),
        )
        keyholder.corpus[keyholder.path("Release")] = [
            Base(self.release_messages(), Role.AGGREGATOR)
        ]
        self._fill_roster(services["roster"])
        self._fill_totals(services["totals"])
        self._fill_log(services["log"])
        self._fill_controller(services["controller"])
        health = services["health"]
        for name in ("gridveil.v1.Totals", ""):
            for method in ("Check", "Watch"):
                health.add(method, Role.METER, health_pb2.HealthCheckRequest(service=name))
        health.corpus[health.path("List")] = [Base([b""], Role.AUDITOR)]

    def _fill_aggregator(self, service: Service) -> None:
        reports = self.open_reports
        for report in reports[:3]:
            service.add("SubmitReport", Role.METER, report)
        batch = aggregator_pb2.SubmitReportsRequest
        service.add("SubmitReports", Role.GATEWAY, batch(reports=reports[:3]))
        service.add("StreamReports", Role.GATEWAY, *reports[:3])
        for window in (OPEN, RELEASED, 0):
            asked = aggregator_pb2.GetCityParametersRequest(window_start=window)
            service.add("GetCityParameters", Role.METER, asked)
        for kind in (1, 2):
            aggregate = aggregator_pb2.GetAggregateRequest(window_start=SEALED, kind=kind)  # type: ignore[arg-type]
            service.add("GetAggregate", Role.AUDITOR, aggregate)

    def _fill_roster(self, service: Service) -> None:
        meters, city_id = self.local.meters, self.local.aggregator_config.city_id
        enrolments = [meter.enrolment(city_id) for meter in meters[:4]]
        gone = [meter.meter_id for meter in meters[METERS:]]
        service.add(
            "EnrolMeters", Role.REGISTRAR, keyholder_pb2.EnrolMetersRequest(enrolments=enrolments)
        )
        service.add(
            "WithdrawMeters", Role.REGISTRAR, keyholder_pb2.WithdrawMetersRequest(meter_ids=gone)
        )
        for known in (0, 1):
            asked = keyholder_pb2.GetRosterRequest(known_version=known, window_start=SEALED)
            service.add("GetRoster", Role.REGISTRAR, asked)
        service.add("ListSuspects", Role.REGISTRAR, keyholder_pb2.ListSuspectsRequest(limit=10))

    def _fill_totals(self, service: Service) -> None:
        service.add("GetTotal", Role.OPERATOR, totals_pb2.GetTotalRequest(window_start=RELEASED))
        for asked in (
            totals_pb2.ListTotalsRequest(from_window=RELEASED, until_window=OPEN, page_size=10),
            totals_pb2.ListTotalsRequest(page_token=bytes(40), page_size=1),
        ):
            service.add("ListTotals", Role.OPERATOR, asked)
        watch = totals_pb2.WatchTotalsRequest(from_window=RELEASED)
        service.add("WatchTotals", Role.OPERATOR, watch)
        entries = totals_pb2.GetEntriesRequest(window_start=RELEASED)
        service.add("GetEntries", Role.AUDITOR, entries)
        parameters = totals_pb2.GetParametersRequest(window_start=RELEASED)
        service.add("GetParameters", Role.METER, parameters)
        own = totals_pb2.GetOwnEntryRequest(window_start=RELEASED, tag=bytes(range(16)))
        service.add("GetOwnEntry", Role.METER, own)

    def _fill_log(self, service: Service) -> None:
        pb2 = transparency_pb2
        service.add("GetCheckpoint", Role.OPERATOR, pb2.GetCheckpointRequest())
        service.add(
            "GetInclusionProof", Role.METER, pb2.GetInclusionProofRequest(window_start=RELEASED)
        )
        service.add(
            "GetConsistencyProof", Role.AUDITOR, pb2.GetConsistencyProofRequest(old_size=1, size=2)
        )
        service.add("GetRecords", Role.AUDITOR, pb2.GetRecordsRequest(first=0, limit=10))

    def _fill_controller(self, service: Service) -> None:
        pb2 = controller_pb2
        service.add("GetSignal", Role.OPERATOR, pb2.GetSignalRequest())
        service.add("WatchSignals", Role.OPERATOR, pb2.WatchSignalsRequest(**{"from": RELEASED}))
        service.add("GetRules", Role.AUDITOR, pb2.GetRulesRequest())
        day = datetime.fromtimestamp(RELEASED, UTC).date().isoformat()
        service.add("GetForecast", Role.AUDITOR, pb2.GetForecastRequest(day=day))


@contextmanager
def serving_city(folder: Path) -> Iterator[ServingCity]:
    """The city, its windows and its services; all of it stops with the block."""
    with ExitStack() as stack:
        local = stack.enter_context(LocalCity.create(folder, meters=METERS + WITHDRAWN))
        totals = TotalsProcess(TotalsConfig.load(local.paths.config("totals")))
        stack.callback(totals.stop)
        address = totals.start()
        controller = stack.enter_context(running_controller(local.paths, local.clock))
        city = ServingCity(local, totals, address, controller)
        _await_total(city)
        yield city


def reports_of(city: ServingCity) -> list[Report]:
    """The reports of the sealed window."""
    return [parse_report(message) for message in city.sealed_reports]


def _await_total(city: ServingCity) -> None:
    service = city.services["totals"]
    (base,) = service.corpus[service.path("GetTotal")]
    certificate = city.certificate(base.role)
    until = time.monotonic() + 30
    while service.boundary.call(service.path("GetTotal"), base.messages, certificate).told:
        assert time.monotonic() < until, "the totals service does not see the released window"
        time.sleep(0.05)


def _version(path: Path) -> Callable[[], object]:
    """A number that changes when another connection writes to a database."""
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    return lambda: reader.execute("PRAGMA data_version").fetchall()


def _files(*folders: Path) -> str:
    """SHA-256 of every durable byte, but for releases on their way in and SQLite's own memory."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and "spool" not in path.parts and not path.name.endswith("-shm"):
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()
