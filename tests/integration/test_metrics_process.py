"""Metrics and health of the services as they are run: as processes, by their configuration."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.profile import Profile
from gridveil_services.bootstrap.layout import SERVICES
from tests.support.city import TestCity
from tests.support.metrics import scrape, series, value


def serve_metrics(city: TestCity, role: str, address: str) -> None:
    with city.paths.config(role).open("a") as file:
        file.write(f'\n[metrics]\nlisten = "{address}"\n')


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def probe(city: TestCity, role: str, address: str) -> int:
    """What an exec probe runs beside a service, with nothing but the service's own files."""
    tls = city.paths.tls(role)
    files = {"--ca": "ca.pem", "--certificate": "cert.pem", "--key": "key.pem"}
    typed = [part for flag, name in files.items() for part in (flag, str(tls / name))]
    return CliRunner().invoke(app, ["health", address, *typed]).exit_code


def test_every_service_serves_its_metrics_and_is_asked_for_its_health(tmp_path: Path) -> None:
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    with TestCity.create(tmp_path, meters=1) as city:
        for role, port in ports.items():
            serve_metrics(city, role, f"127.0.0.1:{port}")
        city.start("keyholder")
        city.enrol()
        city.start("aggregator")
        city.start("totals")
        addresses = {
            "keyholder": Profile.load(city.paths.profile("registrar")).endpoint("keyholder"),
            "totals": Profile.load(city.paths.profile("operator")).endpoint("totals"),
        }
        for role, address in addresses.items():
            assert probe(city, role, address) == 0
        for role, port in ports.items():
            found = series(scrape(f"http://127.0.0.1:{port}/metrics"))
            assert value(found, "gridveil_ready", condition="certificate") == 1
            (build,) = [dict(labels) for name, labels in found if name == "gridveil_build_info"]
            assert build["role"] == role
            assert city.stop(role) == 0


def test_an_address_that_is_taken_is_said_at_the_start(tmp_path: Path) -> None:
    with (
        TestCity.create(tmp_path) as city,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        started = {}
        for role in ("keyholder", "aggregator"):
            serve_metrics(city, role, f"127.0.0.1:{taken.getsockname()[1]}")
            started[role] = city.spawn(role)
        for role, process in started.items():
            assert process.wait(60) == 2
            assert "metrics.listen: cannot listen there" in city.log(role)
