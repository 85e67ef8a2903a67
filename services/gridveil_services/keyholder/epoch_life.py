"""The life of an epoch: pure functions of what the log says of it, the window rules and the time.

pending -> active -> retired -> destroyed; any of them may be destroyed before its time, and then a
successor serves those of its windows whose reporting is not near yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from gridveil.protocol.windows import WindowRules
from gridveil_services.keyholder.ledger import LoggedEpoch

_NEVER = 2**53


class Life(StrEnum):
    """How far an epoch is."""

    PENDING = "pending"
    """Its first window has not begun; meters may fetch its public keys."""
    ACTIVE = "active"
    RETIRED = "retired"
    """It serves no window that begins now; its secrets open those that are not settled."""
    DESTROYED = "destroyed"


def life_of(epoch: LoggedEpoch, now: float) -> Life:
    """How far an epoch is at a time."""
    if epoch.destroyed:
        return Life.DESTROYED
    if now < epoch.first_window:
        return Life.PENDING
    return Life.ACTIVE if now < epoch.end_window else Life.RETIRED


def is_spent(epoch: LoggedEpoch, failure_budget: int) -> bool:
    """Whether an epoch that still has keys must not decrypt anything more."""
    return not epoch.destroyed and epoch.failures >= failure_budget


def border(epoch: LoggedEpoch, rules: WindowRules, now: float) -> int:
    """First window that a successor serves, if the epoch is destroyed now.

    It is the first whose parameters are not fixed yet (``WindowRules.fixed``): no report for it
    can have been made under the old keys. Of the windows before it, those that are not settled
    are lost with the keys, as nobody can open their reports any more.
    """
    window = rules.start_at(now)
    if rules.fixed(window) <= now:
        window = rules.end(window)
    return max(epoch.first_window, min(epoch.end_window, window))


def serving(epochs: Iterable[LoggedEpoch], window: int) -> LoggedEpoch | None:
    """The epoch that a window belongs to, with or without keys."""
    found = (epoch for epoch in epochs if epoch.first_window <= window < epoch.end_window)
    return next(found, None)


def gap(epochs: Iterable[LoggedEpoch], window: int, length: int) -> tuple[int, int]:
    """First and end window of an epoch to make for a window that belongs to none.

    It begins and ends with the multiples of ``length`` seconds around the window, or where the
    epochs before and after it do.
    """
    held = [epoch for epoch in epochs if epoch.first_window < epoch.end_window]
    before = max((e.end_window for e in held if e.end_window <= window), default=0)
    after = min((e.first_window for e in held if e.first_window > window), default=_NEVER)
    start = window // length * length
    return max(before, start), min(after, start + length)
