"""One world, from its seed to its end, and what came of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.cluster.network import CALL_FAULTS
from tests.simulation.cluster.oracle import Violation
from tests.simulation.cluster.world import DAY, HARMFUL, HARMLESS, Profile, World

TRACES = Path(__file__).with_name("traces.json")
"""Seeds, their days, and the trace that each leaves."""
REPLAYED = {11: 1.0, 15: 1.0, 18: 1.0}
"""Days of each seed that is replayed: three processes; one master or three; WAIT for 1 and 2."""

FAULT_KINDS = (
    *CALL_FAULTS,
    *HARMLESS,
    *(kind for kind in HARMFUL if kind != "snapshot"),
    "failover, replica behind",
    "too few replicas had a write",
    "answer of the key-holder lost",
    "answer to a client lost",
    "late submission",
    "duplicate submission",
    "equivocation",
)
"""All that is counted as a fault."""


@dataclass
class Run:
    """A tally."""

    seed: int
    days: float
    counts: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    seconds: float = 0.0
    digest: str = ""
    """Of everything that happened: the same for the same seed."""
    violation: str = ""
    last: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return sum(self.counts[kind] for kind in FAULT_KINDS)

    def line(self) -> str:
        """In one line; what does not hold, and how to see it again, in two."""
        told = (
            f"seed {self.seed}: {self.days:g} days, {self.steps:,} events, {self.faults:,} faults,"
            f" {self.counts['windows released']:,} windows released,"
            f" {self.counts['windows poisoned']:,} poisoned, {self.seconds:.1f} s,"
            f" trace {self.digest[:16]}"
        )
        return told + (f"\n{self.violation}" if self.violation else "")


def run(seed: int, budget: float, profile: Profile | None = None) -> Run:
    """A world of ``budget`` simulated days of faults and reports, and the calm after them."""
    began = time.process_time()
    done = Run(seed, budget)
    with World(seed, profile) as world:
        try:
            world.run(budget * DAY)
            world.settle()
        except Exception as error:
            what = f"violation of {error}" if isinstance(error, Violation) else repr(error)
            done.violation = (
                f"{what}; seed {seed}, step {world.scheduler.steps}; again:"
                f" python -m tests.simulation.cluster --seeds {seed} --days {budget:g} --last"
            )
        done.counts, done.steps = world.counts, world.scheduler.steps
        done.digest, done.last = world.digest, list(world.last)
    done.seconds = time.process_time() - began
    return done


def run_named(named: tuple[int, float]) -> Run:
    """Of a seed, so many days."""
    return run(*named)


def write_traces() -> None:
    """Renew the committed traces; what a change of the product's calls asks for."""
    found = {}
    for seed, days in REPLAYED.items():
        done = run(seed, days)
        print(done.line(), flush=True)
        if done.violation:
            raise SystemExit(1)
        found[str(seed)] = {"days": days, "trace": done.digest}
    TRACES.write_text(json.dumps(found, indent=2) + "\n")
