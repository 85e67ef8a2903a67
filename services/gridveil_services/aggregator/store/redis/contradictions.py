"""Reports that contradict stored ones, kept beside them."""

from __future__ import annotations

from collections.abc import Sequence

from gridveil.protocol.layout import DIGEST_BYTES
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import Equivocation, Window
from gridveil_services.aggregator.store.redis.keys import CityKeys
from gridveil_services.aggregator.store.redis.lanes import Lanes
from gridveil_services.aggregator.store.redis.layout import corrupt
from gridveil_services.aggregator.store.redis.servers import Call, Servers


class Contradictions:
    """Of the windows of a city."""

    def __init__(self, servers: Servers, keys: CityKeys, lanes: Lanes) -> None:
        self._servers = servers
        self._keys = keys
        self._lanes = lanes

    def record(self, window: Window, lane: int, meter_id: bytes, second: bytes) -> None:
        """Keep what contradicts the stored report of a meter; the first only.

        Args:
            window: one that is not settled.
            lane: the meter's.
            meter_id: whose reports they are.
            second: parameters digest and entry of the report that was refused.
        """
        first = self._lanes.entry_of(window, lane, meter_id)
        if first is not None:
            key = self._keys.lane(window.start, lane).equivocations
            self._servers.write([Call(key, ("HSETNX", key, meter_id, first + second))])

    def of(self, window: Window) -> Sequence[Equivocation]:
        """What was recorded, ascending by meter."""
        keys = [self._keys.lane(window.start, lane).equivocations for lane in range(window.lanes)]
        answers = self._servers.read([Call(key, ("HGETALL", key)) for key in keys])
        found = [pair for answer in answers for pair in answer.items()]
        return [_equivocation(window.start, meter, both) for meter, both in sorted(found)]


def _equivocation(start: int, meter_id: bytes, both: bytes) -> Equivocation:
    if len(both) != 2 * ENTRY_BYTES + DIGEST_BYTES:
        raise corrupt()
    first, rest = both[:ENTRY_BYTES], both[ENTRY_BYTES:]
    return Equivocation(start, meter_id, first, rest[:DIGEST_BYTES], rest[DIGEST_BYTES:])
