"""Reading lanes: whatever is given out was compared with its checks before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gridveil.protocol.ciphertext import Residues, add, to_bytes
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.release import LaneSum
from gridveil_services.aggregator.store.interface import Phase, StoredReceipt, Window
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.admission import MOST_IDS
from gridveil_services.aggregator.store.redis.keys import CityKeys, bucket_of, buckets
from gridveil_services.aggregator.store.redis.layout import (
    corrupt,
    decode_element,
    decode_partial,
    decode_receipt,
    first_digest,
    running_digest,
)
from gridveil_services.aggregator.store.redis.servers import Call, Servers, script

_LANE_BITS = 32
_MOST_AHEAD = 4_096


class Marker(NamedTuple):
    """What a lane says of itself."""

    reports: int
    sealed: int
    """Fencing epoch of its seal; 0 while it is open."""
    parameters_digest: bytes
    digest: bytes


class Lanes:
    """The lanes of windows as they are stored. From any thread."""

    def __init__(self, servers: Servers, keys: CityKeys) -> None:
        self._servers = servers
        self._keys = keys

    def markers(self, window: Window) -> list[Marker | None]:
        """Of each lane its marker, or None where it is gone."""
        calls = [self._marker_call(window.start, lane) for lane in range(window.lanes)]
        return [_marker(answer) for answer in self._servers.read(calls)]

    def known(
        self,
        window: Window,
        meter_ids: Sequence[bytes],
        lane_of: Callable[[bytes], int] | None = None,
    ) -> Mapping[int, Mapping[bytes, StoredReceipt]]:
        """Receipts by lane, of the meters that have one in the lane named, or else in any."""
        split, calls, lanes = buckets(window), [], []
        for lane, meters in _places(window, meter_ids, lane_of).items():
            of_lane = self._keys.lane(window.start, lane)
            for at in range(0, len(meters), MOST_IDS):
                some = meters[at : at + MOST_IDS]
                keys = [of_lane.receipts(bucket_of(meter, split)) for meter in some]
                calls.append(script(scripts.KNOWN, keys, *some))
                lanes.append(lane)
        found: dict[int, dict[bytes, StoredReceipt]] = {}
        for lane, answer in zip(lanes, self._servers.read(calls), strict=True):
            if answer:
                found.setdefault(lane, {}).update(receipts_in(answer))
        return found

    def receipts_of(
        self, window: Window, lane: int, meter_ids: Sequence[bytes]
    ) -> dict[bytes, StoredReceipt]:
        """Receipts of those of the meters that have one in a lane."""
        split, of_lane = buckets(window), self._keys.lane(window.start, lane)
        calls = []
        for at in range(0, len(meter_ids), MOST_IDS):
            some = meter_ids[at : at + MOST_IDS]
            keys = [of_lane.receipts(bucket_of(meter, split)) for meter in some]
            calls.append(script(scripts.KNOWN, keys, *some))
        found: dict[bytes, StoredReceipt] = {}
        for answer in self._servers.read(calls):
            found |= receipts_in(answer)
        return found

    def sums(
        self, window: Window, sealed: int, expected: Sequence[Marker] | None, *, entries: bool
    ) -> list[LaneSum]:
        """Sums of the lanes with a report, of a window sealed under this epoch.

        Args:
            window: a sealed or released one.
            sealed: its fencing epoch.
            expected: the lanes' markers, where they were vouched for.
            entries: whether its entries must still be there.
        """
        sums = []
        for lane in range(window.lanes):
            of_lane = self._keys.lane(window.start, lane)
            marker, partials, length = self._servers.read(
                [
                    self._marker_call(window.start, lane),
                    Call(of_lane.partials, ("HGETALL", of_lane.partials)),
                    Call(of_lane.journal, ("LLEN", of_lane.journal)),
                ]
            )
            held = _sealed(_marker(marker), sealed)
            if expected is not None and held != expected[lane]:
                raise corrupt()
            if entries and length != held.reports:
                raise corrupt()
            if held.reports:
                total = _combined(window, lane, held.reports, partials)
                sums.append(LaneSum(lane, held.reports, to_bytes(total)))
        return sums

    def entries(
        self, window: Window, lane: int, sealed: int, expected: Sequence[Marker] | None
    ) -> bytes:
        """All entries of a sealed lane, ascending by meter id."""
        (answer,) = self._servers.read([self._marker_call(window.start, lane)])
        held = _sealed(_marker(answer), sealed)
        if expected is not None and held != expected[lane]:
            raise corrupt()
        elements = list(self._elements(window, lane, 0, held.reports))
        receipts = self._receipts(window, lane)
        digest = running_digest(first_digest(window.start, lane), elements, receipts)
        if digest != held.digest or len(elements) != held.reports or len(receipts) != held.reports:
            raise corrupt()
        # An entry begins with its meter's id, of which a window holds one.
        return b"".join(sorted(decode_element(window.start, lane, e) for e in elements))

    def whole(self, window: Window, sealed: int) -> bool:
        """Whether no lane of a window is gone, and all are sealed if it is."""
        if window.phase not in (Phase.OPEN, Phase.SEALED):
            return True
        wanted = sealed if window.phase is Phase.SEALED else None
        return all(
            marker is not None and wanted in (None, marker.sealed)
            for marker in self.markers(window)
        )

    def entries_after(self, window: Window, after: int) -> tuple[bytes, int]:
        """Entries from a place on, lane by lane; a place is how many of each lane were given."""
        entries: list[bytes] = []
        for lane in range(window.lanes):
            shift = lane * _LANE_BITS
            place = after >> shift & (1 << _LANE_BITS) - 1
            for element in self._elements(window, lane, place, place + _MOST_AHEAD - len(entries)):
                entries.append(decode_element(window.start, lane, element))
                after += 1 << shift
        return b"".join(entries), after

    def entry_of(self, window: Window, lane: int, meter_id: bytes) -> bytes | None:
        """A meter's entry in a lane."""
        at = 0
        while elements := list(self._elements(window, lane, at, at + MOST_IDS)):
            for element in elements:
                if element[:ID_BYTES] == meter_id:
                    return decode_element(window.start, lane, element)
            at += len(elements)
        return None

    def _marker_call(self, start: int, lane: int) -> Call:
        key = self._keys.lane(start, lane).lane
        return Call(key, ("HMGET", key, "count", "sealed", "parameters", "digest"))

    def _elements(self, window: Window, lane: int, start: int, end: int) -> Iterator[bytes]:
        key = self._keys.lane(window.start, lane).journal
        while start < end:
            last = min(end, start + MOST_IDS) - 1
            (page,) = self._servers.read([Call(key, ("LRANGE", key, start, last))])
            yield from page
            if len(page) < last - start + 1:
                return
            start = last + 1

    def _receipts(self, window: Window, lane: int) -> dict[bytes, bytes]:
        of_lane = self._keys.lane(window.start, lane)
        keys = [of_lane.receipts(bucket) for bucket in range(buckets(window))]
        answers = self._servers.read([Call(key, ("HGETALL", key)) for key in keys])
        return {meter: receipt for answer in answers for meter, receipt in answer.items()}


