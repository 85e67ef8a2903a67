"""What a record of the release log says about a window."""

from __future__ import annotations

from gridveil.protocol.noise import NoiseClaim
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.v1.log_pb2 import LogRecord, ReleaseIntent


def claimed_noise(intent: ReleaseIntent) -> NoiseClaim:
    """What a claim says of the noise of its total; MALFORMED_MESSAGE if it says nothing lawful."""
    return NoiseClaim.read(intent.mechanism, intent.loss_ppm)


def settled_by(record: LogRecord) -> totals_pb2.WindowOutcome | None:
    """The outcome that a record settles its window with, without a proof; None if it is another."""
    match record.WhichOneof("event"):
        case "released":
            return totals_pb2.WindowOutcome(
                window_start=record.released.window_start, total=record.released.total
            )
        case "refused":
            cause = totals_pb2.NOT_RELEASED_REASON_REFUSED
            if record.refused.over_budget:
                cause = totals_pb2.NOT_RELEASED_REASON_BUDGET_EXHAUSTED
            return totals_pb2.WindowOutcome(
                window_start=record.refused.window_start, not_released=cause
            )
        case "expired":
            return totals_pb2.WindowOutcome(
                window_start=record.expired.window_start,
                not_released=totals_pb2.NOT_RELEASED_REASON_EXPIRED,
            )
    return None
