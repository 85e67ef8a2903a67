"""Alerts ring when they should, and are silent when they should not: asked of Prometheus itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy/prometheus"
NEEDED = pytest.mark.requires_tool("promtool", "apt-get install prometheus")
pytestmark = NEEDED

Series = dict[str, str]
"""Values by selector, a sample a minute, as Prometheus' unit tests write them."""

ACCEPTED = 'gridveil_reports_total{instance="a", outcome="accepted", reason=""}'
REFUSED = 'gridveil_reports_total{instance="a", outcome="refused", reason="SIGNATURE_INVALID"}'
COHORTS = 'gridveil_keyholder_cohorts_total{instance="k", difference="few"}'
PRIVACY = 'gridveil_keyholder_privacy_budget_left_ratio{instance="k"}'
COVERAGE = 'gridveil_totals_newest_coverage_ratio{instance="t"}'
LEFT_OUT = 'gridveil_totals_newest_lanes_left_out{instance="t"}'


def suspects(evidence: str) -> str:
    return f'gridveil_keyholder_suspects{{instance="k", evidence="{evidence}"}}'


def lanes(*reports: int) -> Series:
    return {
        f'gridveil_lane_reports{{instance="a", lane="{lane}"}}': f"{count}x30"
        for lane, count in enumerate(reports)
    }


DAY_AND_HOUR = 25 * 60
"""Minutes."""

RINGS: list[tuple[str, str, Series, int]] = [
    ("GridveilReportsFall", "a", {ACCEPTED: f"0+100x{DAY_AND_HOUR - 90} 141000+50x180"}, 1560),
    ("GridveilLaneFalls", "a", lanes(100, 104, 40, 96), 20),
    ("GridveilRefusalBurst", "a", {REFUSED: "0+1x400 400+40x20"}, 408),
    ("GridveilRefusalBurst", "a", {REFUSED: "0x400 0+40x20"}, 408),
    ("GridveilMeterProven", "k", {suspects("proven"): "0x5 1x20"}, 15),
    ("GridveilMetersSuspected", "k", {suspects("strong"): "2x60"}, 50),
    ("GridveilCohortsDifferByFew", "k", {COHORTS: "0x30 1x60"}, 45),
    ("GridveilCoverageFalls", "t", {COVERAGE: "0.85x60"}, 45),
    ("GridveilLanesLeftOut", "t", {LEFT_OUT: "1x20"}, 10),
]
"""Alert, whose, what was scraped, and when to look, in minutes."""

SILENT: list[tuple[str, Series, int]] = [
    ("GridveilReportsFall", {ACCEPTED: f"0+100x{DAY_AND_HOUR + 90}"}, 1560),
    ("GridveilReportsFall", {ACCEPTED: "0+100x200"}, 180),
    ("GridveilReportsFall", {ACCEPTED: f"0+100x{DAY_AND_HOUR - 90} 141000+95x180"}, 1560),
    ("GridveilLaneFalls", lanes(100, 104, 70, 96), 20),
    ("GridveilLaneFalls", lanes(97), 20),
    ("GridveilRefusalBurst", {REFUSED: "0+40x500"}, 450),
    ("GridveilRefusalBurst", {REFUSED: "0x400 0+3x20"}, 408),
    ("GridveilMeterProven", {suspects("proven"): "0x20", suspects("strong"): "3x20"}, 15),
    ("GridveilMetersSuspected", {suspects("strong"): "0x60"}, 50),
    ("GridveilCohortsDifferByFew", {COHORTS: "7x120"}, 100),
    ("GridveilCohortsDifferByFew", {COHORTS: "0x30 1x60", PRIVACY: "0.5x90"}, 45),
    ("GridveilCoverageFalls", {COVERAGE: "0.95x60"}, 45),
    ("GridveilCoverageFalls", {COVERAGE: "0.85x20 0.95x40"}, 45),
    ("GridveilLanesLeftOut", {LEFT_OUT: "0x20"}, 10),
]


def ask(folder: Path, series: Series, question: dict[str, Any], rules: str) -> str:
    """What Prometheus says is wrong with an expectation; nothing if it holds."""
    asked = {
        "rule_files": [str(PROMETHEUS / rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": text} for key, text in series.items()],
                **question,
            }
        ],
    }
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump(asked))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def rule(alert: str) -> dict[str, Any]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text("utf-8"))["groups"]
    (found,) = [one for group in groups for one in group["rules"] if one.get("alert") == alert]
    assert isinstance(found, dict)
    return found


def expected(alert: str, instance: str, series: Series) -> dict[str, Any]:
    """The alert as it rings, with its own labels and texts."""
    found = rule(alert)
    labels = dict(found["labels"])
    if "sum(" not in found["expr"]:
        labels["instance"] = instance
    if "increase(gridveil_keyholder_cohorts_total" in found["expr"]:
        labels["difference"] = "few"
    return {"exp_labels": labels, "exp_annotations": found["annotations"]}


@pytest.mark.parametrize("name", ["alerts.yaml", "recording.yaml"])
def test_prometheus_reads_the_rules(name: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(PROMETHEUS / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("alert", "instance", "series", "minute"), RINGS)
def test_an_alert_rings(
    tmp_path: Path, alert: str, instance: str, series: Series, minute: int
) -> None:
    told = [expected(alert, instance, series)]
    question = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": told}
    assert ask(tmp_path, series, {"alert_rule_test": [question]}, "alerts.yaml") == ""


@pytest.mark.parametrize(("alert", "series", "minute"), SILENT)
def test_an_alert_is_silent(tmp_path: Path, alert: str, series: Series, minute: int) -> None:
    question = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
    assert ask(tmp_path, series, {"alert_rule_test": [question]}, "alerts.yaml") == ""


def test_each_alert_that_is_asked_about_rings_in_one_case_and_is_silent_in_another() -> None:
    assert {alert for alert, *_ in RINGS} == {alert for alert, *_ in SILENT}


@pytest.mark.parametrize(
    ("series", "name", "samples"),
    [
        ({ACCEPTED: "0+10x60"}, "gridveil:reports_refused:window", [("", 0.0)]),
        (
            {ACCEPTED: "0+10x60", REFUSED: "0+2x60"},
            "gridveil:reports_refused:window",
            [("", 30.0)],
        ),
        (
            {
                'gridveil_lane_reports{instance="a", lane="0"}': "7x60",
                'gridveil_lane_reports{instance="b", lane="0"}': "9x60",
                'gridveil_lane_reports{instance="b", lane="1"}': "8x60",
            },
            "gridveil:lane_reports:window",
            [('lane="0"', 9.0), ('lane="1"', 8.0)],
        ),
    ],
)
def test_what_is_recorded_is_of_all_aggregators(
    tmp_path: Path, series: Series, name: str, samples: list[tuple[str, float]]
) -> None:
    told = [{"labels": f"{name}{{{labels}}}", "value": value} for labels, value in samples]
    question = {"expr": name, "eval_time": "30m", "exp_samples": told}
    assert ask(tmp_path, series, {"promql_expr_test": [question]}, "recording.yaml") == ""
