"""The export: a released window in one file, for verifiers that share no code with Gridveil."""

from __future__ import annotations

from dataclasses import dataclass

from gridveil.protocol.layout import blob, text, u32, u64

_DOMAIN = "gridveil/v1/export"


@dataclass(frozen=True)
class Export:
    """What a verifier cannot derive, and nothing else: every byte matters (docs/protocol.md)."""

    total: bytes
    total_signature: bytes
    roster_version: bytes
    """Empty, like the next two, if the roster is left out."""
    roster_signature: bytes
    roster_entries: bytes
    opened_entries: bytes
    proof: tuple[bytes, ...]
    """Inclusion proof of the log's record."""
    recorded_at_ms: int
    failures: int
    index: int
    """Of the record in the log."""
    log_size: int
    """Records under the checkpoint."""
    log_signature: bytes
    """The identity key's, of the checkpoint's text."""

    def encode(self) -> bytes:
        """The bytes of the file."""
        blobs = (
            self.total,
            self.total_signature,
            self.roster_version,
            self.roster_signature,
            self.roster_entries,
            self.opened_entries,
            b"".join(self.proof),
        )
        place = u64(self.recorded_at_ms) + u32(self.failures) + u64(self.index) + u64(self.log_size)
        return text(_DOMAIN) + b"".join(map(blob, blobs)) + place + self.log_signature
