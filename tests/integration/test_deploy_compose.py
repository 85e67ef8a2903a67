"""deploy/compose.yaml: what it promises, on the city that deploy/README.md makes for it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gridveil.clock import SystemClock
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.totals.config import TotalsConfig
from tests.support import guide, redis_servers
from tests.support.dockerfiles import ROOT, stages
from tests.support.ports import spare_port

COMPOSE = ROOT / "deploy" / "compose.yaml"
SERVICES = {"redis", "keyholder", "aggregator", "totals"}
LOOSE = {"cap_add", "privileged", "environment", "env_file", "network_mode", "pid"}
CLIENTS = {"registrar", "gateway", "operator"}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The city, made by the commands of the guide."""
    folder = tmp_path_factory.mktemp("compose")
    (init,) = guide.lines("gridveil init city ")
    guide.gridveil(*shlex.split(init.replace(" city ", f" {folder / 'city'} ", 1))[1:])
    (folders,) = guide.lines("mkdir ")
    for name in folders.split()[1:]:
        (folder / name).mkdir()
    return folder / "city"


@pytest.fixture(scope="module")
def document(city: Path) -> dict[str, Any]:
    """With its variables filled in, as the guide sets them."""
    text = COMPOSE.read_text()
    text = re.sub(r"\$\{GRIDVEIL_CITY:-[^}]*\}", str(city), text)
    text = re.sub(r"\$\{GRIDVEIL_USER:-([^}]*)\}", r"\1", text)
    assert "$" not in text
    loaded: dict[str, Any] = yaml.safe_load(text)
    assert set(loaded["services"]) == SERVICES | CLIENTS
    return loaded


