"""When refusals lock the key-holder: a rule over the release log, and over nothing else.

    open --the refusal that spends the day's budget--> locked --unlocked by name--> open

A locked key-holder claims no window. Time alone unlocks nothing. The key-holder and everybody who
reads its log come to the same state, since the log also states the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.v1.log_pb2 import LogRecord

DAY_MS = 86_400_000
MOST_REFUSALS_PER_DAY = 96
"""Largest budget: the windows of a day, of 900 s."""


@dataclass(frozen=True)
class RefusalLock:
    """What the records of a log so far say of the lock."""

    budget: int = 0
    """Refusals within 24 hours that lock; 0 until the log states a number: nothing locks."""
    refusals: tuple[int, ...] = ()
    """Unix milliseconds of the newest refusals since the last unlocking, in the log's order."""
    locked_at: int | None = None
    """Index of the refusal that locked it."""
    unlocked_at: int | None = None
    """The lock that was last unlocked, by the index of its refusal."""

    def permits(self, record: LogRecord) -> bool:
        """Whether a record may come next, as far as the lock is concerned."""
        match record.WhichOneof("event"):
            case "intent":
                return self.locked_at is None
            case "keyholder_unlocked":
                return record.keyholder_unlocked.locked_at_index == self.locked_at
            case "policy_stated":
                stated = record.policy_stated.refusals_per_day
                return 0 < stated <= MOST_REFUSALS_PER_DAY or self.budget == stated == 0
        return True

    def after(self, index: int, record: LogRecord) -> RefusalLock:
        """The state after the record with this index, which is permitted."""
        if counts(record):
            return self._refused(index, record.recorded_at_ms)
        match record.WhichOneof("event"):
            case "policy_stated":
                return replace(self, budget=record.policy_stated.refusals_per_day)
            case "keyholder_unlocked":
                return RefusalLock(self.budget, unlocked_at=self.locked_at)
        return self

    def _refused(self, index: int, now_ms: int) -> RefusalLock:
        refusals = (*self.refusals, now_ms)[-MOST_REFUSALS_PER_DAY:]
        today = sum(now_ms - DAY_MS < at for at in refusals)
        spent = 0 < self.budget <= today
        locked_at = index if spent and self.locked_at is None else self.locked_at
        return replace(self, refusals=refusals, locked_at=locked_at)


def counts(record: LogRecord) -> bool:
    """Whether a record is a refusal that counts against the budget.

    One for want of privacy budget does not: nothing was opened, and everybody knew it before.
    """
    return record.HasField("refused") and not record.refused.over_budget


def check_refusals_per_day(budget: int) -> None:
    """CONFIG_INVALID unless a budget of refusals is 1 to 96."""
    if not 1 <= budget <= MOST_REFUSALS_PER_DAY:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"refusals_per_day is 1 to {MOST_REFUSALS_PER_DAY}",
            field="refusals_per_day",
        )
