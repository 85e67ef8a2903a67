"""The totals process: a reader of the release log, and a server."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from gridveil.protocol.checkpoint import log_key
from gridveil.tracing.spans import make_tracer
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.follower import Follower
from gridveil_services.totals.index import SettledIndex
from gridveil_services.totals.log_service import LogService, Prover, log_binding
from gridveil_services.totals.service import TotalsService, totals_binding

if TYPE_CHECKING:
    from gridveil_services.totals.metrics import TotalsMetrics

LOG_FOLDER = "log"
STALE_S = 10.0
"""Real seconds without a look at the whole log after which the service is not ready."""

_REQUEST_BYTES = 4_096
_WATCHERS = 256


class TotalsProcess:
    """Wires the parts of a totals process together."""

    def __init__(self, config: TotalsConfig) -> None:
        """Read the release log; IntegrityLost or CONFIG_INVALID if that is not possible."""
        index = SettledIndex()
        key = log_key(config.city_id, config.identity_key)
        log = PublishedLog(config.published / LOG_FOLDER, key)
        service = TotalsService(index, Prover(log), config.published, config.window_length)
        log_service = LogService(log, index, config.window_length)
        metrics = _metrics(config)
        tracer = make_tracer(config.tracing, Role.TOTALS)
        self.server = Server(
            [totals_binding(service), log_binding(log_service)],
            ServerOptions(
                listen=config.listen,
                tls=config.tls,
                city_id=config.city_id,
                role=Role.TOTALS,
                max_message_bytes=_REQUEST_BYTES,
                max_streams=_WATCHERS,
            ),
            metrics,
            tracer,
        )
        self._follower = follower = Follower(config, log, index, self.server.set_ready)
        self.server.readiness.require("log", lambda: follower.read_age_s < STALE_S)
        self._opened = ExitStack()
        self._opened.callback(tracer.close)
        self.metrics_url: str | None = None
        if config.metrics is not None and metrics is not None:
            from gridveil_services.metrics.exposition import MetricsServer

            metrics.tell_of(self.server)
            metrics.look_at(log, index, follower, config.window_length)
            exposed = MetricsServer(config.metrics, metrics.registry)
            self.metrics_url = self._opened.enter_context(exposed).url

    def start(self) -> str:
        """Serve and follow the log; the address."""
        address = self.server.start()
        self._follower.start()
        return address

    def stop(self) -> None:
        """Stop at once."""
        self._follower.stop()
        self.server.drain(0.0)
        self._opened.close()

    def run(self) -> None:
        """Serve until a signal comes."""
        self.start()
        with self._opened:
            run_until_signal(self.server, on_drain=self._follower.stop)


def _metrics(config: TotalsConfig) -> TotalsMetrics | None:
    """Only where they are served is what counts them loaded."""
    if config.metrics is None:
        return None
    from gridveil_services.totals.metrics import TotalsMetrics

    return TotalsMetrics()
