"""What tests of the store in Redis know of its keys, and look at behind its back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gridveil.protocol.ciphertext import add, to_bytes
from gridveil.protocol.release import LaneSum
from gridveil_services.aggregator.store.interface import Phase, StoredReceipt
from gridveil_services.aggregator.store.redis.keys import CityKeys
from tests.contract.stores import CRYPTO, START, RedisHarness, made_up_report
from tests.support.reports import CITY_ID

KEYS = CityKeys(CITY_ID.hex())
LANE = KEYS.lane(START, 0)


@contextmanager
def setting(client: Any, name: str, value: str) -> Iterator[None]:
    before = client.config_get(name)[name]
    client.config_set(name, value)
    try:
        yield
    finally:
        client.config_set(name, before)


def meter_id(meter: int) -> bytes:
    return made_up_report(meter)[0].meter_id


def receipt(meter: int, at: int) -> StoredReceipt:
    return StoredReceipt(made_up_report(meter)[0].digest, at)


def sum_of(*meters: int) -> LaneSum:
    residues = [made_up_report(meter)[1] for meter in meters]
    return LaneSum(0, len(meters), to_bytes(add(residues, CRYPTO)))


def phase(harness: RedisHarness, start: int = START) -> Phase:
    window = harness.store.window(start)
    assert window is not None
    return window.phase


def everything(client: Any) -> dict[bytes, bytes]:
    """Every key and its value, as the server dumps them."""
    return {key: client.dump(key) for key in client.scan_iter()}
