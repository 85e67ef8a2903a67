"""The console over HTTP: who is let in, what they get, and what nobody gets."""

from __future__ import annotations

import asyncio
import csv
import io
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyarrow import parquet

from gridveil.protocol.errors import Exhausted
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.console.headers import POLICY
from gridveil_services.console.hub import MOST_PAGES, MOST_WAITING, Event, Hub
from gridveil_services.console.model import CityModel
from gridveil_services.console.sessions import Rights
from tests.support.consoles import WatchedCity, watched_city

BERLIN = 'time_zone = "Europe/Berlin"'
PATIENCE_S = 8.0
FOR_EVERYBODY = ("/login", "/public", "/public/de", "/health", "/static/console.js")
FOR_VIEWERS = ("/api/state", "/api/day/2026-01-01", "/api/events", "/api/proof/1767225600")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedCity]:
    with watched_city(tmp_path_factory.mktemp("console"), BERLIN) as made:
        made.release(0, 500_000)
        made.until_window(0)
        made.refuse(1)
        made.until(lambda signal: signal.reason == "REFUSED")
        yield made


@pytest.fixture
def nobody(city: WatchedCity) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=city.url) as client:
        yield client


@pytest.fixture
def operator(city: WatchedCity) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=city.url, cookies=city.cookie()) as client:
        yield client


@pytest.fixture
def viewer(city: WatchedCity) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=city.url, cookies=city.cookie(Rights.VIEWER)) as client:
        yield client


@pytest.mark.parametrize("path", FOR_EVERYBODY)
def test_some_pages_are_for_everybody(nobody: httpx2.Client, path: str) -> None:
    assert nobody.get(path).status_code == 200


@pytest.mark.parametrize("path", [*FOR_VIEWERS, "/api/range?from=0&until=900", "/export?day=x"])
def test_nobody_gets_anything_else_without_a_login(nobody: httpx2.Client, path: str) -> None:
    answer = nobody.get(path)

    assert answer.status_code == 401
    assert answer.json() == {"reason": "SIGNATURE_MISSING", "message": "log in first"}


def test_the_page_sends_those_who_are_not_logged_in_to_the_login(nobody: httpx2.Client) -> None:
    answer = nobody.get("/")

    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_made_up_cookie_is_no_login(city: WatchedCity, nobody: httpx2.Client) -> None:
    nobody.cookies.set(city.console.login.cookie, "x" * 43)

    assert nobody.get("/api/state").status_code == 401


def test_the_token_logs_in_once_and_a_wrong_one_never(
    city: WatchedCity, nobody: httpx2.Client
) -> None:
    assert city.console.login.token is not None
    token = city.console.login.token.token
    assert nobody.post("/login", content="x" * len(token)).status_code == 403
    assert nobody.post("/login", content="x" * 10_000).status_code == 403
    assert nobody.post("/login", content="é".encode()).status_code == 403

    first = nobody.post("/login", content=token)
    assert first.status_code == 204
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert nobody.get("/api/state").json()["user"]["rights"] == "operator"

    with httpx2.Client(base_url=city.url) as second:
        assert second.post("/login", content=token).status_code == 403


def test_who_logs_out_is_out(city: WatchedCity, operator: httpx2.Client) -> None:
    kept = dict(operator.cookies)

    assert operator.post("/logout").status_code == 303

    with httpx2.Client(base_url=city.url, cookies=kept) as again:
        assert again.get("/api/state").status_code == 401


