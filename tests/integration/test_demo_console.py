"""``gridveil demo --console`` as an operator sees it, in a real browser.

GRIDVEIL_READINGS names a file of readings of 537 homes; without it, households are made up.
GRIDVEIL_SCREENSHOTS names a folder to keep pictures of the page in.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openadr3.entities.models import Event as IndependentEvent
from playwright.sync_api import Page, expect

from tests.support.consoles import DESK, PHONE, chromium, needs_browser

pytestmark = [needs_browser, pytest.mark.long]

WINDOWS = 6
START_MS = 120_000
PLAYED_MS = 180_000


@pytest.mark.timeout(600)
def test_the_demo_shows_a_live_curve_a_crossed_limit_its_signal_and_its_event() -> None:
    with _demo() as demo, chromium() as browser:
        context = browser.new_context(viewport=DESK, reduced_motion="reduce")
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(demo.address)
        page.wait_for_selector("body[data-drawn='96']", timeout=START_MS)

        rows = page.locator("#rows tr[data-status='released']")
        expect(rows).not_to_have_count(WINDOWS)  # it is live: not all is there yet
        expect(rows).to_have_count(WINDOWS, timeout=PLAYED_MS)
        expect(page.locator("#level")).to_have_text("Level 3")
        expect(page.locator("#peak-at")).to_contain_text(re.compile(r"10\d\.\d % of capacity"))
        expect(page.locator("#expected-at")).to_contain_text("in ")

        page.click("#verify-all")
        expect(page.locator(".badge.good")).to_have_count(WINDOWS)
        expect(page.locator("#alarm")).to_be_hidden()
        _check_event(page)
        _keep(page, "console")
        page.click("#theme")
        _keep(page, "console-dark")
        page.set_viewport_size(PHONE)
        _keep(page, "console-phone")
        page.set_viewport_size(DESK)
        page.goto(demo.address.partition("/login")[0] + "/public/de")
        expect(page.locator("tbody tr")).to_have_count(WINDOWS)
        _keep(page, "citizens")
        assert faults == []
        context.close()
        result = demo.end()

    assert result["exact"] == WINDOWS


def _check_event(page: Page) -> None:
    """What is shown is the newest signal's event, and another implementation reads it so."""
    event = json.loads(page.inner_text("#openadr"))
    assert event["intervals"][0]["payloads"] == [{"type": "SIMPLE", "values": [3]}]
    (interval,) = IndependentEvent.from_raw(event).resolved_intervals()
    assert (interval.payloads[0].type, list(interval.payloads[0].values)) == ("SIMPLE", [3])
    expect(page.locator("#delivery")).to_contain_text("not sent")


def _keep(page: Page, name: str) -> None:
    if folder := os.environ.get("GRIDVEIL_SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


class _Demo:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._said: list[str] = []
        self.address = self._address()
        threading.Thread(target=self._listen, daemon=True).start()

    def _address(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if line.startswith("console: "):
                return line.removeprefix("console: ").strip()
        raise AssertionError("".join(self._said))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self._said.extend(self._process.stderr)

    def end(self) -> dict[str, Any]:
        """Ctrl-C; what it prints then."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        assert self._process.wait(60) == 0, "".join(self._said)
        found: dict[str, Any] = json.loads(said)
        return found


@contextmanager
def _demo() -> Iterator[_Demo]:
    command = [sys.executable, "-m", "gridveil.cli", "demo", "--console", "--json"]
    command += ["--windows", str(WINDOWS)]
    if readings := os.environ.get("GRIDVEIL_READINGS"):
        command += ["--readings", readings, "--meters", "537"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Demo(process)
        finally:
            process.kill()
