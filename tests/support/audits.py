"""Whether a log that a key-holder left is one that its readers accept."""

from __future__ import annotations

from pathlib import Path

from gridveil.log_audit import LogAudit, payloads_in


def assert_lawful(log: Path, city_id: bytes, identity_key: bytes) -> None:
    """Every record may follow those before it, as whoever reads the log sees it.

    Raises:
        IntegrityLost: LOG_CORRUPT, naming the record.
    """
    audit = LogAudit(city_id, identity_key)
    for payload in payloads_in(log):
        audit.add(payload)
