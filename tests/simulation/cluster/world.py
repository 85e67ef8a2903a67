"""A seed becomes a world: masters, processes, a key-holder, meters, faults, and what is said."""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import structlog

from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.keyholder import MIN_COHORT, ModelKeyHolder
from tests.simulation.cluster.memory_redis import Master
from tests.simulation.cluster.meters import Meters
from tests.simulation.cluster.network import Network
from tests.simulation.cluster.oracle import Oracle
from tests.simulation.cluster.process import Process
from tests.simulation.cluster.tasks import Scheduler
from tests.support.reports import WINDOW, city_policy

LENGTH = 900
DAY = 86_400
QUIET_S = 25 * 3600 + 1800
"""After the last fault: longer than a window may stay unsettled."""
CALM_S = 3600
"""In which everything is settled that does not have to wait to expire."""

HARMLESS = {
    "process crashed": 4.0,
    "process paused": 4.0,
    "clock skewed": 2.0,
    "cut from Redis": 3.0,
    "cut from the key-holder": 2.0,
    "cut from clients": 2.0,
    "key-holder away": 2.0,
    "master loading": 1.0,
    "master full": 1.0,
    "master read-only": 1.0,
    "replica behind": 3.0,
}
HARMFUL = {
    "master restarted": 1.0,
    "failover": 1.0,
    "flushed": 0.3,
    "snapshot": 0.5,
    "put back": 0.5,
}


@dataclass(frozen=True)
class Profile:
    """What kind of world it is."""

    processes: int
    masters: int
    wait: int
    """Replicas that must have a write."""
    enrolled: int
    """With 20 all of them report, and one lane holds them; with more there are several lanes."""
    kinds: dict[str, float] = field(default_factory=lambda: HARMLESS | HARMFUL)
    between_faults: float = 3600.0
    call_faults: float = 0.001
    switching: float = 0.05
    """How often others come between two steps."""
    misbehaving: float = 0.02
    losing_answers: float = 0.02
    attempts: int = 8
    """How often clients try again."""
    late_s: tuple[float, float] = (100.0, 1500.0)
    """How much later late submissions are."""

    @classmethod
    def calm(cls, processes: int, masters: int, wait: int) -> Self:
        """Where nothing fails and nobody misbehaves."""
        return cls(
            processes,
            masters,
            wait,
            enrolled=20,
            between_faults=0.0,
            call_faults=0.0,
            misbehaving=0.0,
            losing_answers=0.0,
        )

    @classmethod
    def of(cls, seed: int) -> Self:
        """As a seed wants it."""
        source = random.Random(f"profile {seed}")
        return cls(
            processes=source.choice([1, 2, 3, 3, 3]),
            masters=source.choice([1, 3]),
            wait=source.choice([0, 1, 2]),
            enrolled=source.choice([20, 20, 250]),
            kinds=HARMLESS if source.random() < 0.3 else HARMLESS | HARMFUL,
            between_faults=source.choice([900.0, 3600.0, 14400.0]),
            call_faults=source.choice([0.0003, 0.001, 0.005]),
            switching=source.choice([0.01, 0.05, 0.3]),
        )


class World:
    """Use as a context manager: its folder and threads end with it."""

    def __init__(self, seed: int, profile: Profile | None = None, start: int = WINDOW) -> None:
        self.seed = seed
        self.profile = profile or Profile.of(seed)
        self.source = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=60)
        self._hash = hashlib.sha256()
        self.scheduler = Scheduler(float(start))
        self._folder = tempfile.TemporaryDirectory(dir=_memory_folder())
        self.meters = Meters(self, self.profile.enrolled)
        self.keyholder = ModelKeyHolder(
            self,
            city_policy(),
            [keys.member for keys in self.meters.keys],
            start - 10 * LENGTH,
            start + 100_000 * LENGTH,
        )
        self.min_cohort = MIN_COHORT
        self.oracle = Oracle(self)
        names = [f"m{number}" for number in range(self.profile.masters)]
        masters = [Master(name, self.source, lambda: self.now) for name in names]
        self.network = Network(self, masters)
        self.faults = Faults(self)
        self.processes = [
            Process(self, f"p{number}", Path(self._folder.name) / f"p{number}")
            for number in range(self.profile.processes)
        ]
        self._next = start
        self.oracle.changed("first start")
        self.scheduler.at(self.now, self.faults.begin)
        for process in self.processes:
            self.scheduler.at(self.now, process.start)

    @property
    def now(self) -> float:
        return self.scheduler.now

    @property
    def digest(self) -> str:
        """Of everything that happened so far."""
        return self._hash.hexdigest()

    def trace(self, *parts: object) -> None:
        """Something happened."""
        line = f"{self.now!r} {parts!r}\n"
        self._hash.update(line.encode())
        self.last.append(line)

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] += number

    def run(self, seconds: float) -> None:
        """Let time pass, with reports for every window."""
        end = self.now + seconds
        while self.now < end:
            self._plan_windows()
            self.scheduler.run(min(end, self._next))

    def settle(self) -> None:
        """No more faults or reports: everything must come to its end."""
        self.faults.end()
        last, latest = self.now, self.now + QUIET_S
        self.scheduler.run(last + CALM_S)
        while self.now < latest and self._unsettled(last):
            self.scheduler.run(self.now + CALM_S)
        self.oracle.check_end([process for process in self.processes if process.serves])

    def _unsettled(self, before: float) -> bool:
        """Whether any window that was over by then waits for something."""
        return any(
            not process.serves
            or any(w.end < before and not w.phase.settled for w in process.store.windows())
            for process in self.processes
        )

    def __enter__(self) -> Self:
        self._reproducible = _reproducible(self)
        self._reproducible.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.scheduler.close()
        for process in self.processes:
            process.close()
        self._folder.cleanup()
        self._reproducible.__exit__(*error)

    def _plan_windows(self) -> None:
        while self._next <= self.now:
            self.meters.plan(self._next)
            self._next += LENGTH
            self.oracle.forget(int(self.now) - 3 * DAY)
            self.meters.forget(int(self.now) - 3 * DAY)


def _memory_folder() -> str | None:
    """A folder in memory: what is synced there costs nothing, and is only ever killed, not cut."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() else None


@contextmanager
def _reproducible(world: World) -> Iterator[None]:
    """Have the aggregator's modules draw from the seed, and wait on the world's clock."""
    source = world.source
    stand_ins: dict[str, Any] = {
        "time": SimpleNamespace(
            monotonic=lambda: world.now,
            time=lambda: world.now,
            sleep=lambda seconds: world.scheduler.sleep(world.now + seconds),
        ),
        "secrets": SimpleNamespace(
            token_hex=lambda n: source.randbytes(n).hex(), token_bytes=source.randbytes
        ),
        "random": SimpleNamespace(uniform=source.uniform, random=source.random),
    }
    originals = {"time": time, "secrets": secrets, "random": random}
    changed = []
    for name, module in list(sys.modules.items()):
        if name.startswith("gridveil_services.aggregator."):
            for attribute, stand_in in stand_ins.items():
                if getattr(module, attribute, None) is originals[attribute]:
                    setattr(module, attribute, stand_in)
                    changed.append((module, attribute))
    settings = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**settings)
        for module, attribute in changed:
            setattr(module, attribute, originals[attribute])
