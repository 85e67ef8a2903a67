"""Sending what waits to the VTN, from a thread of its own: no signal ever waits for a VTN.

At least once: that an object is sent is noted before, and before it is sent again the VTN is asked
whether it has it. The newest signal goes first; older ones that wait are superseded by it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from gridveil.protocol.errors import GridveilError
from gridveil_services.controller.core import Signal
from gridveil_services.controller.journal import Delivery, Journal, Kind, Parcel
from gridveil_services.controller.vtn.config import VtnConfig
from gridveil_services.controller.vtn.failure import Failure, NotDelivered

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0
_IDLE_S = 60.0
_PATHS = {Kind.EVENT: "/events", Kind.REPORT: "/reports"}
_MAY_BE_ITS_OWN = {Failure.SERVER_ERROR, Failure.UNANSWERED, Failure.MALFORMED}
"""What may be about one object only: others do not wait behind it."""
_NAMES = {Kind.EVENT: "eventName", Kind.REPORT: "reportName"}

_log = structlog.get_logger()


class Vtn(Protocol):
    """What a sender needs of :class:`VtnClient`."""

    def post(self, path: str, body: str) -> None: ...

    def has(self, path: str, filters: Mapping[str, str], key: str, name: str) -> bool: ...

    def close(self) -> None: ...


class DeliveryObserver(Protocol):
    """Told of every attempt. Neither blocks nor raises."""

    def concluded(self, kind: Kind, delivery: Delivery) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class Unobserved:
    """Tells nobody."""

    def concluded(self, kind: Kind, delivery: Delivery) -> None:
        pass

    def failed(self, failure: Failure) -> None:
        pass


class Sender:
    """Implements ``signalling.SignalObserver``: a signal wakes it."""

    def __init__(
        self,
        journal: Journal,
        config: VtnConfig,
        client: Vtn,
        observer: DeliveryObserver | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._config = config
        self._client = client
        self._observer = observer or Unobserved()
        self._now = now
        self._failures = 0
        self._not_before = 0.0
        self._behind: dict[Kind, int] = {}
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vtn", daemon=True)

    def signalled(self, _signal: Signal) -> None:
        self._woken.set()

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float = 2.0) -> None:
        """Send nothing further. What is on its way is found out at the next start."""
        self._stopped.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)
        if not self._thread.is_alive():
            self._client.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            try:
                delay = self.step()
            except GridveilError as error:
                _log.error("nothing can be sent", reason=error.reason)
                delay = LONGEST_RETRY_S
            except Exception as error:
                _log.error("sending failed", exc_info=error)
                delay = LONGEST_RETRY_S
            if not self._stopped.is_set():
                self._woken.wait(delay)

    def step(self) -> float:
        """Send one object, if one waits and it is time; seconds until the next step."""
        missing = self._not_before - self._now()
        if missing > 0:
            return missing
        parcel, superseded = self._journal.next_parcel(self._behind)
        for _ in range(superseded):
            self._observer.concluded(Kind.EVENT, Delivery.SUPERSEDED)
        if parcel is None:
            return _IDLE_S
        try:
            self._deliver(parcel)
        except NotDelivered as error:
            return self._put_off(parcel, error)
        self._failures = 0
        self._conclude(parcel, Delivery.DELIVERED)
        return 0.0

    def _deliver(self, parcel: Parcel) -> None:
        path = _PATHS[parcel.kind]
        if parcel.tried and self._is_there(parcel):
            return
        self._journal.mark_tried(parcel.place, tried=True)
        try:
            self._client.post(path, parcel.body)
        except NotDelivered as error:
            if error.untouched:
                self._journal.mark_tried(parcel.place, tried=False)
            elif error.final and self._is_there(parcel):
                return
            raise

    def _is_there(self, parcel: Parcel) -> bool:
        # One that has passed is superseded: those of years need not be looked through.
        filters = {"programID": self._config.program_id, "active": "true"}
        if parcel.kind is Kind.REPORT:
            filters = {"eventID": self._config.report_event or ""}
        return self._client.has(_PATHS[parcel.kind], filters, _NAMES[parcel.kind], parcel.name)

    def _put_off(self, parcel: Parcel, error: NotDelivered) -> float:
        self._observer.failed(error.failure)
        if error.final:
            _log.error("the VTN refused an object", kind=parcel.kind.name, number=parcel.number)
            self._conclude(parcel, Delivery.REFUSED)
            return 0.0
        bound = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures, 16))
        self._failures += 1
        if error.failure in _MAY_BE_ITS_OWN:
            self._behind[parcel.kind] = parcel.place
        delay = random.uniform(bound / 2, bound)  # noqa: S311 - spreads retries
        delay = max(delay, error.retry_after_s or 0.0)
        self._not_before = self._now() + delay
        _log.warning("the VTN has not taken an object", failure=error.failure, again_s=round(delay))
        return delay

    def _conclude(self, parcel: Parcel, delivery: Delivery) -> None:
        self._journal.conclude(parcel.place, delivery)
        self._observer.concluded(parcel.kind, delivery)
