"""The report: what a meter signs, and its strict parsing on arrival."""

from __future__ import annotations

from dataclasses import dataclass

from nacl.signing import SigningKey

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import (
    DIGEST_BYTES,
    ID_BYTES,
    SIGNATURE_BYTES,
    fixed,
    sha256,
    text,
    u32,
    u64,
)
from gridveil.protocol.sealing import SEALED_BYTES
from gridveil.protocol.signing import sign
from gridveil.protocol.v1 import report_pb2

FLAGS_KNOWN = 0
"""Flag bits this version defines: none."""

_REPORT_DOMAIN = text("gridveil/v1/report")
_SEAL_DOMAIN = text("gridveil/v1/seal")


@dataclass(frozen=True)
class Claim:
    """What a report says apart from its ciphertext; everything the signature covers."""

    parameters_digest: bytes
    window_start: int
    meter_id: bytes
    flags: int
    commitment_hash: bytes
    sealed_commitment: bytes
    ciphertext_digest: bytes

    def transcript(self) -> bytes:
        """The bytes that the meter signs, 175 of them."""
        return b"".join(
            (
                _REPORT_DOMAIN,
                self.parameters_digest,
                u64(self.window_start),
                self.meter_id,
                u32(self.flags),
                self.commitment_hash,
                sha256(self.sealed_commitment),
                self.ciphertext_digest,
            )
        )

    def digest(self) -> bytes:
        """SHA-256 of the transcript: names the report in receipts."""
        return sha256(self.transcript())

    def seal_data(self) -> bytes:
        """Associated data of the sealed commitment."""
        return seal_data(
            self.parameters_digest,
            self.window_start,
            self.meter_id,
            self.flags,
            self.commitment_hash,
            self.ciphertext_digest,
        )


@dataclass(frozen=True)
class Report:
    """One report as it travels: the claim, its ciphertext and its signature."""

    claim: Claim
    ciphertext: bytes
    signature: bytes

    def to_message(self) -> report_pb2.Report:
        """As the wire message."""
        claim = self.claim
        return report_pb2.Report(
            parameters_digest=claim.parameters_digest,
            window_start=claim.window_start,
            meter_id=claim.meter_id,
            flags=claim.flags,
            commitment_hash=claim.commitment_hash,
            sealed_commitment=claim.sealed_commitment,
            ciphertext=self.ciphertext,
            signature=self.signature,
        )


def seal_data(
    parameters_digest: bytes,
    window_start: int,
    meter_id: bytes,
    flags: int,
    commitment_hash: bytes,
    ciphertext_digest: bytes,
) -> bytes:
    """Associated data of a sealed commitment: all of the transcript that exists before it."""
    return b"".join(
        (
            _SEAL_DOMAIN,
            parameters_digest,
            u64(window_start),
            meter_id,
            u32(flags),
            commitment_hash,
            ciphertext_digest,
        )
    )


def sign_report(claim: Claim, ciphertext: bytes, key: SigningKey) -> Report:
    """The finished report of a claim."""
    return Report(claim, ciphertext, sign(key, claim.transcript()))


def parse_report(message: report_pb2.Report) -> Report:
    """A report with every field's presence, length and range checked; bytes not yet trusted.

    Raises:
        MalformedInput: FIELD_REQUIRED, FIELD_FORMAT or FIELD_RANGE, with ``field``;
            CIPHERTEXT_MALFORMED for an empty ciphertext.
        NotAuthentic: SIGNATURE_MISSING or, for another length, SIGNATURE_INVALID.
    """
    if not 0 < message.window_start < 2**53:
        _refuse_window(message.window_start)
    check_flags(message.flags)
    # Each access to a field of bytes copies it.
    ciphertext, signature = message.ciphertext, message.signature
    if not ciphertext:
        raise MalformedInput(Reason.CIPHERTEXT_MALFORMED, "the ciphertext is empty")
    claim = Claim(
        _required(message.parameters_digest, DIGEST_BYTES, "parameters_digest"),
        message.window_start,
        _required(message.meter_id, ID_BYTES, "meter_id"),
        message.flags,
        _required(message.commitment_hash, DIGEST_BYTES, "commitment_hash"),
        _required(message.sealed_commitment, SEALED_BYTES, "sealed_commitment"),
        sha256(ciphertext),
    )
    if not signature:
        raise NotAuthentic(Reason.SIGNATURE_MISSING, "a report is signed by its meter")
    if len(signature) != SIGNATURE_BYTES:
        raise NotAuthentic(Reason.SIGNATURE_INVALID, "the signature is not valid")
    return Report(claim, ciphertext, signature)


def check_flags(flags: int) -> None:
    """FIELD_RANGE for a flag that this version does not define."""
    if flags & ~FLAGS_KNOWN:
        raise MalformedInput(Reason.FIELD_RANGE, "unknown flags", field="flags")


def _required(value: bytes, size: int, field: str) -> bytes:
    if not value:
        raise MalformedInput(Reason.FIELD_REQUIRED, f"{field} is required", field=field)
    return fixed(value, size, field)


def _refuse_window(window_start: int) -> None:
    if window_start == 0:
        raise MalformedInput(
            Reason.FIELD_REQUIRED, "window_start is required", field="window_start"
        )
    raise MalformedInput(Reason.WINDOW_MISALIGNED, "not the start of a window")
