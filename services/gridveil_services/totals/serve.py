"""The totals process: a reader of the release log, and a server."""

from __future__ import annotations

from gridveil.protocol.checkpoint import log_key
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.rpc import Role, Server, ServerOptions, run_until_signal
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.follower import Follower
from gridveil_services.totals.index import SettledIndex
from gridveil_services.totals.log_service import LogService, Prover, log_binding
from gridveil_services.totals.service import TotalsService, totals_binding

LOG_FOLDER = "log"

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
        )
        self._follower = Follower(config, log, index, self.server.set_ready)

    def start(self) -> str:
        """Serve and follow the log; the address."""
        address = self.server.start()
        self._follower.start()
        return address

    def stop(self) -> None:
        """Stop at once."""
        self._follower.stop()
        self.server.drain(0.0)

    def run(self) -> None:
        """Serve until a signal comes."""
        self.start()
        run_until_signal(self.server, on_drain=self._follower.stop)
