"""The operator's page in a real browser, beside a real totals service and controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from gridveil_services.console.sessions import Rights
from tests.support.consoles import (
    PHONE,
    WatchedCity,
    chromium,
    needs_browser,
    quiet,
    signed_in,
    start,
    transferred,
    watched_city,
)
from tests.support.totals import publish

pytestmark = needs_browser

BERLIN = 'time_zone = "Europe/Berlin"'
MOST_BYTES = 250_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def city(tmp_path: Path) -> Iterator[WatchedCity]:
    """Two windows with a total, the second without 10 meters; one refused; one expired."""
    with watched_city(tmp_path) as made:
        made.release(0, 500_000)
        made.until_window(0)
        made.release(1, 540_000, count=90)
        made.until_window(1)
        made.refuse(2)
        made.until(lambda signal: signal.reason == "REFUSED")
        made.settle(3)
        made.expire(3)
        yield made


def row(page: Page, city: WatchedCity, at: int) -> str:
    """What the table says of a window."""
    return page.locator(f"tr[data-window='{city.window(at)}']").inner_text()


def test_the_page_shows_totals_estimates_and_gaps_as_what_they_are(
    browser: Browser, city: WatchedCity
) -> None:
    page = signed_in(browser, city)

    assert "0.500 MW" in row(page, city, 0)
    assert "100 of 100 (100.0 %)" in row(page, city, 0)
    assert "0.540 MW measured, ≈ 0.600 MW estimated" in row(page, city, 1)
    assert "90 of 100 (90.0 %)" in row(page, city, 1)
    assert "no total: refused" in row(page, city, 2)
    expect(page.locator(f"tr[data-window='{city.window(3)}']")).to_contain_text("no total: expired")
    assert "0.000" not in page.inner_text("#rows")
    quiet(page)


def test_a_total_appears_without_a_reload_and_is_verified_in_the_browser(
    browser: Browser, city: WatchedCity
) -> None:
    page = signed_in(browser, city)

    city.release(4, 700_000)

    shown = page.locator(f"tr[data-window='{city.window(4)}']")
    expect(shown).to_contain_text("0.700 MW")
    expect(shown).to_contain_text("✓ verified")
    expect(page.locator("#demand")).to_have_text("0.700 MW")
    expect(page.locator("#peak")).to_have_text("0.700 MW")
    quiet(page)


def test_every_settled_window_of_the_day_can_be_verified(
    browser: Browser, city: WatchedCity
) -> None:
    page = signed_in(browser, city)
    expect(page.locator("#rows tr")).to_have_count(4)

    page.click("#verify-all")

    expect(page.locator(".badge.good")).to_have_count(4)
    expect(page.locator("#alarm")).to_be_hidden()
    quiet(page)


@pytest.mark.parametrize(
    ("field", "spoil", "why"),
    [
        ("sum", None, "the figures shown are not those that were signed"),
        ("measured", None, "the figures shown are not those that were signed"),
        ("estimated", None, "the figures shown are not those that were signed"),
        ("count", None, "the figures shown are not those that were signed"),
        ("lanes", None, "the figures shown are not those that were signed"),
        ("record", lambda text: text[:-8] + "AAAAAAA=", "not under the checkpoint"),
        ("hashes", lambda _: [], "too short"),
        ("index", lambda _: 0, "the proof is too short"),
        ("index", lambda _: 10**9, "the record has no place"),
        ("window_start", lambda at: at + 900, "of another window"),
        ("checkpoint", lambda note: note.replace("\n", "\n1", 1), "not signed by the pinned key"),
        ("checkpoint", lambda note: note.replace("gridveil/", "other/"), "of another log"),
        ("checkpoint", lambda note: note[: note.index("—")], "not signed by the pinned key"),
    ],
)
def test_a_forged_proof_or_figure_is_said_loudly(
    browser: Browser, city: WatchedCity, field: str, spoil: object, why: str
) -> None:
    page = signed_in(browser, city)
    if callable(spoil):
        page.route("**/api/proof/*", lambda route: altered(route, field, spoil))
    else:
        page.route("**/api/day/*", lambda route: altered(route, field, one_more))

    city.release(4, 700_000, count=90)

    shown = page.locator(f"tr[data-window='{city.window(4)}'] .badge.bad")
    expect(shown).to_contain_text(why)
    expect(page.locator("#alarm")).to_contain_text("does not verify")


def test_a_figure_that_changes_after_it_was_verified_is_said_loudly(
    browser: Browser, city: WatchedCity
) -> None:
    page = signed_in(browser, city)
    page.click("#verify-all")
    expect(page.locator(".badge.good")).to_have_count(4)

    page.route("**/api/day/*", lambda route: altered(route, "measured", one_more))
    page.click("#today")

    expect(page.locator(".badge.bad")).to_have_count(2)
    expect(page.locator("#alarm")).to_contain_text("does not verify")


def test_the_demand_at_the_top_is_verified_too(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city)
    page.route("**/api/state", lambda route: altered(route, "newest", ten_more))

    page.reload()

    expect(page.locator("#alarm")).to_contain_text("the demand shown is not what was signed")


def ten_more(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "sum": row["sum"] + 10}


def one_more(sums: list[int | None]) -> list[int | None]:
    return [None if value is None else value + 1 for value in sums]


def altered(route: Route, field: str, spoil: object) -> None:
    assert callable(spoil)
    answer = route.fetch()
    body = answer.json()
    body[field] = spoil(body[field])
    route.fulfill(response=answer, body=json.dumps(body))


@pytest.mark.parametrize("known", ["{city} 00", "00 {key}"], ids=["key", "city"])
def test_another_key_or_city_than_this_browser_knows_is_said_loudly_and_verifies_nothing(
    browser: Browser, city: WatchedCity, known: str
) -> None:
    page = signed_in(browser, city)
    expect(page.locator("#alarm")).to_be_hidden()
    profile = city.console.config.profile

    pinned = known.format(city=profile.city_id.hex(), key=profile.identity_key.hex())
    page.evaluate(f"() => localStorage.setItem('gridveil-pinned', '{pinned}')")
    page.reload()

    expect(page.locator("#alarm")).to_be_visible()
    expect(page.locator("#pin")).to_contain_text("NOT the one that this browser knows")
    expect(page.locator(".badge.bad")).to_have_count(1)
    expect(page.locator(".badge.good")).to_have_count(0)


def test_demand_above_capacity_shows_level_3_and_ends_in_its_event(
    browser: Browser, city: WatchedCity
) -> None:
    page = signed_in(browser, city)

    city.release(4, 1_050_000)

    expect(page.locator("#level")).to_have_text("Level 3")
    expect(page.locator("#level-why")).to_contain_text("measured: capacity")
    expect(page.locator("#peak-at")).to_contain_text("105.0 % of capacity")
    expect(page.locator("#signals li").first).to_contain_text("level 3")
    quiet(page)


def test_without_news_the_page_says_that_the_signal_is_held_and_then_neutral(
    browser: Browser, city: WatchedCity
) -> None:
    city.release(4, 1_050_000)
    city.until_window(4)
    page = signed_in(browser, city)

    city.pass_to(city.window(5) + 1_800)
    expect(page.locator("#level-why")).to_contain_text("held: stale")
    expect(page.locator("#level")).to_have_text("Level 3")

    city.pass_to(city.window(5) + 5_400)
    expect(page.locator("#level")).to_have_text("Level 0")
    expect(page.locator("#level-why")).to_contain_text("neutral: stale")


def test_a_totals_service_that_is_away_is_said(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city)
    expect(page.locator("#notice")).to_be_hidden()

    city.stop_totals()
    expect(page.locator("#notice")).to_contain_text("Newer totals are not here yet")

    city.start_totals()
    expect(page.locator("#notice")).to_be_hidden(timeout=40_000)


@pytest.mark.parametrize(
    ("day", "windows"),
    [("2026-03-29", 92), ("2026-03-28", 96), ("2026-10-25", 100)],
)
def test_a_local_day_has_all_its_quarter_hours(
    browser: Browser, tmp_path: Path, day: str, windows: int
) -> None:
    with watched_city(tmp_path, BERLIN) as city:
        page = signed_in(browser, city)

        page.fill("#date", day)

        expect(page.locator("#day")).to_have_text(day)
        expect(page.locator("body")).to_have_attribute("data-drawn", str(windows))
        quiet(page)


def test_an_hour_that_comes_twice_is_told_apart(browser: Browser, tmp_path: Path) -> None:
    with watched_city(tmp_path, BERLIN) as city:
        page = signed_in(browser, city)
        page.fill("#date", "2026-10-25")
        expect(page.locator("#day")).to_have_text("2026-10-25")

        page.focus("#chart")
        read = []
        page.keyboard.press("Home")
        for _ in range(13):
            read.append(page.inner_text("#readout").split(" · ")[0])
            page.keyboard.press("ArrowRight")

        assert read[:1] == ["00:00"]
        assert read[8] == "02:00 CEST"
        assert read[12] == "02:00 CET"


def test_times_are_local_or_utc_as_chosen(browser: Browser, tmp_path: Path) -> None:
    with watched_city(tmp_path, BERLIN) as city:
        city.release(40, 500_000)
        page = signed_in(browser, city)
        first = page.locator("#rows th").first
        expect(first).to_have_text("11:00")

        page.click("#zone-utc")
        expect(first).to_have_text("10:00")
        expect(page.locator("#zone-utc")).to_have_attribute("aria-pressed", "true")

        page.click("#zone-local")
        expect(first).to_have_text("11:00")


def test_the_curve_is_read_out_by_keys(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city)

    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.focus("#chart")
    page.keyboard.press("Home")
    expect(page.locator("#readout")).to_contain_text("00:00 · 0.500 MW")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text("90 of 100")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text("no total: refused")
    page.keyboard.press("End")
    expect(page.locator("#readout")).to_contain_text("23:45 · not settled")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [None, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_to_complain_of(
    browser: Browser, city: WatchedCity, scheme: str, viewport: ViewportSize | None
) -> None:
    more: dict[str, Any] = {"viewport": viewport} if viewport else {}
    # The checker is put into the page as text, which its policy forbids to everybody else.
    page = signed_in(browser, city, color_scheme=scheme, bypass_csp=True, **more)

    for path in ("", "/public/en", "/public/de"):
        if path:
            page.goto(city.url + path)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_what_goes_wrong_is_told_as_it_is_found(browser: Browser, city: WatchedCity) -> None:
    """Two of the fixture's windows have no total already."""
    page = signed_in(browser, city)
    expect(page.locator("#watching")).to_contain_text("Nothing so far")

    city.refuse(4)

    expect(page.locator("#findings")).to_contain_text("refused windows: 3 windows a day")
    page.reload()
    expect(page.locator("#findings")).to_contain_text("refused windows: 3 windows a day")
    quiet(page)


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city, viewport=PHONE)

    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_page_is_small_and_asks_nobody_else(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city)

    assert 50_000 < transferred(page) < MOST_BYTES
    quiet(page)


