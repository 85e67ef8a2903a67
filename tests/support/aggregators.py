"""Real aggregators for tests.

An :class:`IngestHarness` has a store and an epoch but no network. A :class:`LocalCity` has an
aggregator and a key-holder in this process, with gRPC over mTLS between them and to the test:

with LocalCity.create(tmp_path, meters=120) as city:
    city.enter_window(WINDOW)
    city.stub("gateway").SubmitReports(city.batch(WINDOW))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import apsw
import grpc

from gridveil.clock import ManualClock
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters
from gridveil.protocol.refusal_lock import MOST_REFUSALS_PER_DAY
from gridveil.protocol.roster import RosterVersion, roster_digest
from gridveil.protocol.v1 import aggregator_pb2, aggregator_pb2_grpc, report_pb2
from gridveil.tracing.settings import TracingSettings
from gridveil.transport import connect, from_rpc_error
from gridveil_services.aggregator.city import City, Roster, SignedParameters
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.config import AggregatorConfig, RedisConfig
from gridveil_services.aggregator.follower import plan_window
from gridveil_services.aggregator.ingest import Answer, Ingest
from gridveil_services.aggregator.observer import IngestObserver
from gridveil_services.aggregator.serve import STORE_FILE, Aggregator
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.interface import MembershipRow, Window
from gridveil_services.aggregator.store.schema import SCHEMA
from gridveil_services.aggregator.store.sqlite import SqliteStore
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.serve import make_metrics, make_server, serving_metrics
from gridveil_services.metrics.config import Address
from tests.support.audits import assert_lawful
from tests.support.epochs import CityKeys, city_keys
from tests.support.ports import spare_addresses
from tests.support.reports import CITY_ID, WINDOW, MeterKeys, build_report, make_members

LENGTH = 900
REPORTING = WINDOW + LENGTH
"""A time at which reports of WINDOW are taken."""
VALUES = (250, 0)


class IngestHarness:
    """The path of a report, from its message to the store, without a network."""

    def __init__(
        self,
        folder: Path,
        *,
        meters: int = 12,
        keys: CityKeys | None = None,
        clock: ManualClock | None = None,
        max_bytes: int | None = None,
        observer: IngestObserver | None = None,
        **window: Any,
    ) -> None:
        """``window`` changes the facts of WINDOW, which is open and takes reports now."""
        self.path = folder / "aggregator.db"
        self.clock = clock or ManualClock(REPORTING)
        self._max_bytes = max_bytes
        self._observer = observer
        self.keys = keys or city_keys()
        self.meters = make_members(meters)
        self.city = City()
        signed = self.keys.signed()
        self.city.parameters.add(
            SignedParameters(self.parameters, signed.parameters, signed.signature)
        )
        self.city.roster = roster_of(self.meters)
        self._stack = ExitStack()
        self._open()
        assert self.city.roster.head is not None
        self.window = replace(plan_window(self.parameters, self.city.roster.head, WINDOW), **window)
        self.committer.run(lambda: self.store.open_window(self.window))

    @property
    def parameters(self) -> CityParameters:
        return self.keys.parameters

    def report(
        self, meter: int, values: Sequence[int] = VALUES, window: int = WINDOW
    ) -> report_pb2.Report:
        """A fresh report: another one each time."""
        return build_report(self.parameters, self.meters[meter], window, values).to_message()

    def submit(self, *messages: report_pb2.Report) -> list[Answer]:
        return self.ingest.submit(messages)

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._stack.close()

    def _open(self) -> None:
        database = Database(self.path, SCHEMA, max_bytes=self._max_bytes)
        self._stack.callback(database.close)
        self.store = SqliteStore(database)
        observer = self._observer
        committer = Committer(self.store, self.clock, observer=observer)
        self.committer = self._stack.enter_context(committer)
        self.ingest = Ingest(self.city, self.store, self.committer, self.clock, observer=observer)


def roster_of(meters: Sequence[MeterKeys], version: int = 1) -> Roster:
    """A roster of these meters."""
    members = sorted(meter.member for meter in meters)
    head = RosterVersion(CITY_ID, version, WINDOW, len(members), roster_digest(members))
    return Roster((MembershipRow(m.meter_id, m.signing_key, version, None) for m in members), head)


class LocalCity:
    """Key-holder and aggregator of one city in this process, on a clock that the test moves.

    The aggregator's background work runs only when the test asks for a step.
    """

    def __init__(self, paths: CityPaths, meters: Sequence[MeterKeys], start: float) -> None:
        self.paths = paths
        self.meters = list(meters)
        self.clock = ManualClock(start)
        self._keyholder_up = ExitStack()
        self._aggregator_up = ExitStack()
        self._channels = ExitStack()
        config = KeyHolderConfig.load(paths.config("keyholder"))
        self.keyholder_config = replace(config, listen=config.listen)
        self.aggregator_config = replace(
            AggregatorConfig.load(paths.config("aggregator")), listen="127.0.0.1:0"
        )

    @classmethod
    @contextmanager
    def create(
        cls,
        folder: Path,
        *,
        meters: int = 12,
        start: float = WINDOW - 10.0,
        redis: RedisConfig | None = None,
        metrics: Address | None = None,
        tracing: TracingSettings | None = None,
        **options: Any,
    ) -> Iterator[Self]:
        """A city whose meters are enrolled from the window after ``start`` on."""
        usual = CityOptions(
            min_cohort=100, refusals_per_day=MOST_REFUSALS_PER_DAY, development=True
        )
        made = replace(usual, **options)
        paths = create_city(folder / "city", replace(made, addresses=spare_addresses()))
        city = cls(paths, make_members(meters), start)
        city.aggregator_config = replace(
            city.aggregator_config, redis=redis, metrics=metrics, tracing=tracing
        )
        city.keyholder_config = replace(city.keyholder_config, metrics=metrics, tracing=tracing)
        try:
            city.start_keyholder()
            if meters:
                city.keyholder.roster.enrol([meter.member for meter in city.meters])
            city.start_aggregator()
            yield city
        finally:
            city.stop_aggregator()
            city.stop_keyholder()
        aggregator = city.aggregator_config
        assert_lawful(paths.published / "log", aggregator.city_id, aggregator.identity_key)

    def start_keyholder(self, unlock: int | None = None) -> None:
        config, up = self.keyholder_config, self._keyholder_up
        metrics = make_metrics(config)
        self.keyholder = KeyHolder(config, self.clock, unlock=unlock, observer=metrics)
        up.callback(self.keyholder.close)
        self.keyholder_server = up.enter_context(make_server(self.keyholder, config, metrics))
        self.keyholder_server.start()
        serving = serving_metrics(self.keyholder, self.keyholder_server, config, metrics)
        self.keyholder_metrics_url = up.enter_context(serving)

    def stop_keyholder(self) -> None:
        self._keyholder_up.close()

    def start_aggregator(self) -> None:
        self.aggregator = self._aggregator_up.enter_context(
            Aggregator(self.aggregator_config, self.clock)
        )
        self.address = self.aggregator.server.start()

    def stop_aggregator(self) -> None:
        self._channels.close()
        self._aggregator_up.close()

    def restart_aggregator(self) -> None:
        self.stop_aggregator()
        self.start_aggregator()

    def stub(self, role: str) -> aggregator_pb2_grpc.AggregatorStub:
        """The aggregator as a role sees it."""
        return aggregator_pb2_grpc.AggregatorStub(self.channel(role))

    def channel(self, role: str) -> grpc.Channel:
        """A connection with a role's certificate."""
        tls = Profile.load(self.paths.profile("meter")).tls
        folder = self.paths.tls(role)
        own = replace(tls, certificate=folder / "cert.pem", key=folder / "key.pem")
        city_id = self.aggregator_config.city_id
        return self._channels.enter_context(connect(self.address, "aggregator", city_id, own))

    def enter_window(self, window: int) -> None:
        """Let the follower open a window, then move on to when its reports are taken."""
        self.clock.move_to(window + 20)
        self.aggregator.follower.step()
        self.clock.move_to(window + LENGTH)

    def parameters(self, window: int = WINDOW) -> CityParameters:
        signed = self.keyholder.ring.for_window(window)
        assert signed is not None
        return signed.parameters

    def report(
        self, meter: int, window: int = WINDOW, values: Sequence[int] = VALUES
    ) -> report_pb2.Report:
        """A fresh report of a meter: another one each time."""
        made = build_report(self.parameters(window), self.meters[meter], window, values)
        return made.to_message()

    def batch(self, window: int = WINDOW) -> aggregator_pb2.SubmitReportsRequest:
        """A fresh report of every meter."""
        reports = [self.report(meter, window) for meter in range(len(self.meters))]
        return aggregator_pb2.SubmitReportsRequest(reports=reports)

    def stored_window(self, window: int = WINDOW) -> Window:
        found = self.aggregator.store.window(window)
        assert found is not None
        return found

    def store_digest(self, *, without: str = "") -> str:
        """SHA-256 of every row of every table, but one, of the aggregator's store."""
        return store_digest(self.aggregator_config.state / STORE_FILE, without)


def store_digest(path: Path, without: str = "") -> str:
    """SHA-256 of every row of every table of a store, but one."""
    digest = hashlib.sha256()
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        tables = reader.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != ? ORDER BY name",
            (without,),
        ).fetchall()
        for (table,) in tables:
            digest.update(str(table).encode())
            for row in sorted(map(repr, reader.execute(f"SELECT * FROM {table}"))):  # noqa: S608
                digest.update(row.encode())
    finally:
        reader.close()
    return digest.hexdigest()


def refusal(error: grpc.RpcError) -> tuple[str, str]:
    """Status code and reason of a call that failed."""
    call: Any = error
    return call.code().name, from_rpc_error(error).reason.value
