"""``console.toml`` is checked whole: without encryption or login it stays on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.console.config import ConsoleConfig
from gridveil_services.console.login import Login

OIDC = """
[oidc]
issuer = "https://login.example"
client_id = "console"
client_secret_file = "secret"
"""
HTTPS = """
[https]
certificate = "tls/cert.pem"
key = "tls/key.pem"
"""


@pytest.fixture
def city(tmp_path: Path) -> CityPaths:
    return create_city(tmp_path / "city", CityOptions(development=True, time_zone="Europe/Berlin"))


def load(city: CityPaths, text: str = "", **changes: str) -> ConsoleConfig:
    path = city.config("console")
    (path.parent / "secret").write_text("s3cret\n")
    lines = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in changes]
    lines += [f'{key} = "{value}"' for key, value in changes.items()]
    path.write_text("\n".join((*lines, text)))
    return ConsoleConfig.load(path)


def test_what_init_makes_is_loaded(city: CityPaths) -> None:
    config = load(city)

    assert (config.host, config.port) == ("127.0.0.1", 7480)
    assert config.time_zone == "Europe/Berlin"
    assert config.register == "import_wh"
    assert config.profile.endpoint("totals")
    assert config.oidc is None
    assert not config.secure


def test_a_city_that_is_not_for_development_needs_a_provider(tmp_path: Path) -> None:
    city = create_city(tmp_path / "city", CityOptions())

    with pytest.raises(MalformedInput, match="oidc is needed"):
        load(city)

    config = load(city, OIDC, url="https://console.example")
    assert config.oidc is not None
    assert config.oidc.client_secret == "s3cret"
    assert config.secure


@pytest.mark.parametrize(
    ("changes", "text", "why"),
    [
        ({"listen": "0.0.0.0:7480"}, "", "https is needed"),
        ({"listen": "0.0.0.0:7480"}, HTTPS, "oidc is needed"),
        ({"listen": "192.0.2.1:7480"}, OIDC, "https is needed"),
        ({"listen": "127.0.0.1"}, "", "listen is HOST:PORT"),
        ({"listen": "127.0.0.1:65536"}, "", "listen is HOST:PORT"),
        ({"time_zone": "Springfield"}, "", "time zone"),
        ({"url": "http://console.example"}, "", "url is an https address"),
        ({"url": "https://console.example/sub"}, "", "url has no path"),
        ({"url": "https://u:p@console.example"}, "", "url has no path"),
        ({}, OIDC, "url is where the provider"),
        ({"url": "https://c.example"}, OIDC.replace("https", "http"), "oidc.issuer is an https"),
        ({"url": "https://c.example"}, OIDC.replace('"secret"', '"none"'), "client_secret_file"),
        ({"url": "https://c.example"}, OIDC + "factors = []", "oidc.factors"),
        ({}, "colour = 1", "colour"),
        ({}, OIDC + 'password = "x"', "password"),
    ],
)
def test_what_is_wrong_is_named(
    city: CityPaths, changes: dict[str, str], text: str, why: str
) -> None:
    with pytest.raises(MalformedInput, match=why) as raised:
        load(city, text, **changes)

    assert raised.value.reason is Reason.CONFIG_INVALID
    assert "s3cret" not in str(raised.value)


def test_over_https_the_cookie_is_for_this_host_only(city: CityPaths) -> None:
    assert Login(load(city)).cookie == "gridveil"
    assert Login(load(city, HTTPS)).cookie == "__Host-gridveil"


def test_only_its_own_names_are_answered(city: CityPaths) -> None:
    config = load(city, OIDC, url="https://console.example")

    assert Login(config).hosts == ["127.0.0.1", "console.example", "localhost"]