@pytest.fixture
def services(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All of them, clients too."""
    return dict(document["services"])


def test_every_container_is_hardened(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert service["ulimits"] == {"core": 0}
        assert not {
            "cap_add",
            "privileged",
            "environment",
            "env_file",
            "network_mode",
            "pid",
        } & set(service)


def test_networks_are_the_trust_domains(
    document: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    members: dict[str, set[str]] = {}
    for name, service in services.items():
        for network in service["networks"]:
            members.setdefault(network, set()).add(name)
    assert members == {
        "release": {"keyholder", "aggregator"},
        "store": {"aggregator", "redis"},
        "registry": {"keyholder", "registrar"},
        "meters": {"aggregator", "gateway"},
        "operators": {"totals", "operator"},
    }
    assert document["networks"] == {name: {"internal": True} for name in members}
    assert not [name for name, service in services.items() if "ports" in service]


def test_no_folder_is_shared_but_what_totals_reads(
    city: Path, services: dict[str, dict[str, Any]]
) -> None:
    owners: dict[str, dict[str, bool]] = {}
    for name in SERVICES:
        for volume in services[name]["volumes"]:
            source = str(Path(volume["source"]).relative_to(city))
            owners.setdefault(source, {})[name] = volume.get("read_only", False)
            assert volume["bind"] == {"create_host_path": False}
    shared = {source: users for source, users in owners.items() if len(users) > 1}
    assert shared == {"keyholder/published": {"keyholder": False, "totals": True}}
    assert {name for users in owners.values() for name in users} == SERVICES


def test_secrets_are_the_files_that_the_city_has_and_each_is_given_once(
    document: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    secrets = {name: Path(secret["file"]) for name, secret in document["secrets"].items()}
    given = [
        secret if isinstance(secret, str) else secret["source"]
        for service in services.values()
        for secret in service.get("secrets", [])
    ]
    assert len(secrets) == 12
    assert sorted(given) == sorted(secrets)
    assert all(path.is_file() for path in secrets.values())
    assert "ca" not in {path.parent.name for path in secrets.values()}


def test_services_find_their_files_and_each_other(
    city: Path, services: dict[str, dict[str, Any]]
) -> None:
    keyholder = KeyHolderConfig.load(city / "keyholder" / "keyholder.toml")
    aggregator = AggregatorConfig.load(city / "aggregator" / "aggregator.toml")
    totals = TotalsConfig.load(city / "totals" / "totals.toml")
    wanted = {
        "keyholder": [
            keyholder.state,
            keyholder.published,
            keyholder.key_encrypting_key_file,
            keyholder.tls.ca,
            keyholder.tls.certificate,
            keyholder.tls.key,
        ],
        "aggregator": [aggregator.state, aggregator.tls.ca, aggregator.tls.key],
        "totals": [totals.published.resolve(), totals.tls.certificate, totals.tls.key],
    }
    assert aggregator.redis is not None
    assert aggregator.redis.password_file is not None
    wanted["aggregator"].append(aggregator.redis.password_file)
    for name, paths in wanted.items():
        secrets = [s["target"] for s in services[name]["secrets"]]
        targets = {volume["target"] for volume in services[name]["volumes"]} | set(secrets)
        assert {f"/city/{path.relative_to(city)}" for path in paths} <= targets
        assert stages()[name].whole_command[-1] in targets
    assert aggregator.keyholder == "keyholder:7440"
    assert aggregator.redis.addresses == (("redis", 6379),)


def test_containers_run_what_their_images_do_and_are_asked_as_they_are(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in SERVICES - {"redis"}:
        service, stage = services[name], stages()[name]
        assert not {"command", "entrypoint"} & set(service)
        assert service["build"]["target"] == stage.name
        assert service["healthcheck"]["test"] == ["CMD", *stage.health_command]
        assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert {services[name]["build"]["target"] for name in CLIENTS} == {"tools"}


@redis_servers.NEEDED
def test_its_redis_is_one_that_its_aggregator_takes(
    city: Path, services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from gridveil_services.aggregator.store.database import Database
    from gridveil_services.aggregator.store.redis.store import RedisStore
    from gridveil_services.aggregator.store.schema import SCHEMA

    port, here = spare_port(), {"/data": str(tmp_path)}
    here["/run/secrets/redis-users"] = str(city / "redis" / "users.acl")
    command = [here.get(word, word) for word in services["redis"]["command"]]
    path = tmp_path / "aggregator.toml"
    text = (city / "aggregator" / "aggregator.toml").read_text()
    assert "redis://redis:6379" in text
    path.write_text(text.replace("redis://redis:6379", f"redis://127.0.0.1:{port}"))
    shutil.copy(city / "aggregator" / "redis.password", tmp_path)
    config = AggregatorConfig.load(path)
    assert config.redis is not None
    (_, *ask) = services["redis"]["healthcheck"]["test"]
    ask[1:1] = ["-p", str(port)]
    assert subprocess.run(ask, capture_output=True, check=False).returncode != 0
    with subprocess.Popen(
        [*command, "--bind", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL
    ) as server:
        try:
            redis_servers.until(lambda: redis_servers.refuses_strangers(port))
            assert subprocess.run(ask, capture_output=True, check=False).returncode == 0
            database = Database(tmp_path / "aggregator.db", SCHEMA)
            RedisStore.open(config.redis, database, config.city_id, SystemClock()).close()
            database.close()
        finally:
            server.terminate()


def test_the_guides_clients_reach_their_own_folders_with_commands_that_exist(
    services: dict[str, dict[str, Any]],
) -> None:
    lines = guide.lines("docker compose --file deploy/compose.yaml run --rm ")
    assert len(lines) == 3
    for line in lines:
        service, *words = line.split(" run --rm ")[1].split()
        targets = {volume["target"] for volume in services[service]["volumes"]}
        for word in words:
            assert not word.startswith("/") or any(word.startswith(own) for own in targets)
        shown = guide.gridveil(*words[:2], "--help")
        options = [word for word in words if word.startswith("--")]
        assert options
        assert all(option in shown for option in options)
