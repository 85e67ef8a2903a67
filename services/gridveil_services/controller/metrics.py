"""The controller's metrics: what was signalled on what, and how old what it rests on is."""

from __future__ import annotations

from prometheus_client import Counter

from gridveil_services.controller.core import Signal
from gridveil_services.controller.journal import Delivery, Journal, Kind
from gridveil_services.controller.signalling import Signaller
from gridveil_services.controller.vtn.failure import Failure
from gridveil_services.metrics.instruments import ProcessMetrics


class ControllerMetrics(ProcessMetrics):
    """Of the process, its calls, its signals and what it sends.

    Implements ``signalling.SignalObserver`` and ``vtn.sender.DeliveryObserver``.
    """

    def __init__(self) -> None:
        super().__init__("controller")
        self._signals = Counter(
            "gridveil_control_signals",
            "Signals, by level, what they rest on, and cause.",
            ["level", "basis", "cause"],
            registry=self.registry,
        )
        self._deliveries = Counter(
            "gridveil_vtn_objects",
            "Objects for the VTN that came to an end, by kind and what became of them.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._failures = Counter(
            "gridveil_vtn_failures",
            "Attempts to deliver an object that failed, by cause.",
            ["cause"],
            registry=self.registry,
        )

        for failure in Failure:
            self._failures.labels(failure.value)
        for kind in Kind:
            for delivery in (Delivery.DELIVERED, Delivery.REFUSED, Delivery.SUPERSEDED):
                self._deliveries.labels(kind.name, delivery.name)

    def signalled(self, signal: Signal) -> None:
        self._signals.labels(str(signal.level), signal.basis.value, signal.cause.value).inc()

    def concluded(self, kind: Kind, delivery: Delivery) -> None:
        self._deliveries.labels(kind.name, delivery.name).inc()

    def failed(self, failure: Failure) -> None:
        self._failures.labels(failure.value).inc()

    def look_at(self, signaller: Signaller, journal: Journal, window_length: int) -> None:
        """Tell of the signal that stands."""
        gauge = self.looked_up.gauge
        gauge(
            "gridveil_control_level",
            "The level that stands, 0 to 3.",
            lambda: float(signaller.level),
        )
        gauge(
            "gridveil_vtn_pending_objects",
            "Objects that wait to be sent to the VTN.",
            lambda: float(journal.pending()),
        )
        gauge(
            "gridveil_control_newest_window_end_timestamp_seconds",
            "End of the newest window that was acted on; 0 if none was.",
            lambda: (
                0.0 if signaller.newest_window is None else signaller.newest_window + window_length
            ),
        )
