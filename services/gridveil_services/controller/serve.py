"""The controller process: a follower of totals, a clock that ticks, and a server."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.tracing.spans import make_tracer
from gridveil_services.controller.config import ControllerConfig
from gridveil_services.controller.follower import Follower
from gridveil_services.controller.forecasts import Forecasts
from gridveil_services.controller.history import History, read_recorded
from gridveil_services.controller.journal import Delivery, Journal
from gridveil_services.controller.service import ControllerService, controller_binding
from gridveil_services.controller.signalling import (
    Drafts,
    Signaller,
    SignalObserver,
    nothing_to_send,
)
from gridveil_services.controller.ticker import Ticker
from gridveil_services.controller.vtn.drafts import Drafter
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal

if TYPE_CHECKING:
    from gridveil_services.controller.metrics import ControllerMetrics
    from gridveil_services.controller.vtn.sender import Sender

JOURNAL_FILE = "controller.db"

_REQUEST_BYTES = 4_096
_WATCHERS = 256

_log = structlog.get_logger()


class ControllerProcess:
    """Wires the parts of a controller together."""

    def __init__(self, config: ControllerConfig, clock: Clock) -> None:
        """Open the journal.

        Raises:
            MalformedInput: CONFIG_INVALID.
            IntegrityLost: PARTIAL_CORRUPT if the journal is damaged.
            Unavailable: STORE_UNAVAILABLE if another process uses it.
        """
        with ExitStack() as opened:
            self._journal = Journal(config.state / JOURNAL_FILE, config.city_id, int(clock.now()))
            opened.callback(self._journal.close)
            self._stop = threading.Event()
            self._journal.on_failure(self._stop.set)
            metrics = _metrics(config)
            history = self._make_workers(config, clock, metrics)
            tracer = make_tracer(config.profile.tracing, Role.CONTROLLER)
            opened.callback(tracer.close)
            forecasts = Forecasts(history, config.zone, config.rules.window_length, clock)
            service = ControllerService(config.rules, config.time_zone, self.signaller, forecasts)
            options = _options(config)
            self.server = Server([controller_binding(service)], options, metrics, tracer)
            self.server.readiness.require("journal", lambda: self._journal.usable)
            self.server.readiness.require("totals", lambda: self._follower.following)
            self.metrics_url = self._serve_metrics(config, metrics, opened)
            self._opened = opened.pop_all()

    def _make_workers(
        self, config: ControllerConfig, clock: Clock, metrics: ControllerMetrics | None
    ) -> History:
        rules, journal = config.rules, self._journal
        recorded = read_recorded(config.history, rules.window_length) if config.history else {}
        history = History(rules, journal.windows(), recorded)
        self._sender = _sender(config, journal, metrics)
        observers: list[SignalObserver | None] = [metrics, self._sender]
        self.signaller = Signaller(
            rules,
            journal,
            history,
            clock,
            _drafts(config, journal),
            (observer for observer in observers if observer is not None),
        )
        self._follower = Follower(config.profile, rules, self.signaller, history, clock)
        self._ticker = Ticker(self.signaller, clock)
        return history

    def start(self) -> str:
        """Find out what happened meanwhile, then serve; the address."""
        self._look_back()
        address = self.server.start()
        self._follower.start()
        self._ticker.start()
        if self._sender is not None:
            self._sender.start()
        return address

    def _look_back(self) -> None:
        """What stands in the journal may be old: nobody is shown it before time has had its say."""
        try:
            self._follower.catch_up()
        except GridveilError as error:
            _log.warning("totals are out of reach", reason=error.reason)
        self.signaller.tick()

    def stop(self) -> None:
        """Stop at once."""
        self._stop_working()
        self.server.drain(0.0)
        self._opened.close()

    def run(self) -> bool:
        """Serve until a signal comes, or the journal fails; whether it did not."""
        self.start()
        with self._opened:
            run_until_signal(self.server, on_drain=self._stop_working, stop=self._stop)
            return self._journal.usable

    def _stop_working(self) -> None:
        self._ticker.stop()
        self._follower.stop()
        if self._sender is not None:
            self._sender.stop()

    def _serve_metrics(
        self, config: ControllerConfig, metrics: ControllerMetrics | None, opened: ExitStack
    ) -> str | None:
        if config.metrics is None or metrics is None:
            return None
        from gridveil_services.metrics.exposition import MetricsServer

        metrics.tell_of(self.server)
        metrics.look_at(self.signaller, self._journal, config.rules.window_length)
        return opened.enter_context(MetricsServer(config.metrics, metrics.registry)).url


def _drafts(config: ControllerConfig, journal: Journal) -> Drafts:
    vtn = config.vtn
    if vtn is None:
        return nothing_to_send
    state = Delivery.NOT_SENT if vtn.access is None else Delivery.PENDING
    return Drafter(config.rules, vtn.program_id, vtn.report_event, journal.instance, state)


def _sender(
    config: ControllerConfig, journal: Journal, metrics: ControllerMetrics | None
) -> Sender | None:
    """Only where something is sent is what sends loaded."""
    if config.vtn is None or config.vtn.access is None:
        journal.send_nothing()
        return None
    try:
        from gridveil_services.controller.vtn.client import VtnClient
        from gridveil_services.controller.vtn.sender import Sender
    except ModuleNotFoundError:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "vtn needs more: install it with: pip install 'gridveil-services[vtn]'",
            field="vtn",
        ) from None
    return Sender(journal, config.vtn, VtnClient(config.vtn.access), metrics)


def _options(config: ControllerConfig) -> ServerOptions:
    return ServerOptions(
        listen=config.listen,
        tls=config.profile.tls,
        city_id=config.city_id,
        role=Role.CONTROLLER,
        max_message_bytes=_REQUEST_BYTES,
        max_streams=_WATCHERS,
    )


def _metrics(config: ControllerConfig) -> ControllerMetrics | None:
    """Only where they are served is what counts them loaded."""
    if config.metrics is None:
        return None
    from gridveil_services.controller.metrics import ControllerMetrics

    return ControllerMetrics()