@pytest.mark.parametrize(
    "headers", [{"origin": "https://elsewhere.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_a_form_of_another_site_is_not_obeyed(
    operator: httpx2.Client, headers: dict[str, str]
) -> None:
    assert operator.post("/logout", headers=headers).status_code == 403
    assert operator.post("/login", headers=headers).status_code == 403
    assert operator.get("/api/state").status_code == 200


def test_another_name_for_this_machine_is_refused(operator: httpx2.Client) -> None:
    """So that a page of somebody else's, whose name leads here, reads nothing."""
    assert operator.get("/api/state", headers={"host": "rebound.example"}).status_code == 400


@pytest.mark.parametrize("path", ["/", *FOR_EVERYBODY, "/api/state", "/nothing-there"])
def test_every_answer_has_the_security_headers(operator: httpx2.Client, path: str) -> None:
    headers = operator.get(path).headers

    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
    assert "server" not in headers


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_a_viewer_sees_and_does_not_export(viewer: httpx2.Client) -> None:
    assert viewer.get("/api/day/2026-01-01").status_code == 200
    answer = viewer.get("/export", params={"day": "2026-01-01", "format": "csv"})

    assert (answer.status_code, answer.json()["reason"]) == (403, "ROLE_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/day/tomorrow", "FIELD_FORMAT"),
        ("/api/day/1969-12-31", "FIELD_FORMAT"),
        ("/api/day/9999-12-31", "FIELD_FORMAT"),
        ("/api/range", "WINDOW_MISALIGNED"),
        ("/api/range?from=0&until=901", "WINDOW_MISALIGNED"),
        ("/api/range?from=-900&until=900", "WINDOW_MISALIGNED"),
        ("/api/range?from=900&until=900", "RANGE_INVALID"),
        ("/api/range?from=0&until=99999999000", "RANGE_INVALID"),
        ("/api/proof/1", "WINDOW_MISALIGNED"),
        ("/api/proof/99999999999999999999900", "WINDOW_MISALIGNED"),
        (f"/api/proof/{'9' * 5_000}", "WINDOW_MISALIGNED"),
        ("/api/range?from=999999999000&until=999999999900", "RANGE_INVALID"),
        ("/export?day=2026-01-01&format=exe", "FIELD_FORMAT"),
        ("/export?day=&format=csv", "FIELD_FORMAT"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(
    operator: httpx2.Client, path: str, reason: str
) -> None:
    answer = operator.get(path)

    assert (answer.status_code, answer.json()["reason"]) == (400, reason)


def test_what_is_not_settled_has_no_proof(city: WatchedCity, operator: httpx2.Client) -> None:
    answer = operator.get(f"/api/proof/{city.window(90)}")

    assert (answer.status_code, answer.json()["reason"]) == (404, "NOT_RELEASED")


@pytest.mark.parametrize(
    ("day", "windows"), [("2026-03-29", 92), ("2026-01-01", 96), ("2026-10-25", 100)]
)
def test_a_day_has_all_its_windows_in_view_and_export(
    operator: httpx2.Client, day: str, windows: int
) -> None:
    view = operator.get(f"/api/day/{day}").json()
    exported = operator.get("/export", params={"day": day, "format": "csv"})
    table = parquet.read_table(
        io.BytesIO(operator.get("/export", params={"day": day, "format": "parquet"}).content)
    )

    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert len(rows) == windows == table.num_rows
    assert all(len(view[name]) == windows for name in ("windows", "measured", "status", "level"))
    assert exported.headers["content-disposition"] == f'attachment; filename="totals-{day}.csv"'


def test_an_export_says_gaps_and_leaves_no_file_behind(
    operator: httpx2.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    answer = operator.get("/export", params={"day": "2026-01-01", "format": "csv"})

    found = {row["window_start"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    released, refused = found["2026-01-01T00:00:00Z"], found["2026-01-01T00:15:00Z"]
    assert (released["status"], released["import_wh"]) == ("released", "125000")
    assert (refused["status"], refused["reason"]) == ("not_released", "REFUSED")
    assert refused["import_wh"] == ""
    assert list(tmp_path.iterdir()) == []


def test_a_range_has_its_levels_in_force(city: WatchedCity, operator: httpx2.Client) -> None:
    first = city.window(0)
    view = operator.get(f"/api/range?from={first}&until={first + 4 * 900}").json()

    assert view["measured"] == [500_000, None, None, None]
    assert view["level"] == [0, 0, 0, 0]


async def _heard(hub: Hub) -> Event:
    return await anext(hub.listen())


async def test_a_page_that_does_not_read_is_let_go() -> None:
    hub = Hub()
    first = asyncio.create_task(_heard(hub))
    await asyncio.sleep(0)
    for _ in range(MOST_WAITING + 2):
        hub.tell("window", {})

    assert hub.pages == 0
    await first


async def test_no_more_pages_are_served_than_may_be_and_none_that_went_before_it_looked() -> None:
    hub = Hub()
    for _ in range(2 * MOST_PAGES):
        hub.listen()
    listening = [asyncio.create_task(_heard(hub)) for _ in range(MOST_PAGES)]
    await asyncio.sleep(0)

    with pytest.raises(Exhausted):
        hub.listen()
    for task in listening:
        task.cancel()


WHOLE = b"GET /login HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize("before", [b"", WHOLE])
@pytest.mark.parametrize("begun", [b"", WHOLE[:-1]])
def test_a_connection_that_does_not_finish_a_request_is_closed(
    city: WatchedCity, monkeypatch: pytest.MonkeyPatch, before: bytes, begun: bytes
) -> None:
    """As many as there may be would keep everybody else out."""
    monkeypatch.setattr("gridveil_services.console.serve.REQUEST_S", 0.5)
    monkeypatch.setattr(city.console._server.config, "timeout_keep_alive", 0.5)

    with (
        socket.create_connection(("127.0.0.1", city.port), PATIENCE_S) as idle,
        suppress(ConnectionResetError),
    ):
        idle.sendall(before)
        assert not before or idle.recv(4_096)
        idle.sendall(begun)
        while idle.recv(4_096):
            pass


def test_a_city_can_have_no_page_for_citizens(tmp_path: Path) -> None:
    with watched_city(tmp_path, "public = false") as city:
        answer = httpx2.get(f"{city.url}/public")

        assert answer.status_code == 404
        assert "public" not in httpx2.get(f"{city.url}/login").text


def test_over_https_only_this_host_gets_the_cookie_and_browsers_stay_with_it(
    tmp_path: Path,
) -> None:
    certificate, key = self_signed(tmp_path, "localhost")
    text = f"""
url = "https://localhost"
[https]
certificate = "{certificate}"
key = "{key}"
"""
    with watched_city(tmp_path, text) as city:
        address = f"https://localhost:{city.console.config.port}"
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx2.Client(base_url=address, verify=trust) as client:
            assert city.console.login.token is not None
            answer = client.post("/login", content=city.console.login.token.token)

            assert answer.status_code == 204
            assert answer.headers["strict-transport-security"] == "max-age=63072000"
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-gridveil=")
            assert "; Secure" in cookie
            assert "Path=/;" in cookie
            assert "domain" not in cookie.lower()
            assert client.get("/api/state").status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(f"http://localhost:{city.console.config.port}/login")


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "https.pem", folder / "https-key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def test_a_fault_of_our_own_tells_nothing_and_has_the_security_headers(
    city: WatchedCity, operator: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CityModel, "level_since", property(lambda _model: 1 // 0))

    answer = operator.get("/api/state")

    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("missing", ["tls/key.pem", "checkpoint"])
def test_what_it_needs_and_cannot_read_ends_it_with_2_and_one_line(
    tmp_path: Path, missing: str
) -> None:
    paths = create_city(tmp_path / "city", CityOptions(development=True))
    path = paths.role("console") / missing
    path.unlink() if path.exists() else path.write_text("no checkpoint")
    command = [sys.executable, "-m", "gridveil.cli", "console", "serve"]
    command += ["--config", str(paths.config("console"))]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""