def test_a_viewer_is_offered_no_export(browser: Browser, city: WatchedCity) -> None:
    assert signed_in(browser, city).locator("#csv").count() == 1
    assert signed_in(browser, city, Rights.VIEWER).locator("#csv").count() == 0


def test_a_year_of_quarter_hours_is_drawn(browser: Browser, city: WatchedCity) -> None:
    page = signed_in(browser, city)

    page.click("#year")

    expect(page.locator("body")).to_have_attribute("data-year", "35040")
    page.click("#today")
    expect(page.locator("#coverage")).to_be_visible()
    quiet(page)


def test_after_a_restart_the_page_leads_to_the_login(browser: Browser, city: WatchedCity) -> None:
    """Sessions are in memory: nobody is left with a page that stands still."""
    page = signed_in(browser, city)
    kept, port = city.opened.pop(), city.port

    city.stop_console()
    expect(page.locator("#notice")).to_contain_text("connection to the console is lost")
    city.console, city.thread = start(city.paths, city.clock)

    assert city.port == port
    page.wait_for_url("**/login")
    kept.close()


def test_the_one_time_address_logs_in_once(browser: Browser, city: WatchedCity) -> None:
    page = browser.new_page()
    assert city.console.login.token is not None
    address = f"{city.url}/login#{city.console.login.token.token}"

    page.goto(address)
    page.wait_for_selector("body[data-drawn]")
    assert "#" not in page.url

    other = browser.new_context().new_page()
    other.goto(address)
    expect(other.locator("#told")).to_contain_text("was used before")


def test_citizens_see_what_was_opened_in_their_language(
    browser: Browser, city: WatchedCity
) -> None:
    opened = city.record(4, 600_000)
    opened.recorded_at_ms = city.window(5) * 1000 + 61_000
    city.settle(4)
    publish(city.paths, opened)
    page = browser.new_context(locale="de-DE").new_page()

    page.goto(f"{city.url}/public")
    while "01.01.2026 01:16" not in page.inner_text("main"):  # when the log says it was opened
        page.reload()

    assert "Was diese Stadt von Ihrem Strom sieht" in page.inner_text("h1")
    assert "90 von 100" in page.inner_text("table")
    assert "135,0" in page.inner_text("table")
    assert city.console.config.profile.identity_key.hex() in page.inner_text("main")
    page.click("text=English")
    assert "90 of 100" in page.inner_text("table")
