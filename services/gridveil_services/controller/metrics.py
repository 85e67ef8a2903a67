"""The controller's metrics: what was signalled on what, and how old what it rests on is."""

from __future__ import annotations

from prometheus_client import Counter

from gridveil_services.controller.core import Signal
from gridveil_services.controller.signalling import Signaller
from gridveil_services.metrics.instruments import ProcessMetrics


class ControllerMetrics(ProcessMetrics):
    """Of the process, its calls, and its signals. Implements ``signalling.SignalObserver``."""

    def __init__(self) -> None:
        super().__init__("controller")
        self._signals = Counter(
            "gridveil_control_signals",
            "Signals, by level, what they rest on, and cause.",
            ["level", "basis", "cause"],
            registry=self.registry,
        )

    def signalled(self, signal: Signal) -> None:
        self._signals.labels(str(signal.level), signal.basis.value, signal.cause.value).inc()

    def look_at(self, signaller: Signaller, window_length: int) -> None:
        """Tell of the signal that stands."""
        gauge = self.looked_up.gauge
        gauge(
            "gridveil_control_level",
            "The level that stands, 0 to 3.",
            lambda: float(signaller.level),
        )
        gauge(
            "gridveil_control_newest_window_end_timestamp_seconds",
            "End of the newest window that was acted on; 0 if none was.",
            lambda: (
                0.0 if signaller.newest_window is None else signaller.newest_window + window_length
            ),
        )
