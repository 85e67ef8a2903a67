from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"

EXAMPLE = """
import pytest

@pytest.mark.requires_tool("no-such-program", "apt-get install no-such-package")
def test_needs_it():
    pass

@pytest.mark.requires_tool("sh", "apt-get install dash")
def test_has_it():
    pass
"""


def run_example(
    directory: Path, ci: str | None, workers: int = 0
) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, directory / "conftest.py")
    (directory / "test_example.py").write_text(EXAMPLE)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if ci is not None:
        environment["CI"] = ci
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", "."),
            *("-n", str(workers)),
        ],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("ci", [None, "false"])
def test_missing_tool_skips_and_names_the_install_command(tmp_path: Path, ci: str | None) -> None:
    run = run_example(tmp_path, ci)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed, 1 skipped" in run.stdout
    expected = "no-such-program: 1 not run; install with: apt-get install no-such-package"
    assert expected in run.stdout


def test_the_summary_counts_the_tests_of_every_process(tmp_path: Path) -> None:
    run = run_example(tmp_path, None, workers=2)
    assert run.returncode == 0, run.stdout + run.stderr
    expected = "no-such-program: 1 not run; install with: apt-get install no-such-package"
    assert expected in run.stdout


def test_missing_tool_fails_in_ci(tmp_path: Path) -> None:
    run = run_example(tmp_path, "true")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    assert "no-such-program is not installed" in run.stdout
