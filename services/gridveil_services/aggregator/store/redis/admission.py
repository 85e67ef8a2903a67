"""Which batches of a lane go into one step, given what is known of the lane. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    LaneBatch,
    LaneFull,
    Outcome,
    StoredReceipt,
)

MOST_IDS = 1_000
"""Reports in one script call: a long script keeps everybody else waiting."""


@dataclass
class Step:
    """The batches to store together, and the outcomes of the first batches once they are."""

    taken: list[LaneBatch] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    receipts: dict[bytes, StoredReceipt] = field(default_factory=dict)


def next_step(
    batches: Sequence[LaneBatch],
    known: Mapping[bytes, StoredReceipt],
    room: int,
    accepted_at_ms: int,
) -> Step:
    """A step of as many of the batches, from the first on, as go together.

    Args:
        batches: of one lane, in the order they came.
        known: receipts of meters that have a report stored, as far as is known.
        room: reports that fit the lane.
        accepted_at_ms: what the receipts of the step say.
    """
    step = Step()
    for batch in batches:
        meters = {report.meter_id for report in batch.reports}
        if len(meters) != len(batch.reports):
            raise ValueError("a batch holds one report a meter")
        if len(meters) > MOST_IDS:
            raise ValueError(f"a batch holds at most {MOST_IDS} reports")
        held = known.keys() & meters or step.receipts.keys() & meters
        if held:
            step.outcomes.append(Known({m: known.get(m) or step.receipts[m] for m in held}))
        elif len(meters) > room - len(step.receipts):
            step.outcomes.append(LaneFull(room - len(step.receipts)))
        elif len(step.receipts) + len(meters) > MOST_IDS:
            break
        else:
            step.taken.append(batch)
            step.outcomes.append(Committed(accepted_at_ms))
            step.receipts.update(
                (r.meter_id, StoredReceipt(r.digest, accepted_at_ms)) for r in batch.reports
            )
    return step
