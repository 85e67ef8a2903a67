"""The aggregator as a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from gridveil.clock import Clock
from gridveil.tracing.spans import Tracer, make_tracer
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.aggregator.follower import Follower, load_city
from gridveil_services.aggregator.forerunner import Forerunner
from gridveil_services.aggregator.ingest import Ingest
from gridveil_services.aggregator.memory import collect_less_garbage, keep_freed_memory
from gridveil_services.aggregator.observer import IngestObserver
from gridveil_services.aggregator.periodic import Periodic
from gridveil_services.aggregator.readiness import StoreReadiness
from gridveil_services.aggregator.releaser import Releaser
from gridveil_services.aggregator.sealer import Sealer
from gridveil_services.aggregator.service import AggregatorService, binding
from gridveil_services.aggregator.sharing import Sharing
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.documents import SqliteDocuments
from gridveil_services.aggregator.store.interface import Phase, Store, StoreFailed
from gridveil_services.aggregator.store.schema import SCHEMA
from gridveil_services.aggregator.store.sqlite import SqliteStore
from gridveil_services.aggregator.upstream import KeyHolderClient
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal

if TYPE_CHECKING:
    from gridveil_services.aggregator.metrics import AggregatorMetrics

_log = structlog.get_logger()

MOST_MESSAGE_BYTES = 3_670_016
"""A batch of 3.5 MiB."""
STORE_FILE = "aggregator.db"


class Aggregator:
    """All parts of one aggregator, wired together. Use as a context manager, and start it."""

    def __init__(
        self,
        config: AggregatorConfig,
        clock: Clock,
        on_failure: Callable[[], None] = lambda: None,
        *,
        shared: bool = False,
    ) -> None:
        """Open the store and check it.

        Args:
            config: where everything is.
            clock: the aggregator's own.
            on_failure: called once if the store fails; nothing is acknowledged afterwards.
            shared: whether other workers serve on the same port.

        Raises:
            StoreFailed: the store is damaged, of another kind, in use, or could lose data.
            NotAuthentic: KEY_NOT_PINNED if it was made for another city or key-holder.
        """
        with ExitStack() as opened:
            tracer = make_tracer(config.tracing, Role.AGGREGATOR)
            opened.callback(tracer.close)
            database = Database(
                config.state / STORE_FILE,
                SCHEMA,
                max_bytes=config.max_store_bytes,
                on_failure=on_failure,
            )
            opened.callback(database.close)
            self.store = _store(config, database, clock, opened)
            self.documents = SqliteDocuments(database)
            self.city = load_city(self.documents, config.city_id, config.identity_key)
            metrics = _metrics(config)
            self.committer = opened.enter_context(Committer(self.store, clock, observer=metrics))
            self._keyholder = KeyHolderClient(
                config.keyholder, config.city_id, config.identity_key, config.tls, tracer
            )
            opened.callback(self._keyholder.close)
            self._make_background(config, clock, metrics, tracer)
            self.ingest = Ingest(
                self.city, self.store, self.committer, clock, self._on_gap, metrics, tracer
            )
            service = AggregatorService(self.city, self.store, self.ingest, clock)
            options = _options(config, shared=shared)
            self.server = Server([binding(service)], options, metrics, tracer)
            self.server.readiness.require("parameters", lambda: self.follower.ready)
            self.server.readiness.require("store", StoreReadiness(self.store, self.committer))
            self.metrics_url = self._serve_metrics(config, metrics, clock, opened)
            self._tell_poisoned()
            self._opened = opened.pop_all()

    def _serve_metrics(
        self,
        config: AggregatorConfig,
        metrics: AggregatorMetrics | None,
        clock: Clock,
        opened: ExitStack,
    ) -> str | None:
        if config.metrics is None or metrics is None:
            return None
        from gridveil_services.metrics.exposition import MetricsServer

        metrics.tell_of(self.server)
        metrics.look_at(self.store, self.committer, clock)
        return opened.enter_context(MetricsServer(config.metrics, metrics.registry)).url

    def _make_background(
        self,
        config: AggregatorConfig,
        clock: Clock,
        observer: IngestObserver | None,
        tracer: Tracer,
    ) -> None:
        store, committer = self.store, self.committer
        self.follower = Follower(
            city=self.city,
            store=store,
            documents=self.documents,
            committer=committer,
            keyholder=self._keyholder,
            clock=clock,
            development=config.development,
            on_change=self._tell_health,
        )
        self.releaser = Releaser(
            store,
            committer,
            self._keyholder,
            clock,
            config.city_id,
            self._on_settled,
            observer,
            tracer,
        )
        self._releasing = Periodic("releaser", self.releaser.step)
        self.sealer = Sealer(
            city=self.city,
            store=store,
            documents=self.documents,
            committer=committer,
            clock=clock,
            retention_s=config.retention_s,
            on_sealed=self._releasing.wake,
            tracer=tracer,
        )
        self.forerunner = Forerunner(store, self._keyholder, clock)
        self._running_ahead = Periodic("forerunner", self.forerunner.step)
        self.sharing = Sharing(store, committer, clock, self._releasing.wake, self._on_lead)
        self._following = Periodic("follower", self.follower.step)
        self._keeping_up = Periodic("sharing", self.sharing.step)
        self._sealing = Periodic("sealer", self.sealer.step)
        self._background = (
            self._keeping_up,
            self._following,
            self._running_ahead,
            self._sealing,
            self._releasing,
        )

    def start(self) -> str:
        """Serve, and do the background work; the address."""
        address = self.server.start()
        for work in self._background:
            work.start()
        return address

    def stop_background(self) -> None:
        """End the background work, calls to the key-holder included."""
        self._keyholder.close()
        for work in self._background:
            work.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop_background()
        if self.server.address is not None:
            self.server.drain(0.0)
        self._opened.close()

    def _on_gap(self) -> None:
        self.follower.kick()
        self._following.wake()

    def _on_settled(self) -> None:
        self.follower.follow_epochs()
        self._following.wake()

    def _on_lead(self) -> None:
        self.follower.lead()
        self._following.wake()

    def _tell_poisoned(self) -> None:
        for window in self.store.windows():
            if window.phase is Phase.POISONED:
                why = self.store.why_poisoned(window.start)
                _log.error("what is stored of a window is not whole", window=window.start, why=why)

    def _tell_health(self) -> None:
        self.server.look()


def serve(config: AggregatorConfig, clock: Clock, *, shared: bool = False) -> None:
    """Serve until a signal comes, or the store fails.

    Raises:
        StoreFailed: it failed, now or at the start; the next start checks it.
    """
    keep_freed_memory()
    failed, stop = threading.Event(), threading.Event()

    def stop_if_failed() -> None:
        failed.wait()
        _log.error("the store has failed")
        stop.set()

    with Aggregator(config, clock, on_failure=failed.set, shared=shared) as aggregator:
        collect_less_garbage()
        threading.Thread(target=stop_if_failed, name="fail-stop", daemon=True).start()
        if shared:
            threading.Thread(
                target=_stop_with_parent, args=(stop,), name="parent", daemon=True
            ).start()
        aggregator.start()
        run_until_signal(aggregator.server, on_drain=aggregator.stop_background, stop=stop)
    if failed.is_set():
        raise StoreFailed("the store has failed")


def _stop_with_parent(stop: threading.Event) -> None:
    """Drain when whoever started this process is gone or wants it: standard input is at its end.

    Not by a signal: if one has come already, a second would end the process at once.
    """
    while os.read(0, 1):
        pass
    stop.set()


def _store(config: AggregatorConfig, database: Database, clock: Clock, opened: ExitStack) -> Store:
    """Windows in the aggregator's own file, or in Redis; only then is its client loaded."""
    if config.redis is None:
        return SqliteStore(database)
    from gridveil_services.aggregator.store.redis.store import RedisStore

    store = RedisStore.open(config.redis, database, config.city_id, clock)
    opened.callback(store.close)
    return store


def _metrics(config: AggregatorConfig) -> AggregatorMetrics | None:
    """Only where they are served is what counts them loaded."""
    if config.metrics is None:
        return None
    from gridveil_services.aggregator.metrics import AggregatorMetrics

    return AggregatorMetrics()


def _options(config: AggregatorConfig, *, shared: bool) -> ServerOptions:
    return ServerOptions(
        listen=config.listen,
        tls=config.tls,
        city_id=config.city_id,
        role=Role.AGGREGATOR,
        max_message_bytes=MOST_MESSAGE_BYTES,
        share_port=shared,
    )
