"""Alerts, dashboard and documentation against the metrics that a played city really has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from gridveil.protocol.errors import Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil.watchdog.series import KNOWN
from tests.support.aggregators import LocalCity
from tests.support.metrics import ANYWHERE, Series, played_city, rows, scrape, series
from tests.support.promql import Question, Selector, question

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "deploy/prometheus/recording.yaml"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
SCRAPE = ROOT / "deploy/prometheus/prometheus.yaml"
DASHBOARD = ROOT / "deploy/grafana/gridveil.json"
MANUAL = ROOT / "docs/observability.md"
OF_PROMETHEUS = {"up": {"job", "instance"}}
"""Metrics and labels that the scraper makes itself."""
OF_SCRAPES = {"job", "instance"}
CLOSED = {"reason": set(Reason.__members__), "code": set(grpc.StatusCode.__members__)}
"""Labels whose other values appear when something happens."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the roles expose; the key-holder's is that of a city with noise, as well."""
    with played_city(tmp_path_factory.mktemp("alerts")) as played:
        found = dict(played.texts)
    noise = NoisePolicy(Noise(Mechanism.LAPLACE, 500_000), 48_000_000)
    folder = tmp_path_factory.mktemp("noisy")
    with LocalCity.create(folder, meters=100, metrics=ANYWHERE, noise=noise) as city:
        noisy = scrape(city.keyholder_metrics_url)
    added = set(series(noisy)) - set(series(found["keyholder"]))
    assert [name for name, _ in added] == ["gridveil_keyholder_privacy_budget_left_ratio"]
    return {**found, "keyholder": _with(found["keyholder"], noisy)}


def _with(text: str, noisy: str) -> str:
    """A key-holder's metrics with what a city with noise adds."""
    lines = [line for line in noisy.splitlines() if "privacy_budget" in line]
    return "\n".join([text.rstrip("\n"), *lines, ""])


@pytest.fixture(scope="module")
def exposed(texts: dict[str, str]) -> Series:
    return {key: number for text in texts.values() for key, number in series(text).items()}


def rules(path: Path = ALERTS) -> list[dict[str, Any]]:
    groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def faults(asked: Question, exposed: Series) -> list[str]:
    """What of an expression nothing exposes."""
    found = [fault for selector in asked.selectors for fault in _faults_of(selector, exposed)]
    labels = {label for selector in asked.selectors for label in _labels(selector.name, exposed)}
    return found + [f"label {label}" for label in asked.grouped_by - labels]


def _labels(name: str, exposed: Series) -> set[str]:
    if name in OF_PROMETHEUS:
        return OF_PROMETHEUS[name]
    own = {label for (found, labels) in exposed if found == name for label, _ in labels}
    return own | OF_SCRAPES


def _faults_of(selector: Selector, exposed: Series) -> list[str]:
    held = [dict(labels) for (name, labels) in exposed if name == selector.name]
    if selector.name not in OF_PROMETHEUS and not held:
        return [f"metric {selector.name}"]
    found = []
    for label, kind, text in selector.matchers:
        if label not in _labels(selector.name, exposed):
            found.append(f"label {selector.name}.{label}")
        elif label not in OF_SCRAPES:
            known = {labels.get(label, "") for labels in held} | CLOSED.get(label, set())
            wanted = set(text.split("|")) if "~" in kind else {text}
            found += [f"value {selector.name}.{label}={value}" for value in wanted - known]
    return found


def test_every_alert_asks_for_what_is_exposed(exposed: Series) -> None:
    asked = {rule["alert"]: question(rule["expr"]) for rule in rules()}
    assert len(asked) == len(rules()) >= 15
    assert all(found.selectors for found in asked.values())
    wrong = {name: faults(found, exposed) for name, found in asked.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_what_is_recorded_is_what_the_watchdog_reads(exposed: Series) -> None:
    asked = {rule["record"]: question(rule["expr"]) for rule in rules(RECORDING)}
    assert sorted(asked) == sorted(KNOWN)
    assert all(found.selectors for found in asked.values())
    assert {name: faults(found, exposed) for name, found in asked.items()} == {
        name: [] for name in KNOWN
    }


def test_every_panel_asks_for_what_is_exposed(exposed: Series) -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [
        (panel["title"], question(target["expr"]))
        for panel in panels
        for target in panel.get("targets", ())
    ]
    assert len(asked) >= 20
    wrong = [(title, faults(found, exposed)) for title, found in asked]
    assert [found for found in wrong if found[1]] == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("gridveil_reports_lost_total > 0", "metric gridveil_reports_lost_total"),
        ("rate(gridveil_reports[5m])", "metric gridveil_reports"),
        ('gridveil_windows{state="open"}', "label gridveil_windows.state"),
        ('gridveil_windows{phase="opened"} > 1', "value gridveil_windows.phase=opened"),
        (
            'gridveil_calls_total{reason=~"STORE_FULL|FULL"}',
            "value gridveil_calls_total.reason=FULL",
        ),
        ("sum by (meter) (gridveil_reports_total)", "label meter"),
        ("quantile(0.5, gridveil_windows)", "metric quantile"),
    ],
)
def test_an_alert_on_what_does_not_exist_is_found(
    exposed: Series, expression: str, fault: str
) -> None:
    assert faults(question(expression), exposed) == [fault]


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert re.fullmatch(r"\d+[mh]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["alert"].startswith("Gridveil")
        notes = rule["annotations"]
        assert set(notes) == {"summary", "what_to_do", "runbook_url"}
        assert notes["what_to_do"].endswith(".")
        page, _, anchor = notes["runbook_url"].partition("#")
        headings = re.findall(r"^##+ (.+)$", (ROOT / page).read_text("utf-8"), re.M)
        assert anchor in {_anchor(heading) for heading in headings}, rule["alert"]


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def test_the_scrape_example_loads_the_alerts_and_names_each_role() -> None:
    config = yaml.safe_load(SCRAPE.read_text("utf-8"))
    assert config["rule_files"] == [ALERTS.name, RECORDING.name]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert jobs == {
        f"gridveil-{role}" for role in ("aggregator", "controller", "keyholder", "totals")
    }


def test_the_manual_lists_every_metric_and_no_other(texts: dict[str, str]) -> None:
    documented = re.findall(r"^\| `gridveil_.*\|$", MANUAL.read_text("utf-8"), re.M)
    assert documented == [str(row) for row in rows(texts)]


def test_the_manual_lists_every_condition_of_readiness(exposed: Series) -> None:
    conditions = {dict(labels)["condition"] for name, labels in exposed if name == "gridveil_ready"}
    section = MANUAL.read_text("utf-8").partition("## Readiness")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", section, re.M)) == conditions
