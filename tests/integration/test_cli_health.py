"""``gridveil health`` against real servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.demo.processes import free_addresses
from gridveil_services.rpc import Role, Server
from tests.support import rpc
from tests.support.rpc import CITY, Certificates


def ask(*typed: str) -> Result:
    return CliRunner().invoke(app, ["health", *typed])


def files(folder: Path) -> list[str]:
    names = {"--ca": "ca.pem", "--certificate": "cert.pem", "--key": "key.pem"}
    return [part for flag, name in names.items() for part in (flag, str(folder / name))]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path, CITY)


@pytest.fixture
def server(certificates: Certificates) -> Server:
    return rpc.server(certificates, {})


def test_a_service_asks_itself_with_its_own_certificate(
    server: Server, certificates: Certificates
) -> None:
    own = files(server.options.tls.certificate.parent)
    with server:
        ready = ask(server.start(), *own)
        assert (ready.exit_code, ready.stdout) == (0, "SERVING\n")

        server.set_ready(False)
        not_ready = ask(str(server.address), *own, "--json")
        assert not_ready.exit_code == 1
        assert json.loads(not_ready.stdout) == {
            "address": server.address,
            "role": "aggregator",
            "status": "NOT_SERVING",
        }


def test_anybody_of_the_city_asks_by_naming_the_role(
    server: Server, certificates: Certificates
) -> None:
    meter = certificates.tls(Role.METER).certificate.parent
    with server:
        address = server.start()
        assert ask(address, *files(meter), "--role", "aggregator").exit_code == 0
        # Its certificate is not that of a key-holder: whoever else answers is not believed.
        assert ask(address, *files(meter), "--role", "keyholder").exit_code == 3
        unnamed = ask(address, *files(meter))
    assert unnamed.exit_code == 2
    assert unnamed.stderr.startswith("CONFIG_INVALID: the role of a service is ")


def test_a_profile_says_where_and_how_to_ask(tmp_path: Path) -> None:
    addresses = free_addresses()
    made = CityOptions(min_cohort=100, development=True, addresses=addresses)
    paths = create_city(tmp_path / "city", made)
    profile = str(paths.profile("operator"))
    assert ask("totals", "--profile", profile, "--timeout", "0.3").exit_code == 3
    assert ask("aggregator", "--profile", profile).exit_code == 2


def test_half_an_identity_is_wrong_usage(tmp_path: Path) -> None:
    ended = ask("localhost:1", "--ca", str(tmp_path / "ca.pem"))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        "CONFIG_INVALID: give --profile, or all of --ca, --certificate and --key\n"
    )
