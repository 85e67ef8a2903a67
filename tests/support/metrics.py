"""A city whose services serve metrics, played for one window, and what they then say."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.totals.config import TotalsConfig
from gridveil_services.totals.serve import TotalsProcess
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.controllers import running_controller
from tests.support.reports import WINDOW

ANYWHERE = ("127.0.0.1", 0)
METERS = 120
CANARIES = (91_357, 73_193)
"""What every meter reads: numbers that nothing else here has."""

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(url: str | None) -> str:
    """What is served as metrics."""
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a service of the test
        return str(answer.read(), "utf-8")


def series(text: str) -> Series:
    """Every sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    """One sample; KeyError if there is none."""
    return found[name, tuple(sorted(labels.items()))]


@dataclass(frozen=True)
class Row:
    """One metric as docs/observability.md shows it."""

    name: str
    roles: str
    kind: str
    labels: str
    meaning: str

    def __str__(self) -> str:
        labels = self.labels or "-"
        return f"| `{self.name}` | {self.roles} | {self.kind} | {labels} | {self.meaning} |"


def rows(texts: Mapping[str, str]) -> list[Row]:
    """Every metric that the roles expose, by name."""
    found: dict[str, list[tuple[str, Metric]]] = {}
    for role, text in texts.items():
        for family in text_string_to_metric_families(text):
            found.setdefault(family.name, []).append((role, family))
    made = []
    for name, told in sorted(found.items()):
        family = told[0][1]
        suffix = "_total" if family.type == "counter" else ""
        labels = {label for _, f in told for sample in f.samples for label in sample.labels}
        roles = "all" if len(told) == len(texts) else ", ".join(role for role, _ in told)
        shown = ", ".join(f"`{label}`" for label in sorted(labels - {"le"}))
        made.append(Row(name + suffix, roles, family.type, shown, family.documentation))
    return made


@dataclass(frozen=True)
class Played:
    """What the roles said after a window was released."""

    city: LocalCity
    texts: Mapping[str, str]

    def series(self, role: str) -> Series:
        return series(self.texts[role])


@contextmanager
def played_city(folder: Path) -> Iterator[Played]:
    """Reports that are accepted, sent again, and forged; sealed, released, read by totals."""
    with LocalCity.create(folder, meters=METERS, metrics=ANYWHERE) as city:
        city.enter_window(WINDOW)
        gateway = city.stub("gateway")
        reports = [city.report(meter, values=CANARIES) for meter in range(METERS)]
        forged = city.report(0, values=CANARIES)
        forged.signature = bytes(64)
        first = aggregator_pb2.SubmitReportsRequest(reports=[*reports[:60], forged])
        gateway.SubmitReports(first)
        gateway.SubmitReports(aggregator_pb2.SubmitReportsRequest(reports=reports[59:]))
        with suppress(grpc.RpcError):
            gateway.SubmitReports(aggregator_pb2.SubmitReportsRequest())
        city.clock.move_to(city.stored_window().closes)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        city.clock.move_to(WINDOW + 2 * LENGTH)
        totals = TotalsProcess(
            replace(TotalsConfig.load(city.paths.config("totals")), metrics=ANYWHERE)
        )
        with ExitStack() as stack:
            stack.callback(totals.stop)
            totals.start()
            controller = stack.enter_context(
                running_controller(city.paths, city.clock, metrics=ANYWHERE)
            )
            urls = {
                "aggregator": city.aggregator.metrics_url,
                "controller": controller.process.metrics_url,
                "keyholder": city.keyholder_metrics_url,
                "totals": totals.metrics_url,
            }
            yield Played(city, {role: scrape(url) for role, url in urls.items()})
