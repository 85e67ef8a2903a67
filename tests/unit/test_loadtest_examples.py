"""The jobs in deploy/ci and the lines in docs/loadtest.md are what the command understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gridveil.cli.app import app
from gridveil.loadtest.thresholds import NAMES, Threshold

ROOT = Path(__file__).parents[2]
JOBS = sorted(ROOT.glob("deploy/ci/*.yml"))
GUIDE = ROOT / "docs" / "loadtest.md"


def lines() -> list[str]:
    """Every ``gridveil loadtest`` line of a job or of the guide."""
    found = []
    for page in (*JOBS, GUIDE):
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\s+(?:- |run: )?(?:\S*/)?gridveil loadtest (.*)$", text, re.M):
            found.append(f"{page.name}: {line}")
    return found


def test_there_is_a_job_for_each_ci_system() -> None:
    assert [job.stem for job in JOBS] == ["github-actions", "gitlab-ci"]
    for page in (*JOBS, GUIDE):
        assert any(line.startswith(page.name) for line in lines()), page.name


@pytest.mark.parametrize("line", lines())
def test_every_line_is_understood(line: str) -> None:
    group: Any = get_command(app)
    command = group.get_command(None, "loadtest")
    # Unknown options, missing values and words too many are refused here.
    context = command.make_context("loadtest", shlex.split(line.split(": ", 1)[1]))
    assert context.params["meters"] >= 100
    assert (context.params["windows"] is None) != (context.params["duration"] is None)
    for text in context.params["fail_if"] or ():
        Threshold.parse(text)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job.stem))
def test_every_junit_file_of_a_job_is_kept(job: Path) -> None:
    text = job.read_text("utf-8")
    written = re.findall(r"--junit (\S+)", text)
    assert len(written) == len(set(written)) == text.count("gridveil loadtest")
    assert all(name.endswith(".xml") for name in written)
    assert '"*.xml"' in text


def test_the_guide_names_every_figure() -> None:
    text = GUIDE.read_text("utf-8")
    for name in NAMES:
        assert f"`{name}`" in text
