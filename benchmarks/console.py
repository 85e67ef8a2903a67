"""The console in headless Chromium: a year drawn, the page's size, and how soon a total appears.

    python -m benchmarks.console [--rounds N]

Needs chromium. A real totals service, controller and console run in this process, beside the
browser, on the same cores. The year is 35,040 quarter-hours in five series; its time is from the
answer's last byte until the frame after it was drawn, parsing included. A total's time is from the
moment its record is durable in the release log until the page has it: the totals service looks at
the log every 0.2 s.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, expect

from benchmarks.measure import Goal, Spread, parser, report
from gridveil_services.console.model import RELEASED, Row
from tests.support.consoles import WatchedCity, chromium, signed_in, transferred, watched_city

YEAR = 35_040
LENGTH = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 if a goal was missed."""
    options = parser(__doc__, rounds=10).parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        watched_city(Path(folder)) as city,
    ):
        _fill(city)
        page = signed_in(browser, city)
        size = transferred(page) / 1000
        year = Spread.of([_year(page) for _ in range(options.rounds)])
        page.click("#today")
        appears = Spread.of([_appears(page, city, at) for at in range(options.rounds)])
    lines = [
        f"a year of {YEAR:,} quarter-hours drawn, ms   {year.show(0)}",
        f"page transferred, kB                       {size:,.0f}",
        f"a released total appears after, ms         {appears.show(0)}",
    ]
    goals = [
        Goal("year drawn, ms", year.median, 200),
        Goal("page transferred, kB", size, 250),
        Goal("a total appears after, ms", appears.median, 1_000),
    ]
    figures = {"year_ms": year, "page_kb": size, "appears_ms": appears}
    return report(options, "console", lines, goals, figures)


def _fill(city: WatchedCity) -> None:
    """The year before: what was loaded, as far as the page can tell."""
    end = city.window(0)
    city.console.model.take(
        Row(at, RELEASED, 125_000 + at % 7_919, 95 + at // LENGTH % 6, 100, 1)
        for at in range(end - 2 * YEAR * LENGTH, end, LENGTH)
    )


def _year(page: Page) -> float:
    page.reload()
    page.wait_for_selector("body[data-drawn]")
    page.click("#year")
    page.wait_for_selector("body[data-year]")
    return float(page.get_attribute("body", "data-year-drawn-ms") or "nan")


def _appears(page: Page, city: WatchedCity, at: int) -> float:
    city.settle(at)
    city.release(at, 500_000 + at, settle=False)
    released = time.perf_counter()
    row = f"tr[data-window='{city.window(at)}'][data-status=released]"
    expect(page.locator(row)).to_be_visible()
    return (time.perf_counter() - released) * 1000


if __name__ == "__main__":
    sys.exit(main())
