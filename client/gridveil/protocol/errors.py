"""Every way Gridveil says no.

A failure raises a :class:`GridveilError` of one of the families below. It carries a
:class:`Reason`, the stable upper-case word that crosses the wire as ``ErrorInfo.reason``
(AIP-193), and text that never holds a reading, key, path or stack. The families::

    GridveilError
    |-- MalformedInput      the bytes or values are wrong whoever sends them, whenever
    |-- NotAuthentic        the sender is not proven
    |-- NotAllowed          the sender is proven and may not do this
    |-- WrongState          right call, wrong time or state; do not repeat it unchanged
    |-- Conflict            something else was settled first
    |-- NotFound            there is no such thing
    |-- Exhausted           a limit was reached
    |-- Unavailable         try again later
    |-- IntegrityLost       stored bytes are not what was written
    `-- InternalFault       a defect of ours
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable cause of a refusal; the complete list that may cross the wire."""

    # malformed input
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    NON_CANONICAL = "NON_CANONICAL"
    FIELD_REQUIRED = "FIELD_REQUIRED"
    FIELD_FORMAT = "FIELD_FORMAT"
    FIELD_RANGE = "FIELD_RANGE"
    ENUM_UNKNOWN = "ENUM_UNKNOWN"
    WINDOW_MISALIGNED = "WINDOW_MISALIGNED"
    RANGE_INVALID = "RANGE_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - a reason, not a secret
    BATCH_EMPTY = "BATCH_EMPTY"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    BATCH_MIXED = "BATCH_MIXED"
    STREAM_PROTOCOL = "STREAM_PROTOCOL"
    METADATA_DUPLICATE = "METADATA_DUPLICATE"
    CIPHERTEXT_MALFORMED = "CIPHERTEXT_MALFORMED"
    CIPHERTEXT_PARAMS = "CIPHERTEXT_PARAMS"
    CIPHERTEXT_NON_CANONICAL = "CIPHERTEXT_NON_CANONICAL"
    CIPHERTEXT_TRANSPARENT = "CIPHERTEXT_TRANSPARENT"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    COHORT_INVALID = "COHORT_INVALID"
    CONFIG_INVALID = "CONFIG_INVALID"
    READING_INVALID = "READING_INVALID"
    OPENING_FAILED = "OPENING_FAILED"
    # not authentic
    SIGNATURE_MISSING = "SIGNATURE_MISSING"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    BAD_IDENTITY = "BAD_IDENTITY"
    CERT_EXPIRED = "CERT_EXPIRED"
    KEY_NOT_PINNED = "KEY_NOT_PINNED"
    PROOF_INVALID = "PROOF_INVALID"
    NOT_WITNESSED = "NOT_WITNESSED"
    # not allowed
    ROLE_NOT_ALLOWED = "ROLE_NOT_ALLOWED"
    METER_REVOKED = "METER_REVOKED"
    # wrong state
    WINDOW_TOO_EARLY = "WINDOW_TOO_EARLY"
    WINDOW_CLOSED = "WINDOW_CLOSED"
    WINDOW_RELEASED = "WINDOW_RELEASED"
    WINDOW_OPEN = "WINDOW_OPEN"
    WINDOW_EXPIRED = "WINDOW_EXPIRED"
    WINDOW_POISONED = "WINDOW_POISONED"
    KEY_EPOCH = "KEY_EPOCH"
    ROSTER_VERSION = "ROSTER_VERSION"
    COHORT_TOO_SMALL = "COHORT_TOO_SMALL"
    REFUSED = "REFUSED"
    NOT_RELEASED = "NOT_RELEASED"
    NOT_SEALED = "NOT_SEALED"
    NO_SIGNAL = "NO_SIGNAL"
    # conflict
    EQUIVOCATION = "EQUIVOCATION"
    WINDOW_PINNED = "WINDOW_PINNED"
    METER_EXISTS = "METER_EXISTS"
    # not found
    NOT_FOUND = "NOT_FOUND"
    # exhausted
    OVERLOADED = "OVERLOADED"
    LANE_FULL = "LANE_FULL"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    # unavailable
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STORE_FULL = "STORE_FULL"
    KEYHOLDER_UNAVAILABLE = "KEYHOLDER_UNAVAILABLE"
    KEYHOLDER_LOCKED = "KEYHOLDER_LOCKED"
    UNREACHABLE = "UNREACHABLE"
    DRAINING = "DRAINING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    # integrity lost
    PARTIAL_CORRUPT = "PARTIAL_CORRUPT"
    LOG_CORRUPT = "LOG_CORRUPT"
    LOG_FORKED = "LOG_FORKED"
    LOG_ROLLED_BACK = "LOG_ROLLED_BACK"
    # ours
    INTERNAL = "INTERNAL"


class GridveilError(Exception):
    """Base of all failures.

    ``retry_after_s`` says from when on another try makes sense, in seconds, if that is known.
    ``metadata`` may cross the wire: short, without secrets.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        /,
        *,
        retry_after_s: float | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = metadata

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class MalformedInput(GridveilError):
    """Wrong whoever sends it, whenever."""


class NotAuthentic(GridveilError):
    """The sender, or the origin of a document, is not proven."""


class NotAllowed(GridveilError):
    """The sender is known and may not do this."""


class WrongState(GridveilError):
    """Right call, wrong time or state."""


class Conflict(GridveilError):
    """Something else was settled first, and stands."""


class NotFound(GridveilError):
    """There is no such thing."""


class Exhausted(GridveilError):
    """A limit was reached."""


class Unavailable(GridveilError):
    """Try the same call again later."""


class IntegrityLost(GridveilError):
    """Stored bytes are not what was written."""


class InternalFault(GridveilError):
    """A defect of ours; says nothing about its cause."""
