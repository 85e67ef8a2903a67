"""Following the key-holder's release log into the index."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import structlog

from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
)
from gridveil.protocol.log_records import settled_by
from gridveil.protocol.release import open_total
from gridveil.protocol.v1 import totals_pb2
from gridveil_services.releaselog.published import PublishedLog, PublishedRecord
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.index import SettledIndex

POLL_S = 0.2

_log = structlog.get_logger()


class Follower:
    """Reads new records from a thread of its own; what the key-holder did not sign is corrupt."""

    def __init__(
        self,
        config: TotalsConfig,
        log: PublishedLog,
        index: SettledIndex,
        on_ready: Callable[[bool], None],
        *,
        poll_s: float = POLL_S,
    ) -> None:
        """Read all there is.

        Args:
            config: the city and its pinned key.
            log: what to read.
            index: what to fill.
            on_ready: told whenever the log became readable or unreadable.
            poll_s: real seconds between two looks.

        Raises:
            IntegrityLost: LOG_CORRUPT or LOG_ROLLED_BACK.
            MalformedInput: CONFIG_INVALID if the folder cannot be read.
        """
        self._config = config
        self._index = index
        self._on_ready = on_ready
        self._poll_s = poll_s
        self._ready = True
        self._log = log
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._read_at = time.monotonic()
        try:
            self._poll()
        except OSError:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "published cannot be read", field="published"
            ) from None

    @property
    def read_age_s(self) -> float:
        """Real seconds since the log was last read to its end."""
        return time.monotonic() - self._read_at

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self._poll()
            except IntegrityLost as error:
                _log.critical("release log is corrupt", cause=error.message)
                self._fail(error)
                return
            except OSError as error:
                self._fail(Unavailable(Reason.STORE_UNAVAILABLE, "the release log is not readable"))
                _log.error("release log is not readable", errno=error.errno)
            else:
                self._become(ready=True)

    def _poll(self) -> None:
        self._index.add(self._outcomes(self._log.advance()))
        self._read_at = time.monotonic()

    def _fail(self, error: GridveilError) -> None:
        self._index.fail(error)
        self._become(ready=False)

    def _become(self, *, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._on_ready(ready)

    def _outcomes(self, published: list[PublishedRecord]) -> Iterator[totals_pb2.WindowOutcome]:
        for found in published:
            outcome = settled_by(found.record)
            if outcome is None:
                continue
            if outcome.HasField("total"):
                self._check(outcome.window_start, outcome.total)
            outcome.proof.index = found.index
            outcome.proof.record = found.payload
            yield outcome

    def _check(self, window_start: int, signed: totals_pb2.SignedTotal) -> None:
        config = self._config
        try:
            total = open_total(signed.total, signed.signature, config.identity_key)
        except (NotAuthentic, MalformedInput):
            raise _corrupt("a total is not signed by the city's key-holder") from None
        if (total.city_id, total.window_start) != (config.city_id, window_start):
            raise _corrupt("a total is of another city or window")
        if total.window_length != config.window_length:
            raise _corrupt("a total has another window_length than this configuration")


def _corrupt(how: str) -> IntegrityLost:
    return IntegrityLost(Reason.LOG_CORRUPT, f"the release log is corrupt: {how}")
