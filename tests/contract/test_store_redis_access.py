"""How the store in Redis is let in: the user that operations.md gives it, passwords, TLS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from gridveil.profile import Tls
from gridveil_services.aggregator.store.interface import Committed, Phase, StoreFailed
from gridveil_services.bootstrap.certificates import Authority
from gridveil_services.rpc import Role
from tests.contract.stores import START, RedisHarness, batch, made_up_report, make_window
from tests.support.ports import spare_port
from tests.support.redis_servers import (
    NEEDED,
    RedisCluster,
    RedisServer,
    one_cluster,
    one_server,
)
from tests.support.reports import CITY_ID

pytestmark = NEEDED

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


def documented_user() -> list[str]:
    """The rules of the user that docs/operations.md gives an aggregator."""
    found = re.search(r"^    user gridveil on (.+?)$", OPERATIONS, re.MULTILINE)
    assert found is not None
    rules = found.group(1).replace("PASSWORD", "made-up").replace("CITY_ID", CITY_ID.hex())
    return rules.split()


@pytest.mark.parametrize("many", [False, True])
def test_the_documented_user_may_do_all_that_the_store_does_and_not_empty_it(
    tmp_path: Path, many: bool
) -> None:
    servers = one_cluster() if many else one_server()
    (tmp_path / "password").write_text("made-up\n")
    config = replace(servers.config, username="gridveil", password_file=tmp_path / "password")
    for server in servers.servers if isinstance(servers, RedisCluster) else [servers]:
        admin: Any = server.client
        admin.execute_command("ACL", "SETUSER", "gridveil", "on", *documented_user())
    harness = RedisHarness(tmp_path, servers, config)
    harness.store.open_window(make_window())
    assert harness.store.move_window(make_window(parameters_digest=bytes([1]) * 32))
    made = batch([1, 2], parameters_digest=bytes([1]) * 32)
    assert harness.store.commit([made], 77) == [Committed(77)]
    harness.reopen()
    report, _ = made_up_report(1, 1)
    harness.store.record_equivocation(START, 0, report.meter_id, bytes(32), report.entry)
    assert harness.store.known(START, [report.meter_id])
    assert harness.store.entries_after(START, 0)[0]
    assert harness.store.seal(START)
    assert harness.store.lane_sums(START)
    assert b"".join(harness.store.entries(START))
    assert len(harness.store.equivocations(START)) == 1
    assert harness.store.settle(START, Phase.RELEASED)
    assert harness.store.forget(2**40) == 1
    harness.close()
    own: Any = Redis("127.0.0.1", config.addresses[0][1], username="gridveil", password="made-up")
    for forbidden in ("FLUSHALL", "CONFIG SET appendfsync no", "KEYS *", "REPLICAOF no one"):
        with pytest.raises(NoPermissionError):
            own.execute_command(*forbidden.split())
    own.close()


def test_a_wrong_password_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("not-the-one")
    config = replace(one_server().config, password_file=tmp_path / "password", username="nobody")
    with pytest.raises(StoreFailed) as refused:
        RedisHarness(tmp_path, config=config)
    assert "not-the-one" not in str(refused.value)
    assert "nobody" not in str(refused.value)


def write_identity(authority: Authority, folder: Path, role: Role) -> Tls:
    """A certificate that the authority issued, its key, and the authority's own certificate."""
    folder.mkdir()
    now = datetime.now(UTC)
    issued = authority.issue(
        role, "test", valid_from=now - timedelta(days=1), valid_until=now + timedelta(days=1)
    )
    tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    tls.ca.write_bytes(authority.certificate_pem)
    tls.certificate.write_bytes(issued.certificate_pem)
    tls.key.write_bytes(issued.key_pem)
    return tls


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[RedisServer, Authority, int]]:
    """A server with a port for TLS, the authority it trusts, and the port."""
    now = datetime.now(UTC)
    authority = Authority.create(CITY_ID, now - timedelta(days=1), now + timedelta(days=1))
    tls, port = write_identity(authority, tmp_path / "server", Role.AGGREGATOR), spare_port()
    server = RedisServer(
        tls_port=str(port),
        tls_ca_cert_file=str(tls.ca),
        tls_cert_file=str(tls.certificate),
        tls_key_file=str(tls.key),
    )
    yield server, authority, port
    server.stop()


def test_the_connection_is_encrypted_and_both_ends_are_authenticated(
    tmp_path: Path, encrypted: tuple[RedisServer, Authority, int]
) -> None:
    server, authority, port = encrypted
    now = datetime.now(UTC)
    stranger = Authority.create(CITY_ID, now - timedelta(days=1), now + timedelta(days=1))
    right = write_identity(authority, tmp_path / "right", Role.METER)
    wrong = write_identity(stranger, tmp_path / "wrong", Role.METER)
    config = replace(server.config, addresses=(("localhost", port),), tls=right)
    harness = RedisHarness(tmp_path, server, config)
    harness.store.open_window(make_window())
    assert harness.store.commit([batch([1])], 77) == [Committed(77)]
    harness.close()
    for tls in (wrong, replace(wrong, ca=right.ca), replace(right, ca=wrong.ca), None):
        harness.config = replace(config, tls=tls)
        with pytest.raises(StoreFailed):
            harness.reopen()
        harness.close_database()
