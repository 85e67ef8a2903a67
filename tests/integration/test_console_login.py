"""Logging in with a real OpenID Connect provider: a role and a second factor, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from oidc_provider_mock import run_server_in_thread

from tests.support.consoles import WatchedCity, watched_city
from tests.support.ports import spare_port

# The provider is written for an interface of its own library that this library has marked as old.
pytestmark = pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")

OPERATOR = {"roles": ["gridveil-operator"], "amr": ["pwd", "otp"], "name": "Ada"}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with run_server_in_thread(require_nonce=True) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[WatchedCity]:
    folder = tmp_path_factory.mktemp("oidc")
    secret = folder / "secret"
    secret.write_text("of the provider\n")
    port = spare_port()
    text = f"""
url = "http://localhost:{port}"
[oidc]
issuer = "{provider}"
client_id = "console"
client_secret_file = "{secret}"
"""
    with watched_city(folder, text, port=port) as made:
        yield made


class _Form(HTMLParser):
    action = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "form":
            self.action = dict(attrs).get("action") or ""


def sign_in(city: WatchedCity, provider: str, sub: str, claims: dict[str, Any]) -> httpx2.Response:
    """Go the way a browser does, and give the answer to the way back."""
    httpx2.put(f"{provider}/users/{sub}", json=claims).raise_for_status()
    with httpx2.Client(base_url=city.url) as browser:
        sent = browser.get("/login/start")
        assert sent.status_code == 302
        asked = sent.headers["location"]
        assert asked.startswith(f"{provider}/")
        assert "code_challenge_method=S256" in asked
        assert "nonce=" in asked
        back = httpx2.post(asked, data={"sub": sub}).headers["location"]
        answer = browser.get(back)
        if answer.status_code == 303:
            answer.user = browser.get("/api/state").json()["user"]  # type: ignore[attr-defined]
        return answer


def test_an_operator_with_a_second_factor_is_let_in(city: WatchedCity, provider: str) -> None:
    answer = sign_in(city, provider, "ada", OPERATOR)

    assert answer.user == {"name": "Ada", "rights": "operator"}  # type: ignore[attr-defined]


def test_a_viewer_is_a_viewer(city: WatchedCity, provider: str) -> None:
    claims = {"roles": "gridveil-viewer", "amr": ["hwk"]}

    answer = sign_in(city, provider, "vic", claims)

    assert answer.user["rights"] == "viewer"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"roles": ["gridveil-operator"]}, "no second factor"),
        ({"roles": ["gridveil-operator"], "amr": ["pwd"]}, "no second factor"),
        ({"roles": ["gridveil-operator"], "amr": {"otp": True}}, "did not vouch"),
        ({"amr": ["otp"]}, "no role"),
        ({"roles": ["administrator"], "amr": ["otp"]}, "no role"),
        ({"roles": [["gridveil-operator"]], "amr": ["otp"]}, "no role"),
    ],
)
def test_others_are_not(city: WatchedCity, provider: str, claims: dict[str, Any], why: str) -> None:
    answer = sign_in(city, provider, "eve", claims)

    assert answer.status_code == 403
    assert why in answer.json()["message"]


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(
    city: WatchedCity, provider: str
) -> None:
    """Such as one that was slipped to it, to have it work in somebody else's name."""
    httpx2.put(f"{provider}/users/ada", json=OPERATOR).raise_for_status()
    with httpx2.Client(base_url=city.url) as one, httpx2.Client(base_url=city.url) as other:
        asked = one.get("/login/start").headers["location"]
        back = httpx2.post(asked, data={"sub": "ada"}).headers["location"]

        assert other.get(back).status_code == 403
        assert other.get("/api/state").status_code == 401


def test_logins_that_were_begun_and_left_do_not_stand_in_the_way(
    city: WatchedCity, provider: str
) -> None:
    """A browser drops a cookie of more than 4,096 bytes, and nobody could log in any more."""
    with httpx2.Client(base_url=city.url) as browser:
        for _ in range(20):
            sent = browser.get("/login/start")

        assert len(sent.headers["set-cookie"]) < 2_000


def test_an_answer_counts_once(city: WatchedCity, provider: str) -> None:
    httpx2.put(f"{provider}/users/ada", json=OPERATOR).raise_for_status()
    with httpx2.Client(base_url=city.url) as browser:
        asked = browser.get("/login/start").headers["location"]
        back = httpx2.post(asked, data={"sub": "ada"}).headers["location"]
        assert browser.get(back).status_code == 303
        browser.cookies.delete(city.console.login.cookie)

        assert browser.get(back).status_code == 403


def test_there_is_no_token_where_there_is_a_provider(city: WatchedCity) -> None:
    assert city.console.login.token is None
    assert httpx2.post(f"{city.url}/login", content="").status_code == 404


def test_a_provider_that_is_away_is_said(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    port = spare_port()
    text = f"""
url = "http://localhost:{port}"
[oidc]
issuer = "http://127.0.0.1:{spare_port()}"
client_id = "console"
client_secret_file = "{tmp_path / "secret"}"
"""
    with watched_city(tmp_path, text, port=port) as city:
        answer = httpx2.get(f"{city.url}/login/start")

        assert (answer.status_code, answer.json()["reason"]) == (503, "UNREACHABLE")
        assert httpx2.get(f"{city.url}/public").status_code == 200


def test_over_https_what_a_login_rests_on_is_of_this_host_only(tmp_path: Path) -> None:
    """So that a page of a neighbour's name cannot slip its own login to a browser."""
    (tmp_path / "secret").write_text("x")
    with run_server_in_thread() as server:
        text = f"""
url = "https://localhost"
[oidc]
issuer = "http://localhost:{server.server_port}"
client_id = "console"
client_secret_file = "{tmp_path / "secret"}"
"""
        with watched_city(tmp_path, text) as city:
            address = f"http://localhost:{city.console.config.port}"
            cookie = httpx2.get(f"{address}/login/start").headers["set-cookie"]

    assert cookie.startswith("__Host-gridveil-login=")
    assert "path=/;" in cookie
    assert "secure" in cookie
