"""The report: what a meter signs, and its strict parsing on arrival."""

from __future__ import annotations

import struct
from typing import NamedTuple, Never

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
_TRANSCRIPT = struct.Struct(f"<{len(_REPORT_DOMAIN)}s32sQ16sI32s32s32s")
_SEAL_DOMAIN = text("gridveil/v1/seal")
_FIXED = {
    "parameters_digest": DIGEST_BYTES,
    "meter_id": ID_BYTES,
    "commitment_hash": DIGEST_BYTES,
    "sealed_commitment": SEALED_BYTES,
}
_FIXED_LENGTHS = tuple(_FIXED.values())


class Claim(NamedTuple):
    """What a report says apart from its ciphertext; everything the signature covers.

    A tuple, as is ``Report``: millions are made, and a frozen dataclass takes three times as long.
    """

    parameters_digest: bytes
    window_start: int
    meter_id: bytes
    flags: int
    commitment_hash: bytes
    sealed_commitment: bytes
    ciphertext_digest: bytes

    def transcript(self) -> bytes:
        """The bytes that the meter signs, 175 of them."""
        parameters_digest, window_start, meter_id, flags, h, sealed, ciphertext_digest = self
        return _TRANSCRIPT.pack(
            _REPORT_DOMAIN,
            parameters_digest,
            window_start,
            meter_id,
            flags,
            h,
            sha256(sealed),
            ciphertext_digest,
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


class Report(NamedTuple):
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
    # Each access to a field of bytes copies it.
    ciphertext, signature = message.ciphertext, message.signature
    claim = Claim(
        message.parameters_digest,
        message.window_start,
        message.meter_id,
        message.flags,
        message.commitment_hash,
        message.sealed_commitment,
        sha256(ciphertext),
    )
    parameters_digest, window_start, meter_id, flags, h, sealed, _ = claim
    if (
        not 0 < window_start < 2**53
        or flags & ~FLAGS_KNOWN
        or not ciphertext
        or (len(parameters_digest), len(meter_id), len(h), len(sealed)) != _FIXED_LENGTHS
        or len(signature) != SIGNATURE_BYTES
    ):
        _refuse(claim, ciphertext, signature)
    return Report(claim, ciphertext, signature)


def _refuse(claim: Claim, ciphertext: bytes, signature: bytes) -> Never:
    """Say what is wrong first."""
    if not 0 < claim.window_start < 2**53:
        _refuse_window(claim.window_start)
    check_flags(claim.flags)
    if not ciphertext:
        raise MalformedInput(Reason.CIPHERTEXT_MALFORMED, "the ciphertext is empty")
    for field, size in _FIXED.items():
        fixed(getattr(claim, field), size, field)
    if not signature:
        raise NotAuthentic(Reason.SIGNATURE_MISSING, "a report is signed by its meter")
    raise NotAuthentic(Reason.SIGNATURE_INVALID, "the signature is not valid")


def check_flags(flags: int) -> None:
    """FIELD_RANGE for a flag that this version does not define."""
    if flags & ~FLAGS_KNOWN:
        raise MalformedInput(Reason.FIELD_RANGE, "unknown flags", field="flags")


def _refuse_window(window_start: int) -> Never:
    if window_start == 0:
        raise MalformedInput(
            Reason.FIELD_REQUIRED, "window_start is required", field="window_start"
        )
    raise MalformedInput(Reason.WINDOW_MISALIGNED, "not the start of a window")
