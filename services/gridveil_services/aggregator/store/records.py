"""How rows of the store are packed, and the checksums that show whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES, text, u32, u64
from gridveil.protocol.release import ENTRY_BYTES
from gridveil_services.aggregator.store.interface import StoredReport

RECORD_BYTES = DIGEST_BYTES + ENTRY_BYTES
"""A report's digest, then its entry, which starts with the meter id."""

_SUM_DOMAIN = text("gridveil/store/lane-sum")
_JOURNAL_DOMAIN = text("gridveil/store/journal")
_ACKNOWLEDGED_DOMAIN = text("gridveil/store/acknowledged")


def pack(reports: Sequence[StoredReport]) -> bytes:
    """The records of reports, one after the other."""
    return b"".join([part for report in reports for part in (report.digest, report.entry)])


def unpack(packed: bytes) -> Iterator[StoredReport]:
    """The reports in packed records."""
    for at in range(0, len(packed), RECORD_BYTES):
        entry = packed[at + DIGEST_BYTES : at + RECORD_BYTES]
        yield StoredReport(entry[:ID_BYTES], packed[at : at + DIGEST_BYTES], entry)


def entries_in(packed: bytes) -> list[bytes]:
    """The entries in packed records."""
    return [
        packed[at + DIGEST_BYTES : at + RECORD_BYTES] for at in range(0, len(packed), RECORD_BYTES)
    ]


def sum_checksum(window: int, lane: int, count: int, ciphertext: bytes) -> bytes:
    """SHA-256 that ties a lane's sum to its place and count."""
    digest = hashlib.sha256(_SUM_DOMAIN + u64(window) + u32(lane) + u64(count))
    digest.update(ciphertext)
    return digest.digest()


def journal_checksum(window: int, lane: int, accepted_at_ms: int, packed: bytes) -> bytes:
    """SHA-256 that ties packed records to their lane and time."""
    digest = hashlib.sha256(_JOURNAL_DOMAIN + u64(window) + u32(lane) + u64(accepted_at_ms))
    digest.update(packed)
    return digest.digest()


def acknowledged_checksum(window: int, lane: int, packed: bytes) -> bytes:
    """SHA-256 that ties acknowledgements, each a meter id and a digest, to their lane."""
    digest = hashlib.sha256(_ACKNOWLEDGED_DOMAIN + u64(window) + u32(lane))
    digest.update(packed)
    return digest.digest()
