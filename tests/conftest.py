"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no example has a deadline.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

MISSING_TOOL = "missing tool"
"""What a report calls the command that its test did not find, and how to install it."""


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files of long tests where several processes share the work.

    Short files are left for the end, so that all processes end at about the same time.
    """
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("long")}
        items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold `@pytest.mark.requires_tool("strace", "apt-get install strace")`.

    A developer's machine need not have everything; CI must, or a green run would mean less than it
    says.
    """
    for mark in item.iter_markers("requires_tool"):
        command, install = mark.args
        if shutil.which(command) is not None:
            continue
        # With the report, since the test may run in another process than the summary.
        item.user_properties.append((MISSING_TOOL, [command, install]))
        reason = f"{command} is not installed; install it with: {install}"
        if in_ci():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which programs were missing, and how to get them."""
    reports = [r for kind in ("skipped", "error") for r in terminalreporter.getreports(kind)]
    missing = Counter(
        tuple(value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == MISSING_TOOL
    )
    if not missing:
        return
    terminalreporter.section("external tools missing")
    for (command, install), tests in sorted(missing.items()):
        terminalreporter.line(f"{command}: {tests} not run; install with: {install}")
