"""The account of a run of faults fails where faults or a good end are missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.torture import __main__ as torture
from tests.torture.account import ROOT
from tests.torture.registry import KINDS
from tests.torture.tally import Kind, Tally

REPORT = ROOT / "docs" / "reliability.md"


def kind(lacking: int = 0, violations: int = 0) -> Kind:
    """One that injects less than it is asked to, or finds something wrong."""

    def run(seed: int, budget: int) -> Tally:
        return Tally(budget - lacking, violations=[f"seed {seed}"] * violations)

    return Kind("made up", "Nothing.", run, {"short": 10, "long": 100})


@pytest.mark.parametrize(
    ("made_up", "code"), [(kind(), 0), (kind(lacking=1), 1), (kind(violations=1), 1)]
)
def test_a_run_fails_for_a_violation_and_for_fewer_faults_than_promised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made_up: Kind, code: int
) -> None:
    monkeypatch.setattr(torture, "KINDS", (made_up,))
    report = tmp_path / "report.md"
    monkeypatch.setattr("sys.argv", ["torture", "--length", "long", "--report", str(report)])
    assert torture.main() == code
    text = report.read_text()
    assert "| made up | 100 |" in text
    assert "seed" in text.lower()


def test_a_run_of_no_kind_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["torture", "--only", "no such kind"])
    assert torture.main() == 1


def test_the_report_counts_each_kind_as_promised_and_without_a_violation() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \|", REPORT.read_text("utf-8"), re.MULTILINE
    )
    found = {name: tuple(int(n.replace(",", "")) for n in numbers) for name, *numbers in rows}
    assert found.keys() >= {each.name for each in KINDS}
    for promised, injected, violations in found.values():
        assert injected >= promised > 0
        assert violations == 0
