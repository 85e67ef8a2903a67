"""The released totals beside what was sent: equal to the last watt-hour, or the test has failed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gridveil.clock import Clock
from gridveil.loadtest.pool import PoolPlan
from gridveil.loadtest.sender import Timed
from gridveil.operator import NotReleased, Operator, Outcome
from gridveil.profile import Profile
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import Exhausted, GridveilError, Reason, Unavailable

PATIENCE_S = 60.0
"""How long a total may take after its window closed, real seconds."""
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Compared:
    """One window's outcome beside the accepted reports."""

    accepted: int
    sums: Mapping[str, int]
    """Of the accepted reports' readings, by register."""
    outcome: Outcome | None
    """None: not settled in time."""

    @property
    def exact(self) -> bool:
        """Whether the total is over the accepted reports, each once, and nothing else."""
        return not self.why

    @property
    def why(self) -> str:
        """What is wrong; empty if nothing is."""
        if self.outcome is None:
            return "not settled"
        if isinstance(self.outcome, NotReleased):
            return f"not released: {self.outcome.reason}"
        if self.outcome.count != self.accepted:
            return f"the total counts {self.outcome.count} reports, {self.accepted} were accepted"
        if any(self.outcome.sum(name) != wanted for name, wanted in self.sums.items()):
            return "the sums are not those of the accepted reports"
        return ""


def expected_sums(
    policy: CityPolicy, plan: PoolPlan, number: int, places: Collection[int]
) -> dict[str, int]:
    """The sums of the readings of some meters in the test's n-th window, by register."""
    rows = [plan.values(policy, place, number) for place in places]
    sums = [sum(column) for column in zip(*rows, strict=True)] or [0] * len(policy.registers)
    return dict(zip(policy.register_names, sums, strict=True))


def released(
    profile: Profile, windows: Sequence[Timed], clock: Clock, patience_s: float = PATIENCE_S
) -> dict[int, Outcome]:
    """The verified outcomes of windows, by number, waited for as long as they may take.

    Signature, city, window and the proof that the release log says so are checked as for every
    operator.
    """
    found: dict[int, Outcome] = {}
    with Operator.open(profile) as operator:
        for window in windows:
            closing = clock.real(window.closes - clock.now())
            until = time.monotonic() + max(0.0, closing) + patience_s
            while window.number not in found and time.monotonic() < until:
                try:
                    found[window.number] = operator.get(window.start)
                except GridveilError as error:
                    if not _heals(error):
                        raise
                    time.sleep(_PAUSE_S)
    return found


def _heals(error: GridveilError) -> bool:
    return error.reason is Reason.NOT_RELEASED or isinstance(error, Unavailable | Exhausted)
