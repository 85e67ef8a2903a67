"""The optional section ``[redis]`` of ``aggregator.toml``: read once, checked whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.aggregator.config import AggregatorConfig, RedisConfig
from gridveil_services.aggregator.workers import of_worker

REST = """
city_id = "00000000000000000000000000000000"
identity_key = "0000000000000000000000000000000000000000000000000000000000000000"
listen = "127.0.0.1:7002"
state = "state"
[tls]
ca = "ca.pem"
certificate = "cert.pem"
key = "key.pem"
[keyholder]
address = "127.0.0.1:7001"
"""


def load(folder: Path, section: str) -> RedisConfig | None:
    (folder / "aggregator.toml").write_text(REST + section)
    return AggregatorConfig.load(folder / "aggregator.toml").redis


def test_without_the_section_windows_are_kept_in_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "") is None


def test_one_server_is_named_by_a_url(tmp_path: Path) -> None:
    found = load(tmp_path, '[redis]\nurl = "redis://store.example:6379/2"\nreplicas = 1')
    assert found == RedisConfig((("store.example", 6379),), cluster=False, replicas=1, database=2)


def test_a_cluster_is_named_by_nodes_with_secrets_in_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("made up\n")
    found = load(
        tmp_path,
        '[redis]\nnodes = ["a:1", "[::1]:2"]\nusername = "gridveil"\npassword_file = "password"\n'
        '[redis.tls]\nca = "r-ca.pem"\ncertificate = "r.pem"\nkey = "r-key.pem"',
    )
    assert found is not None
    assert (found.addresses, found.cluster) == ((("a", 1), ("::1", 2)), True)
    assert found.password() == "made up"
    assert "made up" not in repr(found)
    assert found.tls is not None
    assert found.tls.ca == tmp_path / "r-ca.pem"


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ("", "redis"),
        ('url = "redis://a:1"\nnodes = ["a:1"]', "redis"),
        ('url = "redis://a"', "redis.url"),
        ('url = "rediss://a:1"', "redis.url"),
        ('url = "redis://:secret@a:1"', "redis.url"),
        ('url = "redis://a:1?socket_timeout=0"', "redis.url"),
        ('url = "redis://a:99999"', "redis.url"),
        ("nodes = []", "redis.nodes"),
        ('nodes = ["a"]', "redis.nodes"),
        ('nodes = ["a:0"]', "redis.nodes"),
        ('url = "redis://a:1"\nreplicas = -1', "redis.replicas"),
        ('url = "redis://a:1"\nusername = "u"', "redis.username"),
        ('url = "redis://a:1"\npassword = "secret"', "password"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_told(
    tmp_path: Path, section: str, named: str
) -> None:
    with pytest.raises(MalformedInput, match=named) as refused:
        load(tmp_path, "[redis]\n" + section)
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert "secret" not in str(refused.value).replace("password", "")


def test_a_password_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = load(tmp_path, '[redis]\nurl = "redis://a:1"\npassword_file = "nowhere"')
    assert found is not None
    with pytest.raises(MalformedInput, match="password_file"):
        found.password()


def test_each_worker_has_a_state_and_a_port_for_metrics_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "aggregator.toml").write_text(REST + '[metrics]\nlisten = "127.0.0.1:9464"')
    config = AggregatorConfig.load(tmp_path / "aggregator.toml")
    workers = [of_worker(config, number) for number in (1, 2)]
    assert [worker.metrics for worker in workers] == [("127.0.0.1", 9464), ("127.0.0.1", 9465)]
    assert [worker.state.name for worker in workers] == ["worker-1", "worker-2"]
    assert {worker.listen for worker in workers} == {config.listen}
