"""What a kind of fault is, and the account that it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Tally:
    """What one kind of fault did in one run."""

    injected: int = 0
    """Faults that really happened."""
    counts: Counter[str] = field(default_factory=Counter)
    """Anything else that is worth a number: commits made, restarts, traces."""
    violations: list[str] = field(default_factory=list)
    """What must not happen and did, each with what replays it."""

    def add(self, other: Tally) -> None:
        """Take in the account of a further seed."""
        self.injected += other.injected
        self.counts.update(other.counts)
        self.violations += other.violations

    def to_json(self) -> dict[str, Any]:
        """For a kind that runs as a program of its own."""
        counts = dict(self.counts)
        return {"injected": self.injected, "counts": counts, "violations": self.violations}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What :meth:`to_json` gave."""
        return cls(data["injected"], Counter(data["counts"]), data["violations"])


Run = Callable[[int, int], Tally]
"""From a seed and a budget, the number of faults to inject, to the account."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    name: str
    what: str
    """What is done to what, and what is then compared, in one or two sentences."""
    run: Run
    promised: dict[str, int]
    """Faults by length of run: ``short`` or ``long``."""
    tool: str = ""
    """A program that it needs."""
    simulated: bool = False
    """In simulated time: it may run behind others, which do not wait for it."""
