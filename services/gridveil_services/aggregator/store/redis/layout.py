"""Bytes of what is kept in Redis, and the checks that show whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from gridveil.protocol.ciphertext import Residues, stored_sum, to_bytes
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, Reader, text, u32, u64
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import (
    Phase,
    StoredReceipt,
    StoredReport,
    Window,
)
from gridveil_services.aggregator.store.records import sum_checksum

_WINDOW_DOMAIN = "gridveil/store/redis-window"
_LANE_DOMAIN = text("gridveil/store/redis-lane")
_ELEMENT_DOMAIN = text("gridveil/store/redis-element")
_CHECK_BYTES = 8
_ELEMENT_BYTES = ENTRY_BYTES + _CHECK_BYTES
_RECEIPT_BYTES = DIGEST_BYTES + 8


def corrupt() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "what was stored of the window is not whole")


def encode_facts(window: Window) -> bytes:
    """Everything of a window but its phase."""
    return b"".join(
        (
            text(_WINDOW_DOMAIN),
            *map(u64, (window.start, window.end, window.closes)),
            window.parameters_digest,
            *map(u64, (window.roster_version, window.enrolled, window.lanes)),
            u64(window.lane_capacity),
            text(window.parameter_set),
            u32(window.slots),
        )
    )


@lru_cache(maxsize=1 << 10)  # They are read twice a second, and seldom change.
def decode_facts(data: bytes, phase: Phase) -> Window:
    """The window; PARTIAL_CORRUPT for other bytes."""
    reader = Reader(data, "a stored window")
    try:
        reader.domain(_WINDOW_DOMAIN)
        start, end, closes = (reader.uint(8) for _ in range(3))
        digest = reader.take(DIGEST_BYTES)
        version, enrolled, lanes, capacity = (reader.uint(8) for _ in range(4))
        name, slots = reader.text(), reader.uint(4)
        reader.end()
        parameter_set(name)
    except (MalformedInput, KeyError):
        raise corrupt() from None
    return Window(
        start, end, closes, digest, version, enrolled, lanes, capacity, name, slots, phase
    )


def encode_receipt(digest: bytes, accepted_at_ms: int) -> bytes:
    return digest + u64(accepted_at_ms)


def decode_receipt(data: bytes) -> StoredReceipt:
    if len(data) != _RECEIPT_BYTES:
        raise corrupt()
    return StoredReceipt(data[:DIGEST_BYTES], int.from_bytes(data[DIGEST_BYTES:], "little"))


def encode_element(window: int, lane: int, report: StoredReport) -> bytes:
    """An entry and its check, as an element of the journal; it begins with the meter's id."""
    return report.entry + _element_check(window, lane, report.entry)


def decode_element(window: int, lane: int, element: bytes) -> bytes:
    """The entry; PARTIAL_CORRUPT if it is not what was written there."""
    entry = element[:ENTRY_BYTES]
    if len(element) != _ELEMENT_BYTES or element[ENTRY_BYTES:] != _element_check(
        window, lane, entry
    ):
        raise corrupt()
    return entry


def _element_check(window: int, lane: int, entry: bytes) -> bytes:
    return hashlib.sha256(_ELEMENT_DOMAIN + u64(window) + u32(lane) + entry).digest()[:_CHECK_BYTES]


def first_digest(window: int, lane: int) -> bytes:
    """The running digest of a lane without a report, in hexadecimal as the scripts have it."""
    return hashlib.sha256(_LANE_DOMAIN + u64(window) + u32(lane)).hexdigest().encode()


def running_digest(
    digest: bytes, elements: Sequence[bytes], receipts: Mapping[bytes, bytes]
) -> bytes:
    """The digest after further elements; ``commit`` in :mod:`.scripts` computes the same.

    SHA-1 is what Redis has. It is to show what was lost or damaged, not to withstand a forger.
    """
    for element in elements:
        receipt = receipts.get(element[:ID_BYTES])
        if receipt is None:
            raise corrupt()
        made = hashlib.sha1(digest + receipt + element, usedforsecurity=False)
        digest = made.hexdigest().encode()
    return digest


def encode_partial(window: int, lane: int, count: int, total: Residues) -> bytes:
    """A writer's running sum with its count and checksum."""
    data = to_bytes(total)
    return u64(count) + sum_checksum(window, lane, count, data) + data


def decode_partial(window: Window, lane: int, stored: bytes) -> tuple[int, Residues]:
    """Count and running sum; PARTIAL_CORRUPT if it is not what was written there."""
    count, checksum = int.from_bytes(stored[:8], "little"), stored[8 : 8 + DIGEST_BYTES]
    data = stored[8 + DIGEST_BYTES :]
    if sum_checksum(window.start, lane, count, data) != checksum:
        raise corrupt()
    return count, stored_sum(data, parameter_set(window.parameter_set), window.slots)
