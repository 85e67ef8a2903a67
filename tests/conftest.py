"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no example has a deadline.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

MISSING_TOOLS = pytest.StashKey[dict[str, tuple[str, list[str]]]]()


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MISSING_TOOLS] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold `@pytest.mark.requires_tool("strace", "apt-get install strace")`.

    A developer's machine need not have everything; CI must, or a green run would mean less than it
    says.
    """
    for mark in item.iter_markers("requires_tool"):
        command, install = mark.args
        if shutil.which(command) is not None:
            continue
        missing = item.config.stash[MISSING_TOOLS]
        missing.setdefault(command, (install, []))[1].append(item.nodeid)
        reason = f"{command} is not installed; install it with: {install}"
        if in_ci():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which programs were missing, and how to get them."""
    missing = config.stash[MISSING_TOOLS]
    if not missing:
        return
    terminalreporter.section("external tools missing")
    for command, (install, tests) in sorted(missing.items()):
        terminalreporter.line(f"{command}: {len(tests)} not run; install with: {install}")
