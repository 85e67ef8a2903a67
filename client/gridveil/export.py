"""Exporting a verified window for verifiers such as docs/verify_total.py."""

from __future__ import annotations

from gridveil.protocol.checkpoint import TreeHead, log_key
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.export import Export
from gridveil.protocol.log_records import settled_by
from gridveil.protocol.note import Note
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowReleased
from gridveil.protocol.v1.totals_pb2 import LogProof, SignedTotal
from gridveil.registrar import Roster
from gridveil.settlements import ReleasedTotal


def encode_export(
    released: ReleasedTotal,
    entries: bytes,
    proof: LogProof,
    identity_key: bytes,
    roster: Roster | None = None,
) -> bytes:
    """The file of a verified window.

    Args:
        released: the total as it was signed.
        entries: all its opened entries.
        proof: that the release log has it, verified.
        identity_key: the pinned key; only its signature of the checkpoint is exported.
        roster: of the total's roster version, for the meters' signatures.

    Raises:
        MalformedInput: the record or the checkpoint say more than the layout holds.
        NotAuthentic: KEY_NOT_PINNED if the checkpoint is not signed by the identity key.
    """
    head, log_signature = _checkpoint(proof.checkpoint, released.total.city_id, identity_key)
    recorded_at, failures = _record(proof.record, released)
    export = Export(
        total=released.encoded,
        total_signature=released.signature,
        roster_version=roster.head.encode() if roster else b"",
        roster_signature=roster.signature if roster else b"",
        roster_entries=b"".join(m.encode() for m in roster.members) if roster else b"",
        opened_entries=entries,
        proof=tuple(proof.hashes),
        recorded_at_ms=recorded_at,
        failures=failures,
        index=proof.index,
        log_size=head.size,
        log_signature=log_signature,
    )
    return export.encode()


def _record(encoded: bytes, released: ReleasedTotal) -> tuple[int, int]:
    """When the total was recorded (Unix ms), and how many lanes failed."""
    record = LogRecord.FromString(encoded)
    failures = record.released.failures
    signed = SignedTotal(total=released.encoded, signature=released.signature)
    expected = LogRecord(
        recorded_at_ms=record.recorded_at_ms,
        released=WindowReleased(
            window_start=released.window_start, total=signed, failures=failures
        ),
    )
    if settled_by(record) is None or expected.SerializeToString(deterministic=True) != encoded:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "the log's record is not as expected")
    return record.recorded_at_ms, failures


def _checkpoint(encoded: bytes, city_id: bytes, identity_key: bytes) -> tuple[TreeHead, bytes]:
    """The tree head, and the signature of the log's own key; those of witnesses are left out."""
    key, note = log_key(city_id, identity_key), Note.decode(encoded)
    if not note.is_signed_by(key):
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the checkpoint is not signed by the key-holder")
    mine = (line.signature for line in note.signatures if line.key_id == key.key_id)
    return TreeHead.decode(note.text), next(mine)
