"""What the metrics of all roles have in common: the process, its calls, and looked-up gauges."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gridveil.protocol.errors import Reason

CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STAGE_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
RELEASE_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

Values = float | Mapping[str, float] | None


class Served(Protocol):
    """What is told of a server."""

    @property
    def certificate_expires(self) -> float: ...

    def conditions(self) -> dict[str, bool]: ...

    def methods(self) -> Iterable[str]: ...


@dataclass(frozen=True)
class _Look:
    name: str
    text: str
    look: Callable[[], Values]
    label: str | None


class LookedUp(Collector):
    """Gauges whose values are looked up when somebody asks; one that cannot be had is left out."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []

    def gauge(
        self, name: str, text: str, look: Callable[[], Values], label: str | None = None
    ) -> None:
        """Add a gauge; with ``label``, ``look`` returns values by that label's value."""
        self._looks.append(_Look(name, text, look, label))

    def collect(self) -> Iterator[Metric]:
        for found in self._looks:
            values: Values = None
            with suppress(Exception):  # no metric is worth the others
                values = found.look()
            if isinstance(values, Mapping):
                family = GaugeMetricFamily(found.name, found.text, labels=[found.label or ""])
                for value, number in values.items():
                    family.add_metric([value], number)
                yield family
            elif values is not None:
                yield GaugeMetricFamily(found.name, found.text, value=values)


class ProcessMetrics:
    """A registry of its own with what every role tells. Implements ``rpc.observer``."""

    def __init__(self, role: str) -> None:
        self.registry = CollectorRegistry()
        self.looked_up = LookedUp()
        self.registry.register(self.looked_up)
        build = Info("gridveil_build", "Version of the service.", registry=self.registry)
        build.info({"role": role, "version": _version(), "python": platform.python_version()})
        self._call_count = Counter(
            "gridveil_calls",
            "Calls that ended, by method, gRPC status and reason.",
            ["method", "code", "reason"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "gridveil_call_seconds",
            "Time from the admission of a call until it was handled, by method.",
            ["method"],
            buckets=CALL_BUCKETS_S,
            registry=self.registry,
        )

    def call_ended(self, method: str, code: str, reason: Reason | None, seconds: float) -> None:
        name = method.removeprefix("/")
        self._call_count.labels(name, code, "" if reason is None else reason.value).inc()
        self._call_seconds.labels(name).observe(seconds)

    def call_refused(self, method: str, code: str, reason: Reason) -> None:
        self._call_count.labels(method.removeprefix("/"), code, reason.value).inc()

    def tell_of(self, server: Served) -> None:
        """Tell of a server's readiness and certificate, too.

        A counter that begins at one looks to a scraper as if nothing had happened: hence the zeros.
        """
        for method in server.methods():
            name = method.removeprefix("/")
            self._call_count.labels(name, "OK", "")
            self._call_count.labels(name, "INTERNAL", Reason.INTERNAL.value)
            self._call_seconds.labels(name)
        self.looked_up.gauge(
            "gridveil_ready",
            "1 if a condition of readiness holds; the service is ready if all do.",
            lambda: {name: float(holds) for name, holds in server.conditions().items()},
            "condition",
        )
        self.looked_up.gauge(
            "gridveil_certificate_expiry_timestamp_seconds",
            "Unix time until when the service's own TLS certificate is valid.",
            lambda: server.certificate_expires,
        )


def _version() -> str:
    try:
        return version("gridveil-services")
    except PackageNotFoundError:
        return "unknown"