def receipts_in(flat: Sequence[bytes]) -> dict[bytes, StoredReceipt]:
    """Meters and their receipts as a script answers them, one after the other."""
    return {m: decode_receipt(r) for m, r in zip(flat[::2], flat[1::2], strict=True)}


def _places(
    window: Window, meter_ids: Sequence[bytes], lane_of: Callable[[bytes], int] | None
) -> Mapping[int, Sequence[bytes]]:
    """Which meters to look for in which lanes."""
    if lane_of is None:
        return dict.fromkeys(range(window.lanes), meter_ids)
    places: dict[int, list[bytes]] = {}
    for meter in meter_ids:
        places.setdefault(lane_of(meter), []).append(meter)
    return places


def _marker(answer: Sequence[bytes | None]) -> Marker | None:
    count, sealed, parameters, digest = answer
    if count is None or sealed is None or parameters is None or digest is None:
        return None
    try:
        return Marker(int(count), int(sealed), parameters, digest)
    except ValueError:
        return None


def _sealed(marker: Marker | None, sealed: int) -> Marker:
    if marker is None or marker.sealed != sealed:
        raise corrupt()
    return marker


def _combined(window: Window, lane: int, count: int, partials: Mapping[bytes, bytes]) -> Residues:
    found = [
        decode_partial(window, lane, stored)
        for name, stored in partials.items()
        if name.startswith(b"p:")
    ]
    if sum(of_writer for of_writer, _ in found) != count:
        raise corrupt()
    return add([total for _, total in found], parameter_set(window.parameter_set))
