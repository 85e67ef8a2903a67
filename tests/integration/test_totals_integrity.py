"""A totals service that was taken over, or whose log was: it makes nothing up."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nacl.signing import SigningKey

from gridveil.operator import (
    AsyncOperator,
)
from gridveil.profile import Profile
from gridveil.protocol.errors import (
    IntegrityLost,
    NotAuthentic,
    Reason,
    WrongState,
)
from gridveil.transport import connect
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import (
    city_identity,
    expired,
    open_window,
    publish,
    publish_entries,
    readings,
    released,
)
from tests.support.totals_clients import METERS, client, opened, window


def test_a_total_that_somebody_else_signed_is_refused_by_the_operator(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    """A totals service that was taken over cannot make anything up."""
    thief = SigningKey(b"t" * 32)
    policy, signer = city_identity(paths)
    config = paths.config("totals")
    key, other = bytes(signer.verify_key).hex(), bytes(thief.verify_key).hex()
    config.write_text(config.read_text().replace(key, other))
    publish(paths, released(open_window(policy, thief, window(0), readings(METERS))), thief=thief)
    serve()

    with client(paths) as operator:
        for ask in (
            lambda: operator.get(window(0)),
            lambda: list(operator.list()),
            lambda: next(operator.watch(window(0))),
        ):
            with pytest.raises(NotAuthentic) as raised:
                ask()
            assert raised.value.reason is Reason.KEY_NOT_PINNED


def test_what_the_key_holder_did_not_sign_is_not_served(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    policy, _ = city_identity(paths)
    made = open_window(policy, SigningKey(b"t" * 32), window(0), readings(METERS))
    publish(paths, released(made))
    with pytest.raises(IntegrityLost) as raised:
        serve()
    assert raised.value.reason is Reason.LOG_CORRUPT


def health(paths: CityPaths) -> int:
    profile = Profile.load(paths.profile("operator"))
    channel = connect(profile.endpoint("totals"), "totals", profile.city_id, profile.tls)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


def flip_a_bit(records: Path) -> None:
    data = bytearray(records.read_bytes())
    data[-1] ^= 1
    records.write_bytes(data)


def cut_off(records: Path) -> None:
    records.write_bytes(records.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_a_damaged_log_is_refused_at_start(
    paths: CityPaths, serve: Callable[[], TotalsProcess], damage: Callable[[Path], None]
) -> None:
    publish(paths, released(opened(paths, 0)))
    damage(paths.published / "log" / "records")
    with pytest.raises(IntegrityLost) as raised:
        serve()
    assert raised.value.reason is Reason.LOG_CORRUPT


def test_a_log_that_goes_bad_stops_every_answer(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, expired(window(0)))
    serve()
    assert health(paths) == health_pb2.HealthCheckResponse.SERVING
    with client(paths) as operator:
        watch = operator.watch(window(0))
        next(watch)

        policy, _ = city_identity(paths)
        forger = SigningKey(b"t" * 32)
        publish(paths, released(open_window(policy, forger, window(1), readings(METERS))))

        with pytest.raises(IntegrityLost) as raised:
            next(watch)
        assert raised.value.reason is Reason.LOG_CORRUPT
        with pytest.raises(IntegrityLost):
            operator.get(window(0))
    assert health(paths) == health_pb2.HealthCheckResponse.NOT_SERVING


def tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        digest.update(f"{path} {status.st_mtime_ns} {status.st_ino}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def test_reading_changes_nothing_on_disk(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    made = opened(paths, 0)
    publish_entries(paths, made)
    publish(paths, released(made))
    folders = (paths.published, paths.role("totals"))
    before = list(map(tree_digest, folders))
    serve()
    with client(paths, "auditor") as auditor:
        auditor.get(window(0))
        list(auditor.list())
        next(auditor.watch(window(0)))
        list(auditor.entries(window(0)))
    assert list(map(tree_digest, folders)) == before


async def test_the_asyncio_operator_sees_the_same(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    made = opened(paths, 1)
    publish_entries(paths, made)
    publish(paths, expired(window(0)), released(made))
    first = serve()
    with client(paths) as blocking:
        expected = list(blocking.list())

    async with AsyncOperator.open(paths.profile("auditor")) as operator:
        assert await operator.get(window(1)) == expected[1]
        assert [outcome async for outcome in operator.list(page_size=1)] == expected
        entries = [chunk async for chunk in operator.entries(window(1))]
        assert b"".join(entries) == made.entries
        with pytest.raises(WrongState):
            await operator.get(window(9))

        watch = operator.watch(window(0))
        assert [await anext(watch), await anext(watch)] == expected
        first.stop()
        serve()
        timer = threading.Timer(0.3, lambda: publish(paths, expired(window(2))))
        timer.start()
        assert (await anext(watch)).window_start == window(2)
        await watch.aclose()
        timer.join()
