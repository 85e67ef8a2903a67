"""A console in this process, beside a real totals service and controller; and browsers for it.

with watched_city(tmp_path) as city:
    city.release(0, 500_000)
    page = signed_in(browser, city)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Request,
    ViewportSize,
    sync_playwright,
)

from gridveil.clock import Clock
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.console.config import ConsoleConfig
from gridveil_services.console.serve import ConsoleProcess
from gridveil_services.console.sessions import Rights
from tests.support.controllers import ControlledCity
from tests.support.ports import HOST, spare_port

needs_browser = pytest.mark.requires_tool("chromium", "apt-get install chromium")
START_S = 20.0
DESK = ViewportSize(width=1400, height=1200)
PHONE = ViewportSize(width=390, height=844)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Without its sandbox, which root may not have: it sees our pages only."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        try:
            yield browser
        finally:
            browser.close()


class WatchedCity(ControlledCity):
    """A city with a console, on a clock that the test moves."""

    console: ConsoleProcess
    thread: threading.Thread

    def __init__(self, paths: CityPaths, now: float) -> None:
        super().__init__(paths, now)
        self.opened: list[BrowserContext] = []
        """Browsers' contexts, which are closed before the console is."""

    def start_console(self, text: str = "", port: int | None = None) -> None:
        """Start it with more in its configuration."""
        path = self.paths.config("console")
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.startswith(("listen", "time_zone"))]
        listen = f'listen = "{HOST}:{port or spare_port()}"'
        zone = [] if "time_zone" in text else [UTC]
        path.write_text("\n".join((listen, *zone, *kept, text)))
        self.console, self.thread = start(self.paths, self.clock)

    def stop_console(self) -> None:
        """End it as a signal does."""
        for opened in self.opened:
            opened.close()
        self.opened.clear()
        self.console.stop()
        self.thread.join(START_S)
        assert not self.thread.is_alive(), "the console does not end"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def url(self) -> str:
        return self.console.url

    def cookie(self, rights: Rights = Rights.OPERATOR) -> dict[str, str]:
        """Of a session that somebody has."""
        value = self.console.login.sessions.open("somebody", rights, time.time())
        return {self.console.login.cookie: value}


UTC = 'time_zone = "UTC"'


def start(paths: CityPaths, clock: Clock) -> tuple[ConsoleProcess, threading.Thread]:
    """A console in a thread of its own, serving and loaded."""
    console = ConsoleProcess(ConsoleConfig.load(paths.config("console")), clock)
    thread = threading.Thread(target=console.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not (console.serving and console.ready):
        assert thread.is_alive()
        assert time.monotonic() < deadline, "the console does not start"
        time.sleep(0.01)
    return console, thread


@contextmanager
def watched_city(
    folder: Path, text: str = "", port: int | None = None, **rules: Any
) -> Iterator[WatchedCity]:
    """Totals service, controller and console of a city.

    Args:
        folder: to make it in.
        text: lines for ``console.toml``, at its end.
        port: of the console; a spare one without it.
        rules: for ``control.toml``.
    """
    with WatchedCity.create(folder, **rules) as city:
        assert isinstance(city, WatchedCity)
        city.start_console(text, port)
        try:
            yield city
        finally:
            city.stop_console()


def signed_in(
    browser: Browser, city: WatchedCity, rights: Rights = Rights.OPERATOR, **context: Any
) -> Page:
    """The page of somebody who is logged in, once it has drawn its day.

    Its errors and what it asks of other hosts fail the test, at the latest with :func:`quiet`.
    """
    url = city.url
    opened = browser.new_context(**({"viewport": DESK, "reduced_motion": "reduce"} | context))
    city.opened.append(opened)
    ((name, value),) = city.cookie(rights).items()
    opened.add_cookies([{"name": name, "value": value, "url": url}])
    page = opened.new_page()
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: _own(asked.url, url, faults))
    page.faults = faults  # type: ignore[attr-defined]
    asked: list[Request] = []
    # A method of a list cannot be marked, as the library does with what it calls.
    page.on("requestfinished", lambda one: asked.append(one))  # noqa: PLW0108
    page.asked = asked  # type: ignore[attr-defined]
    page.goto(url)
    page.wait_for_selector("body[data-drawn]")
    return page


def transferred(page: Page) -> int:
    """Bytes of what a browser that had never been there fetched until the day was drawn."""
    asked: list[Request] = page.asked  # type: ignore[attr-defined]
    sizes = [one.sizes() for one in asked]
    return sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes)


def quiet(page: Page) -> None:
    """Nothing went wrong in the page, and it asked nobody else for anything."""
    assert page.faults == []  # type: ignore[attr-defined]


def _own(asked: str, url: str, faults: list[str]) -> None:
    if not asked.startswith((url, "data:", "blob:")):
        faults.append(f"asked {asked}")
