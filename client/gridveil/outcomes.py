"""What each answer to a report means for the outbox: the table that ends entries.

=====================  ===========================================================================
SETTLED                A receipt. The report is durable at the aggregator, now or since an earlier
                       attempt whose answer was lost.
RETRY                  The answer is not about the report: the same bytes are sent again later, as
                       often as :mod:`gridveil.pacing` allows.
REFETCH_PARAMETERS     The report was made for another epoch: fetch the signed parameters; if they
                       differ, make the report anew from the same reading with a fresh blinding.
GIVE_UP                The report can never be counted. The reason is kept for the caller.
=====================  ===========================================================================

======================================================================  ==========================
Reason                                                                  Ending
======================================================================  ==========================
KEY_EPOCH                                                               REFETCH_PARAMETERS
WINDOW_TOO_EARLY, OVERLOADED, DRAINING, STORE_UNAVAILABLE, STORE_FULL,  RETRY: time heals it
KEYHOLDER_UNAVAILABLE, UNREACHABLE, DEADLINE_EXCEEDED, INTERNAL
BAD_IDENTITY, CERT_EXPIRED, ROLE_NOT_ALLOWED, KEY_NOT_PINNED            RETRY: an operator heals it
BATCH_EMPTY, BATCH_TOO_LARGE, BATCH_MIXED, MESSAGE_TOO_LARGE,           RETRY: about the call, not
STREAM_PROTOCOL, METADATA_DUPLICATE                                     about the report
WINDOW_CLOSED, WINDOW_RELEASED, WINDOW_EXPIRED, WINDOW_POISONED         GIVE_UP: too late
WINDOW_POISONED                                                         GIVE_UP: the aggregator
                                                                        lost part of the window
EQUIVOCATION                                                            GIVE_UP: another report of
                                                                        this meter stands
SIGNATURE_*, METER_REVOKED                                              GIVE_UP: not enrolled
LANE_FULL                                                               GIVE_UP: nobody chooses the
                                                                        lane
all others                                                              GIVE_UP: the report is
                                                                        wrong, or no answer to one
======================================================================  ==========================
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from gridveil.protocol.errors import Reason


class Ending(StrEnum):
    """What an answer does to an outbox entry."""

    SETTLED = "SETTLED"
    RETRY = "RETRY"
    REFETCH_PARAMETERS = "REFETCH_PARAMETERS"
    GIVE_UP = "GIVE_UP"


_RETRY = (
    Reason.WINDOW_TOO_EARLY,
    Reason.OVERLOADED,
    Reason.DRAINING,
    Reason.STORE_UNAVAILABLE,
    Reason.STORE_FULL,
    Reason.KEYHOLDER_UNAVAILABLE,
    Reason.UNREACHABLE,
    Reason.DEADLINE_EXCEEDED,
    Reason.INTERNAL,
    Reason.BAD_IDENTITY,
    Reason.CERT_EXPIRED,
    Reason.ROLE_NOT_ALLOWED,
    Reason.KEY_NOT_PINNED,
    Reason.BATCH_EMPTY,
    Reason.BATCH_TOO_LARGE,
    Reason.BATCH_MIXED,
    Reason.MESSAGE_TOO_LARGE,
    Reason.STREAM_PROTOCOL,
    Reason.METADATA_DUPLICATE,
)
_GIVE_UP = (
    Reason.WINDOW_CLOSED,
    Reason.WINDOW_RELEASED,
    Reason.WINDOW_EXPIRED,
    Reason.WINDOW_POISONED,
    Reason.WINDOW_POISONED,
    Reason.EQUIVOCATION,
    Reason.SIGNATURE_MISSING,
    Reason.SIGNATURE_INVALID,
    Reason.METER_REVOKED,
    Reason.LANE_FULL,
    # The report is wrong, whoever sends it.
    Reason.MALFORMED_MESSAGE,
    Reason.NON_CANONICAL,
    Reason.FIELD_REQUIRED,
    Reason.FIELD_FORMAT,
    Reason.FIELD_RANGE,
    Reason.ENUM_UNKNOWN,
    Reason.WINDOW_MISALIGNED,
    Reason.CIPHERTEXT_MALFORMED,
    Reason.CIPHERTEXT_PARAMS,
    Reason.CIPHERTEXT_NON_CANONICAL,
    Reason.CIPHERTEXT_TRANSPARENT,
    Reason.DIGEST_MISMATCH,
    Reason.READING_INVALID,
    # No answer to a report: a server that gives one is not worth asking again.
    Reason.RANGE_INVALID,
    Reason.PAGE_TOKEN_INVALID,
    Reason.COHORT_INVALID,
    Reason.OPENING_FAILED,
    Reason.CONFIG_INVALID,
    Reason.WINDOW_OPEN,
    Reason.ROSTER_VERSION,
    Reason.COHORT_TOO_SMALL,
    Reason.REFUSED,
    Reason.NOT_RELEASED,
    Reason.NOT_SEALED,
    Reason.NO_SIGNAL,
    Reason.WINDOW_PINNED,
    Reason.METER_EXISTS,
    Reason.NOT_FOUND,
    Reason.BUDGET_EXHAUSTED,
    Reason.KEYHOLDER_LOCKED,
    Reason.PARTIAL_CORRUPT,
    Reason.LOG_CORRUPT,
    Reason.LOG_FORKED,
    Reason.LOG_ROLLED_BACK,
    Reason.PROOF_INVALID,
    Reason.NOT_WITNESSED,
)

OUTCOMES: Mapping[Reason, Ending] = MappingProxyType(
    dict.fromkeys(_RETRY, Ending.RETRY)
    | dict.fromkeys(_GIVE_UP, Ending.GIVE_UP)
    | {Reason.KEY_EPOCH: Ending.REFETCH_PARAMETERS}
)
"""Complete over :class:`Reason`: a new reason must be placed here before it can be sent."""
